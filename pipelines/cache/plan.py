"""Which clips go into which shard: decided once from the manifest alone, kept in the cache as `units/*.parquet`.

The plan is kept so that a run after a kill meets the same units, and a manifest that has grown leaves them as they are:
its new clips get new units, numbered onward. Clips of one recording follow each other by time, so that a long file is
opened for one unit or two, and units are of near-equal bytes. Rows are in unit order, so reading the plan streams;
making it holds some numbers per clip, and gathers the clips themselves in parts. Letters: N clips.
"""

import hashlib
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from encoders.audio import CLIP_SECONDS
from encoders.features import SPEECH_FRAMES, STORED_TYPES, Codec, audio_frames
from pipelines import storage
from pipelines.cache.layout import UNITS, unit_name
from pipelines.cache.recipe import Recipe
from pipelines.errors import UserError
from pipelines.manifest.id_set import ID_TYPE, IdSet, to_ids
from pipelines.manifest.tables import (
    CLIP_SCHEMA,
    CLIPS,
    Clip,
    clip_from_row,
    count_clips,
    read_batches,
    row_from_clip,
    take_rows,
)
from pipelines.storage.arrays import Floats, Integers, Keys
from pipelines.storage.tables import ROWS_PER_GROUP, RowTable

PLAN_SCHEMA = pa.schema([("unit", pa.int64()), *CLIP_SCHEMA])
TAR_NBYTES_PER_CLIP = 4_096
ROWS_PER_GATHER = 1 << 17
"""Clips brought into unit order at once, some 500 bytes each; more where the manifest would be read too often."""
MOST_GATHERS = 8
"""Each reads the whole manifest if that is shuffled, otherwise its own part."""
ROWS_PER_READ = 1_024
"""Rows of the plan that are Python objects at a time, about 2 KB each."""


@dataclass(frozen=True)
class ExtractUnit:
    """The clips that become shard `unit`."""

    unit: int
    clips: tuple[Clip, ...]

    @property
    def unit_id(self) -> str:
        """The shard's name without its ending."""
        return unit_name(self.unit)


def clip_seconds(clips: pa.RecordBatch) -> Floats:
    """Return the clips' lengths in seconds; an unknown one counts as the longest."""
    return np.asarray(pc.fill_null(clips["seconds"], float(CLIP_SECONDS)), dtype=np.float64)


def predict_nbytes(seconds_N: Floats, recipe: Recipe, codec: Codec) -> Integers:
    """Predict the clips' bytes in their shards."""
    frames = {"speech": np.full(len(seconds_N), SPEECH_FRAMES), "audio": audio_frames(seconds_N)}
    values_N = sum(
        (frames[name] * stream.width for name, stream in recipe.streams.items()), np.zeros(len(seconds_N), np.int64)
    )
    return values_N * STORED_TYPES[codec].value_nbytes + TAR_NBYTES_PER_CLIP


def cut_units(nbytes_N: Integers, *, shard_nbytes: int) -> Integers:
    """Return each clip's unit, counted from 0 without gaps.

    There are as many units as shards of this size are filled; a clip goes where the middle of its bytes falls, so units
    differ from each other by a clip at most.
    """
    if not len(nbytes_N):
        return nbytes_N
    ends_N = np.cumsum(nbytes_N)
    units = -(-ends_N[-1] // shard_nbytes)
    places_N = ((ends_N - nbytes_N / 2) / ends_N[-1] * units).astype(np.int64)
    return np.cumsum(np.diff(places_N, prepend=places_N[0]) > 0, dtype=np.int64)


@dataclass(frozen=True)
class NewClips:
    """The clips of a manifest that are in no unit yet, in the order in which units take them."""

    rows: Integers
    """[N] Where they stand in the manifest's table."""
    seconds: Floats
    """[N] Their lengths; an unknown one counts as the longest."""


def find_new_clips(cache: str, manifest: str) -> NewClips:
    """Return what is to be planned: clips of a recording follow each other by time, recordings as they are first met.

    Takes some 100 bytes of memory per clip, new or planned. Raises as `read_clips`.
    """
    planned, ids = IdSet(), [to_ids(batch["clip_id"]) for batch in _plan_batches(cache, ["clip_id"])]
    planned.add(np.concatenate([np.zeros(0, ID_TYPE), *ids]))  # at once takes a quarter of the time of one by one
    del ids
    most, found, row = count_clips(manifest), 0, 0
    rows_N, recordings_N = np.empty(most, np.int64), np.empty(most, np.uint64)
    starts_N, seconds_N = np.empty(most), np.empty(most)
    for batch in read_batches(manifest, CLIPS, ["clip_id", "segments", "seconds"]):
        new = np.flatnonzero(~planned.holds(to_ids(batch["clip_id"])))
        clips = batch.take(pa.array(new))
        first = pc.list_element(clips["segments"], 0)
        part = slice(found, found + len(new))
        rows_N[part] = row + new
        seconds_N[part] = clip_seconds(clips)
        recordings_N[part] = _keys(pc.struct_field(first, "recording"))
        starts_N[part] = pc.struct_field(first, "start_seconds")
        row, found = row + batch.num_rows, part.stop
    order_N = recording_order(recordings_N[:found], starts_N[:found])
    return NewClips(rows_N[:found][order_N], seconds_N[:found][order_N])


def _keys(names: pa.Array) -> Keys:
    """Return 64 bits instead of each name; two names that share them would only be planned together."""
    distinct = pc.dictionary_encode(names)
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in distinct.dictionary.to_pylist()]
    keys: Keys = np.frombuffer(b"".join(digests), "<u8")[distinct.indices]
    return keys


