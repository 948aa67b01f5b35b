"""`salmonn extract`: every clip of a manifest through the frozen encoders, once, into a feature cache."""

import json
import shlex
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

import numpy as np
import ray

from cluster.apart import call_in_subprocess
from cluster.connection import cluster_device, connect
from cluster.room import pool_size
from cluster.unit_queue import ActorStartError, FatalUnitError, QueueProgress, QueueReport, UnitResult, run_units
from pipelines import metrics, storage
from pipelines.cache.cost import ALL_PARTS
from pipelines.cache.index import committed_units, read_rejects
from pipelines.cache.layout import unit_files, unit_name
from pipelines.cache.plan import (
    count_planned_clips,
    count_units,
    extend_plan,
    pending_seconds,
    predict_nbytes,
    read_units,
)
from pipelines.cache.recipe import RECIPE, Recipe, environment, require_recipe, write_recipe
from pipelines.errors import JobIncompleteError
from pipelines.extraction.actor import ExtractActor
from pipelines.extraction.config import MEGABYTE, ExtractConfig, encoder_keys, with_full_paths
from pipelines.extraction.messages import Forecast, UnitStats, WorkerConfig
from pipelines.extraction.rejects import RejectLimit
from pipelines.extraction.unit_log import UnitLog, read_unit_log
from pipelines.interface.config import save_config, to_yaml
from pipelines.interface.progress import Progress
from pipelines.interface.words import command, counted
from pipelines.manifest.sources import require_unchanged
from pipelines.manifest.tables import corpus_roots, examples_per_clip, require_clips


@dataclass
class ExtractReport:
    """What a run did; `units` and the rest count this run's work only."""

    planned_units: int = 0
    units: int = 0
    clips: int = 0
    rejects: int = 0
    hours: float = 0.0
    nbytes: int = 0
    seconds: float = 0.0
    retries: int = 0
    actor_deaths: int = 0
    workers: int = 0
    lowest_snr_db: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    refusals: dict[str, int] = field(default_factory=dict)

    def add(self, stats: UnitStats) -> None:
        """Count a committed shard."""
        self.units += 1
        self.clips += stats.shard.clips
        self.rejects += stats.shard.rejects
        self.hours += stats.shard.seconds / 3600
        self.nbytes += stats.shard.nbytes
        snrs = [snr for snr in (self.lowest_snr_db, stats.shard.lowest_snr_db) if snr is not None]
        self.lowest_snr_db = min(snrs, default=None)
        self.devices = sorted({*self.devices, stats.device})
        self.nodes = sorted({*self.nodes, stats.node})
        for part, seconds in stats.parts.items():
            self.parts[part] = self.parts.get(part, 0.0) + seconds

    def note(self, seconds: float) -> str:
        """Say in a few words how it goes."""
        speed = self.hours * 3600 / max(seconds, 1e-9)
        return (
            f"{self.hours:.2f} h, {speed:.0f}× real time, {self.nbytes / 1e6:.0f} MB, {counted(self.rejects, 'reject')}"
        )


def extract(config: ExtractConfig, progress: Progress | None = None) -> ExtractReport:
    """Encode what the cache lacks.

    Raises:
        UserError: If the manifest is empty, an encoder cannot be loaded, the cache has another recipe, or another job
            writes to it.
        JobIncompleteError: If units failed or too many clips were rejected; what was committed stays.
    """
    config = with_full_paths(config)  # actors run in folders of their own
    require_clips(config.manifest)
    with storage.held(config.cache):
        return _extract(config, progress or Progress())


