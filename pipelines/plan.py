"""Which clips go into which shard: decided once from the manifest alone, kept in the cache as `units/*.parquet`.

The plan is kept so that a run after a kill meets the same units, and a manifest that has grown leaves them as they are:
its new clips get new units, numbered onward. Rows lie in unit order, so reading it streams; planning ten million clips
takes about 1 GB for the ids planned before (49 bytes and a set's slot each).
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

import pyarrow as pa
import pyarrow.parquet as pq

from encoders.audio import CLIP_SECONDS, SAMPLE_RATE_HZ
from encoders.codecs import Codec
from encoders.whisper import SPEECH_FRAMES
from pipelines import storage
from pipelines.manifest import CLIP_SCHEMA, ROWS_PER_GROUP, Clip, clip_from_row
from pipelines.recipe import Recipe

UNITS = "units"
PLAN_SCHEMA = pa.schema([("unit", pa.int64()), *CLIP_SCHEMA])
VALUE_NBYTES: dict[Codec, int] = {"float16": 2, "int8": 1}
TAR_NBYTES_PER_CLIP = 4_096


@dataclass(frozen=True)
class ExtractUnit:
    """The clips that become shard `unit`."""

    unit: int
    clips: tuple[Clip, ...]

    @property
    def unit_id(self) -> str:
        """The shard's name without its ending."""
        return unit_name(self.unit)


def unit_name(unit: int) -> str:
    return f"{unit:06d}"


def audio_frames(seconds: float) -> int:
    """Return BEATs' frames of a clip: 8 per 16 filter-bank frames of 25 ms every 10 ms."""
    samples = int(seconds * SAMPLE_RATE_HZ)
    return 8 * ((1 + (samples - 400) // 160) // 16)


def clip_nbytes(clip: Clip, recipe: Recipe) -> int:
    """Predict a clip's bytes in its shard; a clip of unknown length counts as the longest."""
    frames = {"speech": SPEECH_FRAMES, "audio": audio_frames(clip.seconds or CLIP_SECONDS)}
    values = sum(frames[name] * stream.width for name, stream in recipe.streams.items())
    return values * VALUE_NBYTES[recipe.codec] + TAR_NBYTES_PER_CLIP


def assign_units(
    clips: Iterable[Clip], *, nbytes: Callable[[Clip], int], shard_nbytes: int, first: int
) -> Iterator[tuple[int, Clip]]:
    """Yield (unit, clip) in manifest order; a unit is closed by the clip that would make it larger than a shard."""
    unit, filled = first, 0
    for clip in clips:
        size = nbytes(clip)
        if filled and filled + size > shard_nbytes:
            unit, filled = unit + 1, 0
        filled += size
        yield unit, clip


def extend_plan(cache: str, clips: Iterable[Clip], *, recipe: Recipe, shard_nbytes: int) -> int:
    """Add units for the clips that are in none yet; return how many clips those were.

    Raises:
        ValueError: If another job has just done the same.
    """
    planned = {bytes.fromhex(str(clip)) for file in _plan_files(cache) for clip in _column(file, "clip_id")}
    first = count_units(cache)
    new = (clip for clip in clips if bytes.fromhex(clip.clip_id) not in planned)
    assigned = assign_units(new, nbytes=lambda clip: clip_nbytes(clip, recipe), shard_nbytes=shard_nbytes, first=first)
    head = next(assigned, None)
    return _write_plan(storage.join(cache, UNITS, f"{unit_name(first)}.parquet"), head, assigned) if head else 0


def _write_plan(uri: str, head: tuple[int, Clip], assigned: Iterator[tuple[int, Clip]]) -> int:
    rows = [_plan_row(*head)]
    count = 0
    try:
        with storage.staged_file(uri, exclusive=True) as path, pq.ParquetWriter(path, PLAN_SCHEMA) as writer:
            for unit, clip in assigned:
                if len(rows) == ROWS_PER_GROUP:
                    writer.write_table(pa.Table.from_pylist(rows, schema=PLAN_SCHEMA))
                    count += len(rows)
                    rows.clear()
                rows.append(_plan_row(unit, clip))
            writer.write_table(pa.Table.from_pylist(rows, schema=PLAN_SCHEMA))
    except FileExistsError:
        raise ValueError(
            f"{uri}: another job has just planned units of this cache; let it end, then try again"
        ) from None
    return count + len(rows)


def _plan_row(unit: int, clip: Clip) -> dict[str, object]:
    return {**vars(clip), "unit": unit, "segments": [vars(segment) for segment in clip.segments]}


def _plan_files(cache: str) -> list[str]:
    names = storage.list_names(storage.join(cache, UNITS), ".parquet")
    return [
        storage.join(cache, UNITS, name) for name in sorted(names, key=lambda name: int(name.removesuffix(".parquet")))
    ]


def _column(uri: str, name: str) -> Iterator[object]:
    with storage.open_parquet(uri) as file:
        for batch in file.iter_batches(ROWS_PER_GROUP, columns=[name]):
            yield from batch.column(0).to_pylist()


def count_units(cache: str) -> int:
    """Return how many units are planned; they are numbered from 0 without gaps."""
    files = _plan_files(cache)
    return 1 + max((int(str(unit)) for unit in _column(files[-1], "unit")), default=-1) if files else 0


def count_planned_clips(cache: str) -> int:
    """Return how many clips the plan holds."""
    counts = []
    for uri in _plan_files(cache):
        with storage.open_parquet(uri) as file:
            counts.append(int(file.metadata.num_rows))
    return sum(counts)


def read_units(
    cache: str, *, skip: Collection[int] = frozenset(), roots: Mapping[str, str] | None = None
) -> Iterator[ExtractUnit]:
    """Yield the planned units in order but for those to skip, one in memory at a time.

    `roots` says where a corpus lies today, if its recordings have moved since the plan was made.
    """
    roots = roots or {}
    rows = (row for uri in _plan_files(cache) for row in _plan_rows(uri))
    for unit, group in groupby(rows, key=lambda row: int(row["unit"])):
        if unit not in skip:
            clips = (clip_from_row(row) for row in group)
            yield ExtractUnit(unit, tuple(replace(clip, root=roots.get(clip.corpus, clip.root)) for clip in clips))


def _plan_rows(uri: str) -> Iterator[dict[str, int]]:
    with storage.open_parquet(uri) as file:
        for batch in file.iter_batches(ROWS_PER_GROUP):
            yield from batch.to_pylist()