def recording_order(recordings_N: Keys, starts_N: Floats) -> Integers:
    """Return the rows such that clips of a recording follow each other by time, recordings as they are first met."""
    _, first_rows, numbers_N = np.unique(recordings_N, return_index=True, return_inverse=True)
    return np.lexsort((starts_N, first_rows[numbers_N]))


def extend_plan(cache: str, clips: str | Iterable[Clip], *, recipe: Recipe, shard_nbytes: int) -> int:
    """Add units for the clips, of a manifest or as they come, that are in none yet; return how many clips those were.

    Raises:
        UserError: If another job has just done the same.
    """
    with ExitStack() as spool:
        manifest = clips if isinstance(clips, str) else spool.enter_context(_spooled(clips))
        new = find_new_clips(cache, manifest)
        if not len(new.rows):
            return 0
        first = count_units(cache)
        units_N = first + cut_units(predict_nbytes(new.seconds, recipe, recipe.codec), shard_nbytes=shard_nbytes)
        uri = storage.join(cache, UNITS, f"{unit_name(first)}.parquet")
        try:
            with storage.staged_file(uri, exclusive=True) as path, pq.ParquetWriter(path, PLAN_SCHEMA) as writer:
                for part in _parts(len(new.rows)):
                    rows = take_rows(manifest, CLIPS, CLIP_SCHEMA.names, new.rows[part])
                    rows = rows.add_column(0, "unit", pa.array(units_N[part]))
                    writer.write_table(rows.cast(PLAN_SCHEMA), row_group_size=ROWS_PER_GROUP)
        except FileExistsError:
            raise UserError(
                f"{uri}: another job has just planned units of this cache; let it end, then try again"
            ) from None
    return len(new.rows)


@contextmanager
def _spooled(clips: Iterable[Clip]) -> Iterator[str]:
    """Yield the folder of a manifest of these clips alone."""
    with tempfile.TemporaryDirectory() as folder:
        with RowTable(storage.join(folder, CLIPS), CLIP_SCHEMA) as table:
            for clip in clips:
                table.add(row_from_clip(clip))
        if not table.num_rows:
            storage.write_table(storage.join(folder, CLIPS), CLIP_SCHEMA.empty_table())
        yield folder


def _parts(rows: int) -> Iterator[slice]:
    """Yield the parts of so many rows that are gathered at once, whole groups each."""
    size = max(ROWS_PER_GATHER, ROWS_PER_GROUP * -(-rows // (MOST_GATHERS * ROWS_PER_GROUP)))
    return (slice(start, start + size) for start in range(0, rows, size))


def _plan_files(cache: str) -> list[str]:
    names = storage.list_names(storage.join(cache, UNITS), ".parquet")
    return [
        storage.join(cache, UNITS, name) for name in sorted(names, key=lambda name: int(name.removesuffix(".parquet")))
    ]


def _plan_batches(cache: str, columns: Sequence[str], rows: int = ROWS_PER_GROUP) -> Iterator[pa.RecordBatch]:
    for uri in _plan_files(cache):
        with storage.open_parquet(uri) as file:
            yield from storage.iter_batches(file, rows, columns)


def count_units(cache: str) -> int:
    """Return how many units are planned; they are numbered from 0 without gaps."""
    files = _plan_files(cache)
    if not files:
        return 0
    with storage.open_parquet(files[-1]) as file:
        last = file.read_row_group(file.num_row_groups - 1, columns=["unit"])
    return 1 + int(last["unit"][-1].as_py())


def count_planned_clips(cache: str) -> int:
    """Return how many clips the plan holds."""
    counts = []
    for uri in _plan_files(cache):
        with storage.open_parquet(uri) as file:
            counts.append(int(file.metadata.num_rows))
    return sum(counts)


def pending_seconds(cache: str, *, done: Collection[int]) -> Floats:
    """Return the lengths of the planned clips whose units are not done."""
    done_units = np.fromiter(done, np.int64, len(done))
    batches = _plan_batches(cache, ["unit", "seconds"])
    kept = [clip_seconds(batch)[~np.isin(batch["unit"], done_units)] for batch in batches]
    return np.concatenate([*kept, np.zeros(0)])


def read_units(
    cache: str, *, skip: Collection[int] = frozenset(), roots: Mapping[str, str] | None = None
) -> Iterator[ExtractUnit]:
    """Yield the planned units in order but for those to skip, one in memory at a time.

    `roots` says where a corpus is today, if its recordings have moved since the plan was made.
    """
    roots = roots or {}
    batches = _plan_batches(cache, PLAN_SCHEMA.names, ROWS_PER_READ)
    rows = (row for batch in batches for row in batch.to_pylist())
    for unit, group in groupby(rows, key=lambda row: int(row["unit"])):
        if unit not in skip:
            clips = (clip_from_row(row) for row in group)
            yield ExtractUnit(unit, tuple(replace(clip, root=roots.get(clip.corpus, clip.root)) for clip in clips))
