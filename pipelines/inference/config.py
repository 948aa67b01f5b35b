"""The keys of `salmonn evaluate`, `salmonn evaluations compare` and `salmonn ask`."""

import sys
from dataclasses import dataclass, field
from typing import Literal

import yaml
from omegaconf import MISSING

from cluster.config import RayConfig
from cluster.limits import QueueLimits
from encoders.audio import MOST_SECONDS, SOUND_ENDINGS
from pipelines import storage
from pipelines.cache.recipe import read_recipe
from pipelines.errors import MissingError, UserError, shorten
from pipelines.inference.engines.choice import Engine, require_greedy
from pipelines.interface.config import require_range
from pipelines.interface.words import command
from pipelines.runs.folder import find_checkpoint
from pipelines.runs.spec import RunSpec


@dataclass(frozen=True)
class AnsweringConfig:
    """The keys of all verbs that answer questions about cached clips."""

    run: str = MISSING
    """[URI] Run folder whose newest checkpoint answers."""
    manifest: str = MISSING
    """[URI] Folder of the manifest that holds the held-out examples."""
    cache: str = MISSING
    """[URI] Folder of the feature cache that holds their clips."""
    checkpoint: str = "last"
    """[last|best|step] Which of the run's checkpoints answers; best: of the lowest held-out loss."""
    splits: list[str] = field(default_factory=lambda: ["test"])
    """[names] Splits to answer; empty: all."""
    tasks: list[str] = field(default_factory=list)
    """[names] Tasks to answer; empty: all."""
    llm: str = ""
    """[path|name] The frozen LLM, if it has moved since training; its weights must be the same."""
    num_beams: int = 4
    """[count] Beams of the search; 1: greedy."""
    max_new_tokens: int = 200
    """[tokens] Longest answer."""
    batch_examples: int = 32
    """[examples] Decoded together."""
    workers: int = 0
    """[count] Answering workers; 0: as many as the cluster has room for."""
    threads: int = 1
    """[count] CPU threads (and Ray CPUs) of each worker."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """[name] Where the model runs; auto: a GPU each if the cluster has any."""
    max_missing_fraction: float = 0.05
    """[fraction] Share of the examples whose clips the cache may lack."""
    limits: QueueLimits = field(default_factory=QueueLimits)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("batch_examples", "num_beams", "max_new_tokens", "threads"), low=1)
        require_range(self, ("workers",), low=0)
        require_range(self, ("max_missing_fraction",), low=0, high=1)

    def require_paths(self) -> None:
        """Check that what is read is there."""
        RunSpec.read(self.run)
        find_checkpoint(self.run, self.checkpoint)
        read_recipe(self.cache)


@dataclass(frozen=True)
class EvaluateConfig(AnsweringConfig):
    out: str = ""
    """[URI] Folder for scores, report and answers; empty: evaluation/<splits> in the run."""
    check_heard: bool = False
    """[true/false] Score the same questions also with silence and with another clip's sound in place of the clip's: a
    model that hears does worse then."""
    page_examples: int = 50
    """[answers] Shown of each task and test set on the page to listen to, the worst first; 0: no page."""
    whisper: str = ""
    """[path|tiny] The Whisper encoder, if it has moved since extraction; only `check_heard` needs it."""
    beats: str = ""
    """[path|tiny|none] The BEATs encoder, likewise."""
    lora_scaling: float = 1.0
    """[factor] On LoRA's alpha/rank."""
    engine: Engine = "own"
    """[name] What decodes: own, or vllm, which takes the LLM with LoRA merged into it and decodes greedily
    (num_beams=1), as many questions at once as batch_examples says; its answers are kept apart from our own."""
    engine_python: str = ""
    """[path] For engine=vllm: the Python of an environment that has vLLM, on every machine that answers."""

    def __post_init__(self) -> None:
        """Check ranges, and that the engine can decode so."""
        super().__post_init__()
        require_range(self, ("page_examples",), low=0)
        require_greedy(self.engine, self.engine_python, num_beams=self.num_beams)

    def next_step(self) -> str:
        """Return the command that goes on from here."""
        return command("ask", run=self.run, audio="RECORDING", question="What can be heard?")


@dataclass(frozen=True)
class EvaluationsCompareConfig:
    evaluations: list[str] = field(default_factory=list)
    """[URIs] Two folders that evaluate wrote, or two runs: then what both were evaluated on."""
    out: str = ""
    """[URI] HTML page to write; empty: none."""


TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow")
OF_SERVER = ("checkpoint", "llm", "whisper", "beats", "lora_scaling", "heard_seconds", "threads", "device")
"""Keys of `ask` that a server has decided when it started."""


@dataclass(frozen=True)
class AskConfig:
    run: str = MISSING
    """[URI] Run folder; with `address`, the run of this folder's name among those that the server has."""
    checkpoint: str = "last"
    """[last|best|step] Which of its checkpoints answers; best: of the lowest held-out loss."""
    audio: str = MISSING
    """[URI|list] The recording; or several, [a.wav,b.wav]; or a folder, of which all are taken; or a .txt file that
    names one a line. The first 30 seconds of each are heard, or as many as the run learnt to hear."""
    heard_seconds: float = 0.0
    """[seconds] How much of each is heard at most, from its start; 0: as the run learnt. Another number needs a run
    that learnt with hear=clip, and so much room in its LLM."""
    question: str = ""
    """[text] What is asked about them; empty: a terminal is asked for questions until its input ends (Ctrl-D)."""
    json: bool = False
    """[true/false] Print an object a line: recording, question, answer, how much was heard of how much sound, and
    whether the answer ended for its length; or error where the recording cannot be heard."""
    address: str = ""
    """[http://host:port] A server that `salmonn serve` started: it answers, with the models that it has loaded. Its
    token is SALMONN_TOKEN, or the one that it wrote on this machine."""
    batch_examples: int = 16
    """[recordings] Answered together."""
    llm: str = ""
    """[path|name] The frozen LLM, if it has moved since training; its weights must be the same."""
    whisper: str = ""
    """[path|tiny] The Whisper encoder, if it has moved since extraction; its weights must be the same."""
    beats: str = ""
    """[path|tiny|none] The BEATs encoder, likewise."""
    num_beams: int = 4
    """[count] Beams of the search; 1: greedy."""
    max_new_tokens: int = 200
    """[tokens] Longest answer."""
    lora_scaling: float = 1.0
    """[factor] On LoRA's alpha/rank."""
    threads: int = 2
    """[count] CPU threads."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """[name] Where encoders and model run."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("batch_examples", "num_beams", "max_new_tokens", "threads"), low=1)
        if self.heard_seconds:
            require_range(self, ("heard_seconds",), low=1, high=MOST_SECONDS)

    def require_paths(self) -> None:
        """Check that what is read is there."""
        if not self.question and not sys.stdin.isatty():
            raise UserError("question=… is needed: what is asked; on a terminal it may be left out")
        for recording in self.recordings():
            try:
                storage.open_file(recording).close()
            except MissingError as error:
                listed = f"audio={self.audio}: " if self.audio.lower().endswith(".txt") else ""
                raise MissingError(f"{listed}{shorten(str(error))}") from None
        if self.address:
            self._require_left_to_server()
            return
        RunSpec.read(self.run)
        find_checkpoint(self.run, self.checkpoint)

    def _require_left_to_server(self) -> None:
        for name in OF_SERVER:
            if (value := getattr(self, name)) != getattr(AskConfig, name):
                raise UserError(f"{name}={value}: the server at {self.address} has its own; leave it out")

    def recordings(self) -> list[str]:
        """Return the recordings that `audio` names, in their order, of a folder in that of their paths.

        Raises:
            UserError: If it names none.
        """
        if self.audio.startswith("[") and not storage.file_exists(self.audio):
            named = _listed(self.audio)
        elif storage.folder_exists(self.audio):
            named = [storage.join(self.audio, name) for name in storage.list_below(self.audio, SOUND_ENDINGS)]
        elif self.audio.partition("?")[0].lower().endswith(".txt"):
            lines = storage.read_bytes(self.audio).decode(errors="surrogateescape").splitlines()
            named = [line.strip() for line in lines if line.strip()]
        elif self.audio.partition("?")[0].lower().removesuffix(".gz").endswith(TABLES):
            raise UserError(
                f"audio={self.audio}: a table, of which no recording can be heard; audio=LIST.txt names one a line; "
                "for a table with questions and answers there are salmonn prepare table, extract and evaluate"
            )
        else:
            named = [self.audio]
        if not named:
            raise UserError(f"audio={self.audio}: no recording there ({', '.join(SOUND_ENDINGS)})")
        return named


def _listed(text: str) -> list[str]:
    try:
        names = yaml.load(text, yaml.BaseLoader)
    except yaml.YAMLError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"audio={text}: must be a list of recordings, [a.wav,b.wav]")
    return names
