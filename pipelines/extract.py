"""`salmonn extract`: every clip of a manifest through the frozen encoders, once, into a feature cache."""

import json
import math
import shlex
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

import ray
from omegaconf import MISSING

from cluster.connection import RayConfig, connect, pick_device
from cluster.room import pool_size
from cluster.unit_queue import (
    ActorStartError,
    FatalUnitError,
    QueueLimits,
    QueueProgress,
    QueueReport,
    UnitResult,
    run_units,
)
from encoders.features import Codec, Kernel
from pipelines import storage
from pipelines.apart import call_apart
from pipelines.cache_index import committed_units, read_rejects
from pipelines.extract_actor import MIN_FIDELITY_DB, ExtractActor, UnitStats, WorkerConfig
from pipelines.extract_record import Forecast, UnitLog, read_unit_log, write_closing_report
from pipelines.interface.config import require_range, save_config, to_yaml
from pipelines.interface.errors import JobIncompleteError
from pipelines.interface.progress import Progress
from pipelines.manifest.tables import corpus_roots, require_clips
from pipelines.plan import (
    count_planned_clips,
    count_units,
    extend_plan,
    pending_seconds,
    predict_nbytes,
    read_units,
    unit_name,
)
from pipelines.recipe import RECIPE, Recipe, environment, read_recipe, write_recipe

MEGABYTE = 1_000_000
EARLY_CLIPS = 2_000
"""Clips of a run from which on their rejects say something about the rest: a damaged recording is often 100 clips."""
EARLY_DEVIATIONS = 5.0
"""Standard deviations by which they must exceed `max_reject_fraction`: the test is repeated with each shard."""


ConfigT = TypeVar("ConfigT", bound="ExtractConfig")


@dataclass(frozen=True)
class ExtractConfig:
    manifest: str = MISSING
    """[URI] Folder of the manifest whose clips are encoded."""
    cache: str = MISSING
    """[URI] Folder of the feature cache; it is made, or continued where an earlier run stopped."""
    whisper: str = MISSING
    """[path|tiny] Hugging Face folder of a Whisper model; tiny: a small seeded random one."""
    beats: str = MISSING
    """[path|tiny|none] BEATs checkpoint (.pt); tiny: a small seeded random one; none: no audio stream."""
    codec: Codec = "float16"
    """[name] How features are stored: float16, or int8 with a scale per channel and clip."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """[dtype] What the encoders compute in."""
    attention: Kernel = "sdpa"
    """[name] Attention of BEATs: sdpa anywhere; flex: one fused kernel, compiled at the start, meant for GPUs."""
    shard_megabytes: int = 512
    """[MB] Predicted size at which a shard is full."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """[name] Where the encoders run; auto: a GPU each if the cluster has any."""
    workers: int = 0
    """[count] Encoding actors; 0: as many as the cluster has room for."""
    threads: int = 1
    """[count] CPU threads (and Ray CPUs) of each actor."""
    batch_clips: int = 8
    """[clips] Clips per encoder batch."""
    min_fidelity_db: float = MIN_FIDELITY_DB
    """[dB] Lowest signal-to-noise ratio at which the codec may give a stream back: it is measured on up to 4 clips of a
    shard, and one below ends the job. 30 dB are an error of 3 %; Whisper's frames have about 43 in int8, 73 in
    float16."""
    max_reject_fraction: float = 0.05
    """[fraction] Share of all planned clips that may be rejected, rounded up to clips; the job stops once there are
    more, or once a run's first clips, 2,000 or more, show beyond doubt (Wilson's bound) that there will be."""
    retry_rejects: bool = False
    """[true/false] Encode the shards again that hold rejected clips, once what was wrong with those is mended."""
    clips_per_second: float = 0.0
    """[clips/s] One worker's speed as `salmonn plan extract` forecasts it; the closing report compares; 0: unknown."""
    limits: QueueLimits = field(default_factory=QueueLimits)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("shard_megabytes", "threads", "batch_clips"), low=1)
        require_range(self, ("workers", "clips_per_second"), low=0)
        require_range(self, ("max_reject_fraction",), low=0, high=1)


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
        for part, seconds in stats.parts.items():
            self.parts[part] = self.parts.get(part, 0.0) + seconds

    def note(self, seconds: float) -> str:
        """Say in a few words how it goes."""
        speed = self.hours * 3600 / max(seconds, 1e-9)
        return f"{self.hours:.2f} h, {speed:.0f}× real time, {self.nbytes / 1e6:.0f} MB, {self.rejects} rejects"


