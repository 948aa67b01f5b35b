"""The driver's side of answering: what was not answered before is given out to workers on Ray, each unit kept once."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import ray

from cluster.connection import cluster_device, connect
from cluster.room import pool_size
from cluster.unit_queue import ActorStartError, FailedUnit, FatalUnitError, QueueProgress, UnitResult, run_units
from pipelines import metrics, storage
from pipelines.errors import JobIncompleteError
from pipelines.inference.actor import AnswerActor
from pipelines.inference.answers import FOLDER, JOBS, AnswerStore, DecodeSettings, open_answers
from pipelines.inference.config import AnsweringConfig
from pipelines.inference.questions import KEY
from pipelines.inference.units import AnswerConfig, AnswerUnit, UnitAnswers, cut_units
from pipelines.interface.progress import Progress
from pipelines.interface.words import counted
from pipelines.runs.spec import RunSpec


@dataclass(frozen=True)
class Model:
    """A run's checkpoint, its LLM found where it is now, and its encoders if silence is to be heard."""

    spec: RunSpec
    step: int
    whisper: str = ""
    beats: str = ""
    engine_python: str = ""
    """Runs another engine than our own."""


@dataclass
class _Speed:
    answers: int = 0
    tokens: int = 0


class AnswerLog:
    """Lines of a job's units of questions in `<run>/answers/jobs/<time>/`, written while it runs."""

    def __init__(self, run: str) -> None:
        self._job = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self._file = storage.LineFile(storage.join(run, FOLDER, JOBS, self._job, "000000.jsonl"))

    def add(self, result: UnitResult, stores: Sequence[AnswerStore]) -> None:
        """Record a unit whose answers are kept in one of the stores."""
        unit, given = result.unit, result.value
        assert isinstance(unit, AnswerUnit)
        store = stores[unit.setting].uri.partition("?")[0].rpartition("/")[2]
        self._append(unit.unit_id, result.attempt, {"store": store, **asdict(given)})

    def add_failed(self, failed: FailedUnit) -> None:
        """Record a unit that was given up."""
        self._append(failed.unit_id, failed.attempts, {"error": failed.error})

    def _append(self, unit: str, attempt: int, about: dict[str, Any]) -> None:
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        self._file.append({"job": self._job, "ended": ended, "unit": unit, "attempt": attempt, **about})

    def close(self) -> None:
        """Let all lines be where they outlive this machine."""
        self._file.close()


def answer(
    config: AnsweringConfig, model: Model, settings: Sequence[DecodeSettings], wanted: pa.Table, progress: Progress
) -> list[pa.Table]:
    """Return for each of the settings the table of all its answers, `wanted` among them.

    Args:
        config: The verb's.
        model: Whose answers.
        settings: How they are decoded.
        wanted: clip_id, question, and `length`, about how long the answer will be.
        progress: Where it is shown.

    Raises:
        UserError: If another job answers for this run.
        JobIncompleteError: If questions stay without an answer; the answers there are stay.
    """
    with storage.held(storage.join(config.run, FOLDER)):
        stores = [open_answers(config.run, model.step, model.spec, one) for one in settings]
        known = [store.read() for store in stores]
        lacking = sum(_lacking(wanted, table) for table in known)
        if not lacking:
            return known
        _give_out(config, model, settings, stores, known, wanted, lacking, progress)
        return [store.read() for store in stores]


def _lacking(wanted: pa.Table, answered: pa.Table) -> int:
    todo = wanted.select(KEY).join(answered.select(KEY), keys=KEY, join_type="left anti")
    return int(todo.group_by(KEY).aggregate([]).num_rows)


def _worker_config(
    config: AnsweringConfig,
    model: Model,
    settings: Sequence[DecodeSettings],
    stores: Sequence[AnswerStore],
    device: str,
) -> AnswerConfig:
    return AnswerConfig(
        run=config.run,
        step=model.step,
        spec=model.spec,
        cache=config.cache,
        stores=tuple(store.uri for store in stores),
        settings=tuple(settings),
        whisper=model.whisper,
        beats=model.beats,
        device=device,
        threads=config.threads,
        batch_examples=config.batch_examples,
        engine_python=model.engine_python,
    )


def _give_out(
    config: AnsweringConfig,
    model: Model,
    settings: Sequence[DecodeSettings],
    stores: Sequence[AnswerStore],
    known: Sequence[pa.Table],
    wanted: pa.Table,
    lacking: int,
    progress: Progress,
) -> None:
    with progress.opening("evaluate: Ray is starting"):
        own_cluster = connect(config.ray)
    device = cluster_device(config.device)
    gpus = 1 if device == "cuda" else 0
    worker = _worker_config(config, model, settings, stores, device)
    actor_type = ray.remote(AnswerActor).options(
        num_cpus=config.threads, num_gpus=gpus, max_restarts=0, max_task_retries=0, max_concurrency=2
    )
    workers = pool_size(
        config.workers, num_cpus_per_actor=config.threads, num_gpus_per_actor=gpus, own_cluster=own_cluster
    )

    def units() -> Iterator[AnswerUnit]:
        for setting, answered in enumerate(known):
            yield from cut_units(
                wanted,
                answered,
                setting=setting,
                workers=workers,
                batch=config.batch_examples,
                in_whole_batches=settings[setting].in_whole_batches,
            )

    speed, log = _Speed(), AnswerLog(config.run)
    with progress.phase("answer", unit="answers", total=lacking) as phase:

        def on_result(result: UnitResult) -> None:
            given: UnitAnswers = result.value
            speed.answers += given.answers
            speed.tokens += given.tokens
            log.add(result, stores)
            metrics.unit_answered(config.run, node=given.node, answers=given.answers, tokens=given.tokens)
            phase.update(speed.answers, note=counted(speed.tokens, "token"))

        def on_progress(queue: QueueProgress) -> None:
            answers, note = speed.answers + int(queue.begun), phase.note
            if queue.starting_actors and not answers:
                note = f"{counted(queue.starting_actors, 'worker')} starting"
            phase.update(answers, note=note)
            metrics.answering_stands(config.run, pending=lacking - answers, retries=queue.retries)

        try:
            report = run_units(
                units(),
                start_actor=lambda: actor_type.remote(worker),
                num_actors=min(workers, lacking),
                limits=config.limits,
                on_result=on_result,
                on_progress=on_progress,
            )
        except (ActorStartError, FatalUnitError) as error:
            raise JobIncompleteError(f"{config.run}: {error}") from error
        else:
            for failed in report.failed:
                log.add_failed(failed)
        finally:
            log.close()
    if report.failed:
        lines = [
            f"{config.run}: {counted(len(report.failed), 'unit')} of questions failed; the same command tries again"
        ]
        lines += [f"  {failed.unit_id}: {failed.error}" for failed in report.failed[:20]]
        raise JobIncompleteError("\n".join(lines))
