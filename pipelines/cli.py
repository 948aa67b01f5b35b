"""The command line: `salmonn VERB [CONFIG.yaml] [key=value …]`.

Exit codes: 0 all done, 1 the job ended incomplete or its storage failed, 2 something the user can correct (one line
says what), 70 a bug (its traceback, and one line that says what to send), 130 interrupted, 143 stopped by SIGTERM, 141
nobody reads the output.
"""

import importlib
import logging
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from rich.table import Table

from cluster.logs import set_up_logging
from pipelines.errors import USER_ERRORS, JobIncompleteError, UserError
from pipelines.interface.completion import SCRIPT, candidates
from pipelines.interface.config import load_config
from pipelines.interface.help import describe_keys
from pipelines.interface.progress import Progress
from pipelines.interface.terminal import print_table
from pipelines.interface.version import product_version

WRONG_PATHS = (
    ConnectionError,
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
"""Answers of a filesystem or a network to a path or an address that the user gave; they end as `USER_ERRORS` do."""
HELP = {"--help", "-h"}
MARKS = {"": "", "free": "*", "grows": "+"}
"""What `--help` puts behind a key by how it may change."""
EX_SOFTWARE = 70
EXIT_CODES = (
    "0 all done; 1 incomplete, with what is missing; 2 something to correct, in one line; 70 a bug, with what to send; "
    "130 interrupted; 143 stopped by SIGTERM; 141 nobody reads the output"
)


@dataclass(frozen=True)
class Verb:
    """Where a verb's config and its function are, each as `module:name` below `pipelines`."""

    config: str
    function: str
    help: str

    def load_config_type(self) -> type:
        """Import the config alone: for a verb's help or a wrong key nothing that computes is loaded."""
        config_type: type = _load(self.config)
        return config_type

    def load_function(self) -> Callable[[Any], object]:
        """Import what does the work."""
        function: Callable[[Any], object] = _load(self.function)
        return function


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"pipelines.{module}"), name)


def _reader(corpus: str, config: str, source: str) -> Verb:
    module = f"manifest.corpora.{corpus}"
    return Verb(f"{module}:{config}", f"{module}:prepare_{corpus}", f"manifest from {source}")


def _submitted(verb: str, config: str) -> Verb:
    return Verb(f"operations.config:{config}", "operations.submit:submit", f"{verb} as a job of a cluster")


def _deployed(function: str, result: str) -> Verb:
    return Verb("operations.config:DeployConfig", f"operations.deploy:{function}", f"{result}, from a values file")