def extract(config: ExtractConfig, progress: Progress | None = None) -> ExtractReport:
    """Encode what the cache lacks.

    Raises:
        ValueError: If the manifest is empty, an encoder cannot be loaded or the cache has another recipe.
        JobIncompleteError: If units failed or too many clips were rejected; what was committed stays.
    """
    config = with_full_paths(config)  # actors run in folders of their own
    require_clips(config.manifest)
    recipe = _open_cache(config)
    extend_plan(config.cache, config.manifest, recipe=recipe, shard_nbytes=config.shard_megabytes * MEGABYTE)
    done = committed_units(config.cache)
    if config.retry_rejects:
        done = _uncommit_rejects(config.cache, done)
    report = ExtractReport(planned_units=count_units(config.cache))
    limit = RejectLimit(
        config.max_reject_fraction, count_planned_clips(config.cache), read_rejects(config.cache, done).num_rows
    )
    _check_rejects(config, limit, report)
    if len(done) == report.planned_units:
        print(f"{config.cache}: complete, nothing to do ({report.planned_units} shards)")
        return report
    save_config(config, storage.join(config.cache, "extract.yaml"))
    for folder in ("shards", "index", "rejects"):
        storage.remove_stale(storage.join(config.cache, folder), older_than_seconds=config.limits.unit_seconds)
    started = datetime.now(UTC)
    jobs = storage.join(config.cache, "jobs")
    name = started.strftime("%Y%m%dT%H%M%S.%fZ")
    seconds_N = pending_seconds(config.cache, done=done)
    nbytes = int(predict_nbytes(seconds_N, recipe, recipe.codec).sum())
    forecast = Forecast(len(seconds_N), float(seconds_N.sum()) / 3600, nbytes, config.clips_per_second)
    log = UnitLog(storage.join(jobs, name))
    try:
        _run(config, recipe, done, limit, forecast, report, log, progress or Progress())
    finally:
        log.flush()
        report.seconds = (datetime.now(UTC) - started).total_seconds()
        _record_job(config, jobs, name, forecast, report)
    missing = sorted(set(range(report.planned_units)) - committed_units(config.cache))
    if missing:
        raise JobIncompleteError(f"{config.cache}: {len(missing)} shards are missing: {_listing(missing)}")
    print(f"{config.cache}: {report.units} shards written; {report.note(report.seconds)}, {report.seconds:.1f} s")
    return report


def with_full_paths(config: ConfigT) -> ConfigT:
    """Return the config with paths that mean the same in every folder."""
    return replace(
        config,
        manifest=storage.full_path(config.manifest),
        cache=storage.full_path(config.cache),
        whisper=_full_path(config.whisper),
        beats=_full_path(config.beats),
    )


def _uncommit_rejects(cache: str, units: frozenset[int]) -> frozenset[int]:
    """Take back the units that hold rejected clips, by their index; return those that stay."""
    names = storage.list_names(storage.join(cache, "rejects"), ".parquet")
    again = units & {int(name.removesuffix(".parquet")) for name in names}
    for unit in again:
        storage.delete_file(storage.join(cache, "index", f"{unit_name(unit)}.parquet"))
    return units - again


def encoder_keys(config: ExtractConfig) -> dict[str, Any]:
    """Return what `load_encoder_and_recipe` wants to know."""
    return {key: getattr(config, key) for key in ("whisper", "beats", "codec", "precision", "attention")}


def require_recipe(cache: str, recipe: Recipe) -> None:
    """Refuse a cache that is there with another recipe.

    Raises:
        ValueError: Naming the first field that differs.
    """
    if storage.file_exists(storage.join(cache, RECIPE)):
        recipe.require_same(read_recipe(cache)[0], here="this command", there=cache)