def _extract(config: ExtractConfig, progress: Progress) -> ExtractReport:
    with progress.opening("extract: loading the encoders once, for the recipe of their features"):
        recipe = _open_cache(config)
    with progress.opening("extract: planning shards"):
        require_unchanged(config.manifest)
        extend_plan(
            config.cache,
            config.manifest,
            recipe=recipe,
            shard_nbytes=config.shard_megabytes * MEGABYTE,
            replace_changed=config.replace_changed,
        )
    done = committed_units(config.cache)
    if config.retry_rejects:
        done = _uncommit_rejects(config.cache, done)
    report = ExtractReport(planned_units=count_units(config.cache))
    limit = RejectLimit(
        config.max_reject_fraction, count_planned_clips(config.cache), read_rejects(config.cache, done).num_rows
    )
    _check_rejects(config, limit, report)
    if len(done) == report.planned_units:
        print(f"{config.cache}: complete, nothing to do ({counted(report.planned_units, 'shard')})")
        return report
    save_config(config, storage.join(config.cache, "extract.yaml"))
    for folder in ("shards", "index", "rejects"):
        storage.remove_stale(storage.join(config.cache, folder), older_than_seconds=config.limits.unit_seconds)
    started = datetime.now(UTC)
    jobs = storage.join(config.cache, "jobs")
    name = started.strftime("%Y%m%dT%H%M%S.%fZ")
    seconds_N = np.minimum(pending_seconds(config.cache, done=done), recipe.max_clip_seconds)
    nbytes = int(predict_nbytes(seconds_N, recipe, recipe.codec).sum())
    forecast = Forecast(len(seconds_N), float(seconds_N.sum()) / 3600, nbytes, config.clips_per_second)
    log = UnitLog(storage.join(jobs, name))
    try:
        _run(config, recipe, done, limit, forecast, report, log, progress)
    finally:
        log.close()
        report.seconds = (datetime.now(UTC) - started).total_seconds()
        _record_job(config, jobs, name, forecast, report)
    missing = sorted(set(range(report.planned_units)) - committed_units(config.cache))
    if missing:
        raise JobIncompleteError(f"{config.cache}: {counted(len(missing), 'shard')} missing: {_listing(missing)}")
    print(
        f"{config.cache}: {counted(report.units, 'shard')} written; "
        f"{report.note(report.seconds)}, {report.seconds:.1f} s"
    )
    if report.rejects:
        print(f"rejects and why: {command('cache', 'info', cache=config.cache)}", file=sys.stderr)
    return report


def _uncommit_rejects(cache: str, units: frozenset[int]) -> frozenset[int]:
    """Take back the units that hold rejected clips, by their index; return the units that stay."""
    again = units & unit_files(cache, "rejects").keys()
    for unit in again:
        storage.delete_file(storage.join(cache, "index", f"{unit_name(unit)}.parquet"))
    return units - again


def _open_cache(config: ExtractConfig) -> Recipe:
    recipe: Recipe = call_in_subprocess(
        "pipelines.cache.encoder_recipe", "load_recipe", heavy="torch", **encoder_keys(config)
    )
    require_recipe(config.cache, recipe)
    if not storage.file_exists(storage.join(config.cache, RECIPE)):
        encoders = {"speech": config.whisper, "audio": config.beats}
        recorded = {**environment(config.threads), "batch_clips": config.batch_clips}
        write_recipe(config.cache, recipe, encoders=encoders, recorded=recorded)
    return recipe


def _run(
    config: ExtractConfig,
    recipe: Recipe,
    done: frozenset[int],
    limit: "RejectLimit",
    forecast: Forecast,
    report: ExtractReport,
    log: UnitLog,
    progress: Progress,
) -> None:
    with progress.opening("extract: Ray is starting"):
        own_cluster = connect(config.ray)
    device = cluster_device(config.device)
    gpus = 1 if device == "cuda" else 0
    worker = WorkerConfig(
        cache=config.cache,
        whisper=config.whisper,
        beats=config.beats,
        recipe=recipe,
        device=device,
        threads=config.threads,
        batch_clips=config.batch_clips,
        min_fidelity_db=config.min_fidelity_db,
        reject_doubtful=config.reject_doubtful,
        reject_absent=config.reject_absent,
    )
    actor_type = ray.remote(ExtractActor).options(
        num_cpus=config.threads, num_gpus=gpus, max_restarts=0, max_task_retries=0, max_concurrency=2
    )
    actors = pool_size(
        config.workers, num_cpus_per_actor=config.threads, num_gpus_per_actor=gpus, own_cluster=own_cluster
    )
    todo = report.planned_units - len(done)
    report.workers = min(actors, todo)
    with progress.phase("extract", unit="clips", total=forecast.clips) as phase:

        def on_result(result: UnitResult) -> None:
            report.add(result.value)
            log.add(result)
            _publish_unit(config.cache, result.value)
            if result.value.shard.rejects:
                _check_rejects(config, limit, report)

        def on_progress(queue: QueueProgress) -> None:
            clips, note = report.clips + report.rejects + int(queue.begun), report.note(time.monotonic() - phase.start)
            if queue.starting_actors and not clips:
                note = f"{counted(queue.starting_actors, 'worker')} starting"
            phase.update(clips, note=note)
            _publish_queue(config.cache, queue, todo=todo, before=len(done))

        try:
            queue = run_units(
                read_units(config.cache, skip=done, roots=corpus_roots(config.manifest)),
                start_actor=lambda: actor_type.remote(worker),
                num_actors=report.workers,
                limits=config.limits,
                on_result=on_result,
                on_progress=on_progress,
            )
        except (ActorStartError, FatalUnitError) as error:
            raise JobIncompleteError(f"{config.cache}: {error}") from error
    for failed in queue.failed:
        log.add_failed(failed)
    report.retries, report.actor_deaths, report.refusals = queue.retries, queue.actor_deaths, dict(queue.refusals)
    for node, units in sorted(queue.refusals.items()):
        print(
            f"{config.cache}: node {node} did not find or could not read recordings of {counted(units, 'shard')}",
            file=sys.stderr,
        )
    if queue.failed:
        raise JobIncompleteError(_failures(config.cache, queue))


