"""`salmonn report-bug`: what a maintainer needs of a machine, a run and a cache, in one file without secrets."""

import os
import platform
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version

from pipelines import storage
from pipelines.errors import USER_ERRORS
from pipelines.inference.answers import FOLDER, JOBS
from pipelines.interface.version import written_now
from pipelines.operations.config import ReportBugConfig
from pipelines.operations.redaction import SHOWN_VARIABLES, redact, secrets_of
from pipelines.operations.top.cache import CacheWatch
from pipelines.operations.top.run import RunWatch
from pipelines.operations.top.top import Row, cache_rows, run_rows
from pipelines.runs.folder import complete_steps, unfinished_steps
from pipelines.runs.metrics import METRICS
from pipelines.runs.scores import SCORES
from pipelines.runs.summary import CONFIG

PACKAGES = (
    *("ray", "torch", "torchaudio", "transformers", "peft", "tokenizers", "safetensors", "huggingface_hub"),
    *("pyarrow", "numpy", "omegaconf", "soundfile", "bitsandbytes", "starlette", "webdataset", "uv"),
)
VARIABLES = (
    *(
        "AWS_",
        "AZURE_",
        "CUDA",
        "GOOGLE_",
        "HF_",
        "KUBERNETES_",
        "LANG",
        "LC_",
        "LD_",
        "MKL_",
        "NCCL_",
        "NVIDIA_",
        "OMP_",
    ),
    *("PYTHON", "PYTORCH_", "RAY_", "SALMONN", "SLURM_", "TMPDIR", "TOKENIZERS_", "TORCH", "TRANSFORMERS_", "TZ"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
"""What the names of variables begin with that change what we, or the libraries below us, do."""
MOST_BYTES = 64 * 1024
"""Of a file's beginning or end."""
LAST_LINES = 20
LAST_FAILURES = 10
GPU_SECONDS = 20.0

INTRODUCTION = """\
A report for the maintainers of salmonn. {written}
Read it before you send it. Values of the environment, users and queries of URIs, and what is named or looks like a key
are replaced; paths, names of machines and recordings, settings and messages are not.
"""

Part = tuple[str, Callable[[], str]]
"""A title, and what makes its text."""


def report_bug(config: ReportBugConfig) -> None:
    """Write the report and say where it is.

    Raises:
        OSError: If it cannot be written.
    """
    parts: list[Part] = [("versions", _versions), ("machine", _machine), ("environment", _environment)]
    parts += [*(_run_parts(config.run) if config.run else ()), *(_cache_parts(config.cache) if config.cache else ())]
    text = INTRODUCTION.format(written=written_now())
    text += "".join(f"\n## {title}\n\n{_told(make)}\n" for title, make in parts)
    out = storage.full_path(config.out or f"{datetime.now(UTC):salmonn-report-%Y%m%dT%H%M%S.%fZ.txt}")
    storage.write_bytes(out, redact(text, secrets_of(os.environ)).encode(errors="replace"), exclusive=True)
    print(f"{out}: read it before you send it; nothing has been sent")


def _told(make: Callable[[], str]) -> str:
    """Return a part's text, or why there is none: what is broken is what the report is about."""
    try:
        return make().rstrip() or "nothing"
    except (*USER_ERRORS, OSError) as error:
        return f"not read: {error}"
    except Exception:
        return f"not read:\n{traceback.format_exc()}"


def _versions() -> str:
    lines = [f"python {sys.version}"]
    for package in ("salmonn-pipeline", *PACKAGES):
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} not installed")
    return "\n".join(lines)


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    disk = shutil.disk_usage(".")
    lines = [
        f"platform: {platform.platform()}, {' '.join(platform.libc_ver())}",
        f"cores: {os.cpu_count()}, of them for this process {len(os.sched_getaffinity(0))}",
        f"memory: {memory / 2**30:.1f} GiB",
        f"disk of this folder: {disk.free / 2**30:.1f} GiB free of {disk.total / 2**30:.1f}",
    ]
    return "\n".join([*lines, f"GPUs: {_gpus()}"])


def _gpus() -> str:
    program = shutil.which("nvidia-smi")
    if not program:
        return "no nvidia-smi here"
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    told = subprocess.run(query, capture_output=True, text=True, timeout=GPU_SECONDS, check=False)
    return told.stdout.strip() or f"nvidia-smi ended with {told.returncode}: {told.stderr.strip()}"


def _environment() -> str:
    names = sorted(name for name in os.environ if name.startswith(VARIABLES))
    return "\n".join(f"{name}={os.environ[name]}" if name in SHOWN_VARIABLES else name for name in names)


def _run_parts(run: str) -> Iterator[Part]:
    yield f"run {run}", lambda: _rows(run_rows(RunWatch(run).look(time.time()), time.time()))
    yield "run: checkpoints", lambda: f"complete {complete_steps(run)}, unfinished {unfinished_steps(run)}"
    for name in (CONFIG, "run.json"):
        yield f"run: {name}", partial(_beginning, storage.join(run, name))
    for name in (METRICS, SCORES):
        yield f"run: end of {name}", partial(_end, storage.join(run, name))
    yield from _job_parts("run: answers", storage.join(run, FOLDER, JOBS))


def _cache_parts(cache: str) -> Iterator[Part]:
    yield f"cache {cache}", lambda: _rows(cache_rows(CacheWatch(cache).look(time.time()), time.time()))
    yield "cache: recipe.json", partial(_beginning, storage.join(cache, "recipe.json"))
    yield from _job_parts("cache", storage.join(cache, "jobs"))


def _job_parts(whose: str, folder: str) -> Iterator[Part]:
    """Yield what the newest job has left in a folder: its record, its last units, and those it gave up."""

    def record() -> str:
        names = storage.list_names(folder, ".json")
        return _beginning(storage.join(folder, names[-1])) if names else ""

    def lines() -> list[str]:
        job = storage.join(folder, max(storage.list_folders(folder), default="none"))
        names = storage.list_names(job, ".jsonl")
        return _last_lines(storage.join(job, names[-1])) if names else []

    yield f"{whose}: newest job that ended", record
    yield f"{whose}: last units of the newest job", lambda: "\n".join(lines()[-LAST_LINES:])
    yield (
        f"{whose}: last units that were given up",
        lambda: "\n".join([line for line in lines() if '"error"' in line][-LAST_FAILURES:]),
    )


def _rows(rows: Iterator[Row]) -> str:
    return "\n".join(f"{name}: {text}" for name, text in rows)


def _beginning(uri: str) -> str:
    with storage.open_file(uri) as file:
        text = file.read(MOST_BYTES).decode(errors="replace")
        return text.rpartition("\n")[0] if file.read(1) else text


def _end(uri: str) -> str:
    return "\n".join(_last_lines(uri)[-LAST_LINES:]) if storage.file_exists(uri) else ""


def _last_lines(uri: str) -> list[str]:
    """Return the last whole lines: of one that is cut, half a secret might be left that no rule knows."""
    with storage.open_file(uri) as file:
        start = max(0, file.seek(0, os.SEEK_END) - MOST_BYTES)
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    return lines[1:] if start else lines
