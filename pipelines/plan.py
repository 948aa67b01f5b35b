"""Which clips go into which shard: decided once from the manifest alone, kept in the cache as `units/*.parquet`.

The plan is kept so that a run after a kill meets the same units, and a manifest that has grown leaves them as they are:
its new clips get new units, numbered onward. Clips of one recording follow each other by time, so that a long file is
opened for one unit or two, and units are of near-equal bytes. Rows lie in unit order, so reading the plan streams;
making it holds the clips as Arrow columns. Letters: N clips.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from encoders.audio import CLIP_SECONDS, SAMPLE_RATE_HZ
from encoders.features import SPEECH_FRAMES, Codec
from pipelines import storage
from pipelines.manifest import CLIP_SCHEMA, CLIPS, ROWS_PER_GROUP, Clip, clip_from_row, read_batches
from pipelines.recipe import Recipe

UNITS = "units"
PLAN_SCHEMA = pa.schema([("unit", pa.int64()), *CLIP_SCHEMA])
VALUE_NBYTES: dict[Codec, int] = {"float16": 2, "int8": 1}
TAR_NBYTES_PER_CLIP = 4_096
ROWS_PER_GATHER = 1 << 20
"""Rows brought into unit order at once; each time Arrow joins the chunks of a column."""

Integers = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


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


def clip_seconds(clips: pa.Table) -> Floats:
    """Return the clips' lengths in seconds; an unknown one counts as the longest."""
    return np.asarray(pc.fill_null(clips["seconds"], float(CLIP_SECONDS)).to_numpy(), dtype=np.float64)


def audio_frames(seconds_N: Floats) -> Integers:
    """Return BEATs' frames of clips: 8 per 16 filter-bank frames of 25 ms every 10 ms."""
    samples_N = (np.clip(seconds_N, 1, CLIP_SECONDS) * SAMPLE_RATE_HZ).astype(np.int64)
    return 8 * ((1 + (samples_N - 400) // 160) // 16)


def predict_nbytes(seconds_N: Floats, recipe: Recipe, codec: Codec) -> Integers:
    """Predict the clips' bytes in their shards."""
    frames = {"speech": np.full(len(seconds_N), SPEECH_FRAMES), "audio": audio_frames(seconds_N)}
    values_N = sum(
        (frames[name] * stream.width for name, stream in recipe.streams.items()), np.zeros(len(seconds_N), np.int64)
    )
    return values_N * VALUE_NBYTES[codec] + TAR_NBYTES_PER_CLIP


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


def recording_order(clips: pa.Table) -> Integers:
    """Return the rows such that clips of a recording follow each other by time, recordings as they are first met."""
    keys, starts = [np.zeros(0, np.uint64)], [np.zeros(0)]
    for chunk in clips["segments"].chunks:
        first = pc.list_element(chunk, 0)
        names = pc.dictionary_encode(pc.struct_field(first, "recording"))
        keys.append(np.array([_key(name) for name in names.dictionary.to_pylist()], np.uint64)[names.indices])
        starts.append(pc.struct_field(first, "start_seconds").to_numpy())
    _, first_rows, recordings_N = np.unique(np.concatenate(keys), return_index=True, return_inverse=True)
    return np.lexsort((np.concatenate(starts), first_rows[recordings_N]))


def _key(name: str) -> int:
    """Return 64 bits instead of a name; two that share them would only be planned together."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def clip_table(clips: Iterable[Clip]) -> pa.Table:
    """Return clips as a table of `CLIP_SCHEMA`."""
    rows = ({**vars(clip), "segments": [vars(segment) for segment in clip.segments]} for clip in clips)
    tables = [CLIP_SCHEMA.empty_table()]
    while part := list(islice(rows, ROWS_PER_GROUP)):
        tables.append(pa.Table.from_pylist(part, schema=CLIP_SCHEMA))
    return pa.concat_tables(tables)


def read_clip_table(manifest: str) -> pa.Table:
    """Return a manifest's clips as one table, about 150 bytes each: names that repeat are held once.

    Raises:
        FileNotFoundError: If the folder holds no manifest.
        ValueError: If the table lacks a column or holds no clips.
    """
    parts = []
    for batch in read_batches(manifest, CLIPS, CLIP_SCHEMA.names):
        part = pa.Table.from_batches([batch])
        for column in ("corpus", "split", "root"):
            place = part.schema.get_field_index(column)
            part = part.set_column(place, column, pc.dictionary_encode(part[column]))
        parts.append(part)
    if not parts:
        raise ValueError(f"{manifest}: the manifest holds no clips")
    return pa.concat_tables(parts)


def new_rows(cache: str, clips: pa.Table) -> Integers:
    """Return the rows of the clips that are in no unit yet, in the order in which units take them."""
    files = _plan_files(cache)
    if not files:
        return recording_order(clips)
    planned = pa.chunked_array([chunk for uri in files for chunk in _read(uri, "clip_id")["clip_id"].chunks])
    is_new_N = ~np.asarray(pc.is_in(clips["clip_id"], value_set=planned).to_numpy(), dtype=np.bool_)
    if not is_new_N.any():
        return np.zeros(0, np.int64)
    rows_N = recording_order(clips)
    return rows_N[is_new_N[rows_N]]


def extend_plan(cache: str, clips: pa.Table | Iterable[Clip], *, recipe: Recipe, shard_nbytes: int) -> int:
    """Add units for the clips that are in none yet; return how many clips those were.

    Raises:
        ValueError: If another job has just done the same.
    """
    table = clips if isinstance(clips, pa.Table) else clip_table(clips)
    rows_N = new_rows(cache, table)
    if not len(rows_N):
        return 0
    first = count_units(cache)
    nbytes_N = predict_nbytes(clip_seconds(table)[rows_N], recipe, recipe.codec)
    units_N = first + cut_units(nbytes_N, shard_nbytes=shard_nbytes)
    uri = storage.join(cache, UNITS, f"{unit_name(first)}.parquet")
    try:
        with storage.staged_file(uri, exclusive=True) as path, pq.ParquetWriter(path, PLAN_SCHEMA) as writer:
            for start in range(0, len(rows_N), ROWS_PER_GATHER):
                part = slice(start, start + ROWS_PER_GATHER)
                rows = _gather(table, rows_N[part]).add_column(0, "unit", pa.array(units_N[part]))
                writer.write_table(rows.cast(PLAN_SCHEMA), row_group_size=ROWS_PER_GROUP)
    except FileExistsError:
        raise ValueError(
            f"{uri}: another job has just planned units of this cache; let it end, then try again"
        ) from None
    return len(rows_N)


def _gather(table: pa.Table, rows: Integers) -> pa.Table:
    if np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
        return table.slice(rows[0], len(rows))
    return table.take(pa.array(rows))


def _plan_files(cache: str) -> list[str]:
    names = storage.list_names(storage.join(cache, UNITS), ".parquet")
    return [
        storage.join(cache, UNITS, name) for name in sorted(names, key=lambda name: int(name.removesuffix(".parquet")))
    ]


def _read(uri: str, *columns: str) -> pa.Table:
    with storage.open_parquet(uri) as file:
        return file.read(columns=list(columns))


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
    tables = [_read(uri, "unit", "seconds") for uri in _plan_files(cache)]
    kept = [clip_seconds(table)[~np.isin(table["unit"].to_numpy(), done_units)] for table in tables]
    return np.concatenate([*kept, np.zeros(0)])


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
        for batch in storage.iter_batches(file, ROWS_PER_GROUP):
            yield from batch.to_pylist()
