"""Runs as they go, seen from the driver: their newest metrics as a line of progress, and a report at their end."""

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pipelines import metrics, storage
from pipelines.errors import UserError
from pipelines.interface.progress import Phase
from pipelines.interface.words import counted
from pipelines.runs.folder import REPORT
from pipelines.runs.metrics import MetricsTail, read_metrics
from pipelines.training.config import TrainConfig

LOOK_SECONDS, LOOK_AFAR_SECONDS = 0.5, 10.0
"""Time between looks at a run's metrics; an object store counts requests."""


@contextmanager
def watched(configs: Sequence[TrainConfig], phase: Phase) -> Iterator[None]:
    """Show the current run's newest line of metrics.jsonl as the phase's state while the block runs, and all alarms.

    What Prometheus is told of the run comes from the same lines, at each look.
    """
    ended = threading.Event()
    tails = {config.run: MetricsTail(config.run) for config in configs}
    stands = {config.run: metrics.RunStands(config.run, config.steps) for config in configs}
    before_block = {run: tail.read() for run, tail in tails.items()}
    newest = {run: lines[-1] for run, lines in before_block.items() if lines}
    told = {run: line["step"] for run, line in newest.items()}
    for run, lines in before_block.items():
        stands[run].take(lines)

    def show() -> None:
        before, done, note = 0, 0, "workers starting"
        for config in configs:
            run, name = config.run, config.run.partition("?")[0].rpartition("/")[2]
            lines = tails[run].read()
            stands[run].take(lines)
            for line in lines:
                newest[run] = line
                if line["step"] > told.get(run, 0):
                    told[run] = line["step"]
                    for alarm in line.get("alarms", ()):
                        print(f"{name}: step {line['step']}: {alarm}", file=sys.stderr)
            if run in newest:
                done, note = before + newest[run]["step"], f"{name}: {describe_line(newest[run])}"
            before += config.steps
        phase.update(done, note=note)
        for config in configs:
            stands[config.run].tell()
            if not stands[config.run].is_complete:
                break  # those after it wait for it

    def look() -> None:
        try:
            show()
        except UserError as error:  # a damaged line must not end the display, less so the job
            print(f"the progress that is shown lacks some: {error}", file=sys.stderr)
        except OSError:
            pass  # of a slow store; it is asked again

    def watch() -> None:
        while not ended.wait(LOOK_SECONDS if storage.is_local(configs[0].run) else LOOK_AFAR_SECONDS):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        look()


def describe_line(line: Mapping[str, Any]) -> str:
    """Return a line of metrics in words: losses, held-out loss, speed, waiting, and skipped steps if any."""
    by_task = ", ".join(f"{task} {loss:.3f}" for task, loss in line["loss_by_task"].items())
    words = [f"loss {line['loss']:.3f}" + (f" ({by_task})" if len(line["loss_by_task"]) > 1 else "")]
    words += [f"held-out {line['valid_loss']:.3f}"] if "valid_loss" in line else []
    words += [f"{line['examples_per_second']:.3g} examples/s", f"{line['audio_hours_per_second']:.3g} h of audio/s"]
    words += [f"{line['data_wait_fraction']:.0%} waiting for data"]
    words += [f"{counted(line['skipped_steps'], 'step')} skipped"] if line["skipped_steps"] else []
    return ", ".join(words)


@contextmanager
def reported(configs: Sequence[TrainConfig]) -> Iterator[None]:
    """Write the reports of runs that have begun when the block ends, also when it ends in an error."""
    try:
        yield
    except BaseException as error:
        _write_reports(configs, ended=str(error) or repr(error))
        raise
    _write_reports(configs, ended="")


def _write_reports(configs: Sequence[TrainConfig], *, ended: str) -> None:
    from pipelines.training.monitoring.report import write_train_report  # draws: not needed before the end

    for config in configs:
        page = storage.join(config.run, REPORT)
        try:
            if lines := read_metrics(config.run):
                write_train_report(config, lines, ended=ended)
                print(f"report: {page}")
        except Exception as error:  # whatever it is, runs end as they did
            print(f"{page} could not be written: {error!r}", file=sys.stderr)