VERBS = {
    "prepare annotations": _reader("annotations", "AnnotationsConfig", "SALMONN's JSON"),
    "prepare audiocaps": _reader("audiocaps", "AudioCapsConfig", "AudioCaps"),
    "prepare clotho": _reader("clotho", "ClothoConfig", "Clotho"),
    "prepare covost": _reader("covost", "CovostConfig", "CoVoST 2"),
    "prepare esc": _reader("esc", "EscConfig", "ESC-50 or ESC-10"),
    "prepare gigaspeech": _reader("gigaspeech", "GigaSpeechConfig", "GigaSpeech"),
    "prepare iemocap": _reader("iemocap", "IemocapConfig", "IEMOCAP"),
    "prepare librimix": _reader("librimix", "LibriMixConfig", "Libri2Mix"),
    "prepare librispeech": _reader("librispeech", "LibriSpeechConfig", "LibriSpeech"),
    "prepare musiccaps": _reader("musiccaps", "MusicCapsConfig", "MusicCaps"),
    "prepare slurp": _reader("slurp", "SlurpConfig", "SLURP"),
    "prepare voxceleb": _reader("voxceleb", "VoxCelebConfig", "VoxCeleb1"),
    "prepare wavcaps": _reader("wavcaps", "WavCapsConfig", "WavCaps"),
    "prepare folder": _reader("folder", "FolderConfig", "a folder of sounds, by their folders' names"),
    "prepare table": _reader("table", "TableConfig", "CSV, JSONL, Parquet"),
    "manifest info": Verb(
        "manifest.tools.config:ManifestInfoConfig",
        "manifest.tools.info:manifest_info",
        "what a manifest holds: counts and hours",
    ),
    "manifest check": Verb(
        "manifest.tools.config:ManifestCheckConfig",
        "manifest.tools.check:manifest_check",
        "missing files, duplicates, leaks",
    ),
    "manifest sample": Verb(
        "manifest.tools.config:ManifestSampleConfig", "manifest.tools.sample:manifest_sample", "some examples to read"
    ),
    "manifest plot": Verb(
        "manifest.tools.config:ManifestPlotConfig",
        "manifest.tools.plot:manifest_plot",
        "lengths and hours as a picture",
    ),
    "plan extract": Verb(
        "extraction.config:PlanExtractConfig",
        "extraction.plan_extract:plan_extract",
        "what an extraction costs, before it runs",
    ),
    "extract": Verb(
        "extraction.config:ExtractConfig", "extraction.extract:extract", "encode every clip once into a feature cache"
    ),
    "cache info": Verb(
        "cache.tools.config:CacheInfoConfig", "cache.tools.info:cache_info", "what a feature cache holds and lacks"
    ),
    "cache verify": Verb(
        "cache.tools.config:CacheVerifyConfig", "cache.tools.verify:cache_verify", "check a cache against its index"
    ),
    "cache ls": Verb("cache.tools.config:CacheLsConfig", "cache.tools.ls:cache_ls", "a cache's clips, a line each"),
    "cache show": Verb(
        "cache.tools.config:CacheShowConfig", "cache.tools.show:cache_show", "draw a clip's wave and features"
    ),
    "cache export": Verb(
        "cache.tools.config:CacheExportConfig", "cache.tools.copy:cache_export", "a cache of some of the clips"
    ),
    "cache merge": Verb(
        "cache.tools.config:CacheMergeConfig", "cache.tools.copy:cache_merge", "one cache from several"
    ),
    "cache trim": Verb(
        "cache.tools.config:CacheTrimConfig", "cache.tools.copy:cache_trim", "a cache without the silence behind sounds"
    ),
    "cache prune": Verb(
        "cache.tools.config:CachePruneConfig", "cache.tools.prune:cache_prune", "drop clips that no manifest names"
    ),
    "recipe diff": Verb(
        "runs.config:RecipeDiffConfig", "runs.recipe_diff:recipe_diff", "where two caches' or runs' recipes differ"
    ),
    "plan train": Verb(
        "training.forecast.config:PlanTrainConfig",
        "training.forecast.plan_train:plan_train",
        "what a run takes, before it runs",
    ),
    "train": Verb("training.config:TrainConfig", "training.train:train", "train aligner and LoRA on cached features"),
    "sweep": Verb(
        "training.sweep.config:SweepConfig",
        "training.sweep.sweep:sweep",
        "many short trainings on one cache, and which was best",
    ),
    "runs list": Verb("runs.config:RunsListConfig", "runs.summary:runs_list", "what the runs of a folder came to"),
    "runs delete": Verb("runs.config:RunsDeleteConfig", "runs.delete:runs_delete", "remove a run and all its files"),
    "runs compare": Verb(
        "runs.config:RunsCompareConfig", "runs.compare:runs_compare", "runs side by side where their configs differ"
    ),
    "tasks": Verb(
        "inference.scoring.config:TasksConfig",
        "inference.scoring.listing:list_tasks",
        "the tasks: question, scores, an example",
    ),
    "evaluate": Verb(
        "inference.config:EvaluateConfig", "inference.evaluate:evaluate", "decode a held-out split and score it"
    ),
    "evaluations compare": Verb(
        "inference.config:EvaluationsCompareConfig",
        "inference.compare:evaluations_compare",
        "two evaluations side by side, with intervals and p values",
    ),
    "scaling": Verb(
        "inference.studies.config:ScalingConfig",
        "inference.studies.scaling:scaling",
        "how a run's answers change with LoRA's scaling",
    ),
    "stories": Verb(
        "inference.studies.config:StoriesConfig",
        "inference.studies.stories:stories",
        "stories that a run writes, for stage 3 to learn",
    ),
    "ask": Verb("inference.config:AskConfig", "inference.ask:ask", "answer questions about recordings"),
    "serve": Verb(
        "inference.serving.config:ServeConfig",
        "inference.serving.serve:serve",
        "runs behind an address: OpenAI's API, and a page to talk to them",
    ),
    "import-official": Verb(
        "runs.config:ImportConfig",
        "runs.official:import_official",
        "a run from a checkpoint of the official SALMONN code",
    ),
    "export-official": Verb(
        "runs.config:ExportConfig",
        "runs.official:export_official",
        "a checkpoint for the official SALMONN code from a run",
    ),
    "submit extract": _submitted("extract", "SubmitExtractConfig"),
    "submit train": _submitted("train", "SubmitTrainConfig"),
    "submit sweep": _submitted("sweep", "SubmitSweepConfig"),
    "submit evaluate": _submitted("evaluate", "SubmitEvaluateConfig"),
    "jobs list": Verb("operations.config:JobsConfig", "operations.jobs:jobs_list", "a cluster's jobs, newest first"),
    "jobs status": Verb("operations.config:JobConfig", "operations.jobs:jobs_status", "how one job stands"),
    "jobs logs": Verb("operations.config:JobLogsConfig", "operations.jobs:jobs_logs", "what a job has printed"),
    "jobs stop": Verb("operations.config:JobConfig", "operations.jobs:jobs_stop", "stop a job and wait for its end"),
    "top": Verb(
        "operations.config:TopConfig", "operations.top.top:top", "how jobs stand, live, by their caches and runs alone"
    ),
    "deploy values": Verb(
        "operations.config:DeployValuesConfig", "operations.deploy:deploy_values", "a values file with every key"
    ),
    "deploy kuberay": _deployed("deploy_kuberay", "RayCluster and RayJob for Kubernetes"),
    "deploy slurm": _deployed("deploy_slurm", "a job script for Slurm"),
    "deploy ray-up": _deployed("deploy_ray_up", "a cluster file for `ray up`: AWS, GCP, own machines"),
    "deploy docker": _deployed("deploy_docker", "a Dockerfile with the locked packages"),
    "deploy monitoring": Verb(
        "operations.config:DeployMonitoringConfig",
        "operations.deploy:deploy_monitoring",
        "Prometheus' config and alert rules, a dashboard for Grafana",
    ),
    "demo": Verb("demo.config:DemoConfig", "demo.demo:demo", "all of it on a corpus made here, with a report"),
}
TABLES_ONLY = ("prepare", "manifest", "cache", "recipe", "runs", "evaluations", "top")
"""Verbs that use neither Ray Train nor Tune, which need pandas."""
CONTINUED = (
    *("extract", "cache export", "cache merge", "cache trim", "cache prune", "train", "sweep"),
    *("evaluate", "scaling", "stories", "submit", "demo"),
)
"""Verbs that do what is left to do when they are called again."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))  # as Ray does it from its start on
        _run(words)
        sys.stdout.flush()
        return 0
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM:
            return _say_stopped(words, "stopped", signal.SIGTERM)
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        _forget_output()  # rich makes SystemExit of a broken pipe
        return 141  # as a shell says of a program that SIGPIPE ended
    except (*USER_ERRORS, *WRONG_PATHS) as error:
        return _fail(error, debug, code=2)
    except (JobIncompleteError, OSError) as error:
        return _fail(error, debug, code=1)
    except KeyboardInterrupt:
        return _say_stopped(words, "interrupted", signal.SIGINT)
    except Exception:
        _report_bug(words)
        return EX_SOFTWARE


def _say_stopped(words: Sequence[str], how: str, number: int) -> int:
    """Say in a last line what the same command would do, and return the exit code of a signal."""
    is_continued = " ".join(words).startswith(CONTINUED)
    print(
        f"salmonn: {how}{'; the same command continues where this one stopped' if is_continued else ''}",
        file=sys.stderr,
    )
    return 128 + number


def _forget_output() -> None:
    """Send what is still to be flushed at exit nowhere, where it cannot fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


