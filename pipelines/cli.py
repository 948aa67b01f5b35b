"""The command line: `salmonn VERB [CONFIG.yaml] [key=value …]`.

Exit codes: 0 all done, 1 the job ended incomplete or its storage failed, 2 something the user can correct (one line
says what), 70 a bug (its traceback, and one line that says what to send), 130 interrupted, 141 nobody reads the output.
"""

import importlib
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from cluster.logs import set_up_logging
from pipelines.errors import USER_ERRORS, JobIncompleteError, UserError
from pipelines.interface.completion import SCRIPT, candidates
from pipelines.interface.config import load_config
from pipelines.interface.help import describe_keys
from pipelines.interface.terminal import print_table

WRONG_PATHS = (
    ConnectionError,
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
"""Answers of a filesystem or a network to a path or an address that the user gave; they end as `USER_ERRORS` do."""
EX_SOFTWARE = 70
EXIT_CODES = (
    "0 all done; 1 incomplete, with what is missing; 2 something to correct, in one line; 70 a bug, with what to send; "
    "130 interrupted; 141 nobody reads the output"
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
    "runs compare": Verb(
        "runs.config:RunsCompareConfig", "runs.compare:runs_compare", "runs side by side where their configs differ"
    ),
    "evaluate": Verb(
        "inference.config:EvaluateConfig", "inference.evaluate:evaluate", "decode a held-out split and score it"
    ),
    "ask": Verb("inference.config:AskConfig", "inference.ask:ask", "answer a question about a recording"),
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
    "demo": Verb("demo.config:DemoConfig", "demo.demo:demo", "all of it on a corpus made here, with a report"),
}
TABLES_ONLY = ("prepare", "manifest", "cache", "recipe", "runs")
"""Verbs that use neither Ray Train nor Tune, which need pandas."""
CONTINUED = ("extract", "cache export", "cache merge", "cache prune", "train", "sweep", "demo")
"""Verbs that do what is left to do when they are called again."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        _run(words)
        sys.stdout.flush()
        return 0
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        _forget_output()  # rich makes SystemExit of a broken pipe
        return 141  # as a shell says of a program that SIGPIPE ended
    except (*USER_ERRORS, *WRONG_PATHS) as error:
        return _fail(error, debug, code=2)
    except (JobIncompleteError, OSError) as error:
        return _fail(error, debug, code=1)
    except KeyboardInterrupt:
        is_continued = " ".join(words).startswith(CONTINUED)
        hint = "; the same command continues where this one stopped" if is_continued else ""
        print(f"salmonn: interrupted{hint}", file=sys.stderr)
        return 130
    except Exception:
        _report_bug(words)
        return EX_SOFTWARE


def _forget_output() -> None:
    """Send what is still to be flushed at exit nowhere, where it cannot fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


def _run(words: list[str]) -> None:
    if not words or words[0] in ("--help", "-h", "help"):
        _print_verbs()
        return
    if words == ["--version"]:
        print(f"salmonn {_version()}")
        return
    if words[0] in ("completion", "complete"):
        _complete(words)
        return
    name, arguments = _split_verb(words)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at import it reports kernels that it could fetch
    verb = VERBS[name]
    config_type = verb.load_config_type()
    if "--help" in arguments or "-h" in arguments:
        _print_keys(name, config_type)
        return
    set_up_logging(level=logging.WARNING)
    config: Any = load_config(config_type, arguments)
    with _Absent("pandas") if name.startswith(TABLES_ONLY) else nullcontext():
        if hasattr(config, "require_paths"):
            config.require_paths()  # before what does the work is imported, which may take seconds
        verb.load_function()(config)


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
    below = [name.split()[1] for name in VERBS if name.split()[0] == words[0] and " " in name]
    if below:
        raise UserError(f"{words[0]} needs one of: {', '.join(below)}")
    raise UserError(f"{words[0]}: unknown verb; known: {', '.join(VERBS)}")


def _fail(error: BaseException, debug: bool, *, code: int) -> int:
    if debug:
        raise error
    print(f"salmonn: {_one_line(error)}", file=sys.stderr)
    return code


def _report_bug(words: Sequence[str]) -> None:
    traceback.print_exc()
    print(
        f"salmonn: this is a bug in salmonn {_version()}, not in your input; please report it with "
        f"the traceback above and this command: salmonn {shlex.join(words)}",
        file=sys.stderr,
    )


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and rarely asked for

    try:
        return version("salmonn-pipeline")
    except PackageNotFoundError:  # a job's shipped copy
        return "(not installed)"


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
    return " ".join(str(error).split()) or repr(error)


def _print_verbs() -> None:
    print("usage: salmonn VERB [CONFIG.yaml] [key=value …]      salmonn VERB --help lists the verb's keys")
    print("       --debug shows where an error comes from; salmonn --version; salmonn completion is for your shell\n")
    for name, verb in VERBS.items():
        print(f"  {name:<20} {verb.help}")
    print(f"\nexit codes: {EXIT_CODES}")


def _print_keys(name: str, config_type: type) -> None:
    print(f"usage: salmonn {name} [CONFIG.yaml] [key=value …]\n\n{VERBS[name].help}\n")
    table = Table("key", "type", "unit", "default", "meaning", box=None, pad_edge=False, header_style="bold")
    for key in describe_keys(config_type):
        table.add_row(key.name, key.type, key.unit, key.default, key.meaning)
    print_table(table)