def _publish_unit(cache: str, stats: UnitStats) -> None:
    metrics.unit_extracted(
        cache,
        node=stats.node,
        clips=stats.shard.clips,
        audio_seconds=stats.shard.seconds,
        nbytes=stats.shard.nbytes,
        parts={part: stats.parts.get(part, 0.0) for part in ALL_PARTS},
        rejects=stats.rejects_by_stage,
    )


def _publish_queue(cache: str, queue: QueueProgress, *, todo: int, before: int) -> None:
    queued = todo - queue.done - queue.failed - queue.running
    units = {"queued": queued, "running": queue.running, "done": before + queue.done, "failed": queue.failed}
    metrics.extraction_stands(cache, units, retries=queue.retries, worker_deaths=queue.actor_deaths)


def _check_rejects(config: ExtractConfig, limit: RejectLimit, report: ExtractReport) -> None:
    excess = limit.exceeded(clips=report.clips + report.rejects, rejects=report.rejects)
    if excess:
        raise JobIncompleteError(
            f"{config.cache}: {excess}, more than max_reject_fraction={config.max_reject_fraction} allows; "
            "salmonn cache info says why, retry_rejects=true tries them again"
        )


def _failures(cache: str, queue: QueueReport) -> str:
    lines = [f"{cache}: {counted(len(queue.failed), 'shard')} failed; run the same command again to retry them"]
    lines += [f"  {failed.unit_id}: {failed.error}" for failed in queue.failed[:20]]
    if queue.refusals:
        lines.append("what is absent on every node: bring it back, or reject_absent=true rejects the clips")
    return "\n".join(lines)


def _listing(units: list[int]) -> str:
    return ", ".join(unit_name(unit) for unit in units[:20]) + (", …" if len(units) > 20 else "")


def _record_job(config: ExtractConfig, jobs: str, name: str, forecast: Forecast, report: ExtractReport) -> None:
    command = shlex.join(sys.argv)
    record = {
        "started": name,
        "command": command,
        "config": to_yaml(config),
        "environment": environment(config.threads),
        "forecast": asdict(forecast),
        "report": asdict(report),
    }
    storage.write_bytes(storage.join(jobs, f"{name}.json"), json.dumps(record, indent=2).encode())
    if report.units:
        from pipelines.extraction.closing_report import write_closing_report  # draws: not needed before the end

        page = storage.join(jobs, f"{name}.html")
        write_closing_report(
            page,
            read_unit_log(storage.join(jobs, name)),
            forecast=forecast,
            workers=report.workers,
            seconds=report.seconds,
            parts=report.parts,
            devices=report.devices,
            cache=config.cache,
            encoders={"speech": config.whisper, "audio": config.beats, "codec": config.codec},
            command=command,
            examples_per_clip=examples_per_clip(config.manifest),
            price_per_hour=config.price_per_hour,
        )
        print(f"report: {page}")