def _run(words: list[str]) -> None:
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if not words or words[0] in HELP:
        _print_verbs(VERBS)
        return
    if words == ["--version"]:
        print(f"salmonn {product_version()}")
        return
    if words[0] in ("completion", "complete"):
        _complete(words)
        return
    if HELP & set(words[1:2]) and _group(words[0]):
        _print_verbs(_group(words[0]))
        return
    name, arguments = _split_verb(words)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at import it reports kernels that it could fetch
    verb = VERBS[name]
    config_type = verb.load_config_type()
    if HELP & set(arguments):
        _print_keys(name, config_type)
        return
    set_up_logging(level=logging.WARNING)
    config: Any = load_config(config_type, arguments)
    with _Absent("pandas") if name.startswith(TABLES_ONLY) else nullcontext():
        if hasattr(config, "require_paths"):
            config.require_paths()  # before what does the work is imported, which may take seconds
        with Progress().opening(f"{name}: starting"):
            function = verb.load_function()
        function(config)
    if hasattr(config, "next_step") and not name.startswith("submit "):  # whose job has said it
        print(f"next: {config.next_step()}", file=sys.stderr)


class _Absent:
    """Lets a package seem not to be installed: pyarrow imports pandas, 35 MB, as soon as it is given an array."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == self._package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    def __enter__(self) -> None:
        sys.meta_path.insert(0, self)

    def __exit__(self, *exception: object) -> None:
        sys.meta_path.remove(self)


def _split_verb(words: list[str]) -> tuple[str, list[str]]:
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in VERBS:
            return name, words[length:]
    typed, below = " ".join(words[:2]), [name.split()[1] for name in _group(words[0])]
    if below and not words[1:]:
        raise UserError(f"{typed} needs one of: {', '.join(below)}")
    if below:
        near = [f"{words[0]} {name}" for name in get_close_matches(words[1], below, n=2)]
        raise UserError(f"{typed}: unknown verb; {_did_you_mean(near)}salmonn {words[0]} --help lists them")
    firsts = dict.fromkeys(name.split()[0] for name in VERBS)
    near = get_close_matches(typed, VERBS, n=2, cutoff=0.75) or get_close_matches(words[0], firsts, n=2)
    raise UserError(f"{words[0]}: unknown verb; {_did_you_mean(near)}salmonn alone lists them")


def _group(word: str) -> list[str]:
    """Return the verbs of two words whose first is this."""
    return [name for name in VERBS if name.startswith(f"{word} ")]


def _did_you_mean(near: Sequence[str]) -> str:
    return f"did you mean {' or '.join(near)}? " if near else ""


def _fail(error: BaseException, debug: bool, *, code: int) -> int:
    if debug:
        raise error
    print(f"salmonn: {_one_line(error)}", file=sys.stderr)
    return code


def _report_bug(words: Sequence[str]) -> None:
    traceback.print_exc()
    print(
        f"salmonn: this is a bug in salmonn {product_version()}, not in your input; please report it with "
        f"the traceback above and this command: salmonn {shlex.join(words)}",
        file=sys.stderr,
    )


def _complete(words: Sequence[str]) -> None:
    """Print the script that a shell evaluates, or what the words after `complete` may become."""
    if words[0] == "completion":
        print(SCRIPT, end="")
        return
    for candidate in candidates(words[1:], VERBS, lambda verb: VERBS[verb].load_config_type()):
        print(candidate)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines) or repr(error)


def _print_verbs(names: Iterable[str]) -> None:
    print("usage: salmonn VERB [CONFIG.yaml] [key=value …]      salmonn VERB --help lists the verb's keys")
    print("       --debug shows where an error comes from; salmonn --version; salmonn completion is for your shell\n")
    for name in names:
        print(f"  {name:<20} {VERBS[name].help}")
    print(f"\nexit codes: {EXIT_CODES}")


def _print_keys(name: str, config_type: type) -> None:
    print(f"usage: salmonn {name} [CONFIG.yaml] [key=value …]\n\n{VERBS[name].help}\n")
    table = Table("key", "type", "unit", "default", "meaning", box=None, pad_edge=False, header_style="bold")
    keys = describe_keys(config_type)
    for key in keys:
        table.add_row(key.name + MARKS[key.change], key.type, key.unit, key.default, key.meaning)
    print_table(table)
    if any(key.change for key in keys):
        print("\n* may change when what exists already is continued; + may then grow; all other keys stay as they are")
