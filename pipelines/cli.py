"""The command line: `salmonn VERB [CONFIG.yaml] [key=value …]`.

Exit codes: 0 all done, 1 the job ended incomplete or its storage failed, 2 something the user can correct (one line
says what), 70 a bug (its traceback, and one line that says what to send), 130 interrupted, 143 stopped by SIGTERM, 141
nobody reads the output.
"""

import logging
import os
import re
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

from rich.table import Table

from cluster.logs import set_up_logging
from pipelines.errors import USER_ERRORS, JobIncompleteError
from pipelines.interface.completion import SCRIPT, candidates
from pipelines.interface.config import load_config
from pipelines.interface.help import describe_keys
from pipelines.interface.progress import Progress
from pipelines.interface.terminal import print_table
from pipelines.interface.version import product_version
from pipelines.verbs import HELP, VERBS, group_of, split_verb

WRONG_PATHS = (
    ConnectionError,
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
"""Answers of a filesystem or a network to a path or an address that the user gave; they end as `USER_ERRORS` do."""
MARKS = {"": "", "free": "*", "grows": "+"}
"""What `--help` puts behind a key by how it may change."""
EX_SOFTWARE = 70
EXIT_CODES = (
    "0 all done; 1 incomplete, with what is missing; 2 something to correct, in one line; 70 a bug, with what to send; "
    "130 interrupted; 143 stopped by SIGTERM; 141 nobody reads the output"
)
TABLES_ONLY = ("prepare", "manifest", "cache", "recipe", "runs", "evaluations", "top", "report-bug")
"""Verbs that use neither Ray Train nor Tune, which need pandas."""
CONTINUED = (
    *("extract", "cache export", "cache merge", "cache trim", "cache prune", "train", "sweep"),
    *("evaluate", "scaling", "stories", "submit", "demo"),
)
"""Verbs that do what is left to do when they are called again."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    signals: list[int] = []

    def stop(number: int, _: object) -> None:
        signals.append(number)
        sys.exit(number)

    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, stop)  # as Ray does it from its start on
        _run(words)
        sys.stdout.flush()
        return 0
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and (signals or error.code == signal.SIGTERM):  # while Ray waits the code is 1
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
    if HELP & set(words[1:2]) and group_of(words[0]):
        _print_verbs(group_of(words[0]))
        return
    name, arguments = split_verb(words)
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


def _fail(error: BaseException, debug: bool, *, code: int) -> int:
    if debug:
        raise error
    print(f"salmonn: {_one_line(error)}", file=sys.stderr)
    return code


def _report_bug(words: Sequence[str]) -> None:
    traceback.print_exc()
    about = shlex.join(["report-bug", *(word for word in words[1:] if re.match(r"(run|cache)=[^\[]", word))])
    print(
        f"salmonn: this is a bug in salmonn {product_version()}, not in your input; please report it with "
        f"the traceback above, the file that `salmonn {about}` writes, and this command: salmonn {shlex.join(words)}",
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