def _open_cache(config: ExtractConfig) -> Recipe:
    recipe: Recipe = call_apart("pipelines.encoder_recipe", "load_recipe", spared="torch", **encoder_keys(config))
    require_recipe(config.cache, recipe)
    if not storage.file_exists(storage.join(config.cache, RECIPE)):
        encoders = {"speech": config.whisper, "audio": config.beats}
        recorded = {**environment(config.threads), "batch_clips": config.batch_clips}
        write_recipe(config.cache, recipe, encoders=encoders, recorded=recorded)
    return recipe


def _full_path(encoder: str) -> str:
    return encoder if encoder in ("tiny", "none") else storage.full_path(encoder)


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
    own_cluster = connect(config.ray)
    device = pick_device(config.device)
    gpus = 1 if device == "cuda" else 0
    worker = WorkerConfig(
        config.cache,
        config.whisper,
        config.beats,
        recipe,
        device,
        config.threads,
        config.batch_clips,
        config.min_fidelity_db,
    )
    actor_type = ray.remote(ExtractActor).options(
        num_cpus=config.threads, num_gpus=gpus, max_restarts=0, max_task_retries=0
    )
    room = pool_size(0 if own_cluster else config.workers, num_cpus_per_actor=config.threads, num_gpus_per_actor=gpus)
    actors = min(config.workers or room, room) if own_cluster else room
    todo = report.planned_units - len(done)
    report.workers = min(actors, todo)
    with progress.phase("extract", unit="clips", total=forecast.clips) as phase:

        def on_result(result: UnitResult) -> None:
            report.add(result.value)
            log.add(result)
            phase.update(report.clips + report.rejects, note=report.note(time.monotonic() - phase.start))
            if result.value.shard.rejects:
                _check_rejects(config, limit, report)

        def on_progress(queue: QueueProgress) -> None:
            if queue.starting_actors and not report.units:
                phase.update(0, note=f"{queue.starting_actors} workers starting")

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
    report.retries, report.actor_deaths = queue.retries, queue.actor_deaths
    if queue.failed:
        raise JobIncompleteError(_failures(config.cache, queue))


@dataclass(frozen=True)
class RejectLimit:
    """When a job has too many rejects: `fraction` of the planned clips, of which `known` were rejected before."""

    fraction: float
    planned: int
    known: int

    def exceeded(self, *, clips: int, rejects: int) -> str | None:
        """Say how a run that has seen so many clips exceeds the limit, or return None.

        The lower bound is Wilson's for a proportion: (p + z²/2n - z √(p(1-p)/n + z²/4n²)) / (1 + z²/n).
        """
        if self.known + rejects > math.ceil(self.fraction * self.planned):
            return f"{self.known + rejects} of {self.planned} clips were rejected"
        if clips < EARLY_CLIPS:
            return None
        share, spread = rejects / clips, EARLY_DEVIATIONS**2 / clips
        root = math.sqrt(share * (1 - share) * spread + spread**2 / 4)
        if (share + spread / 2 - root) / (1 + spread) > self.fraction:
            return f"{rejects} of the first {clips} clips of this run were rejected"
        return None


def _check_rejects(config: ExtractConfig, limit: RejectLimit, report: ExtractReport) -> None:
    excess = limit.exceeded(clips=report.clips + report.rejects, rejects=report.rejects)
    if excess:
        raise JobIncompleteError(
            f"{config.cache}: {excess}, more than max_reject_fraction={config.max_reject_fraction} allows; "
            "salmonn cache info says why, retry_rejects=true tries them again"
        )


def _failures(cache: str, queue: QueueReport) -> str:
    lines = [f"{cache}: {len(queue.failed)} shards failed; run the same command again to retry them"]
    lines += [f"  {failed.unit_id}: {failed.error}" for failed in queue.failed[:20]]
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
        write_closing_report(
            storage.join(jobs, f"{name}.html"),
            read_unit_log(storage.join(jobs, name)),
            forecast=forecast,
            workers=report.workers,
            seconds=report.seconds,
            parts=report.parts,
            devices=report.devices,
            command=command,
        )
