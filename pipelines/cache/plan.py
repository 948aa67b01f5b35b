"""Which clips go into which shard: decided once from the manifest alone, kept in the cache as `units/*.parquet`.

The plan is kept so that a run after a kill meets the same units, and a manifest that has grown leaves them as they are:
its new clips get new units, numbered onward. Clips of one recording follow each other by time, so that a long file is
opened for one unit or two, and units are of near-equal bytes. Rows are in unit order, so reading the plan streams;
making it holds some numbers per clip, and gathers the clips themselves in parts. Letters: N clips.
"""

import hashlib
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from encoders.audio import CLIP_SECONDS
from encoders.features import STORED_TYPES, Codec, audio_frames, speech_frames
from pipelines import storage
from pipelines.cache.layout import UNITS, unit_files, unit_name
from pipelines.cache.recipe import Recipe
from pipelines.errors import UserError
from pipelines.interface.words import counted
from pipelines.manifest.id_set import ID_NBYTES, ID_TYPE, to_ids
from pipelines.manifest.tables import (
    CLIP_SCHEMA,
    CLIPS,
    OPTIONAL,
    Clip,
    clip_from_row,
    count_clips,
    read_batches,
    read_rows,
    row_from_clip,
    source_keys,
    take_rows,
    with_columns,
)
from pipelines.storage.arrays import Booleans, Floats, Ids, Integers, Keys
from pipelines.storage.tables import ROWS_PER_GROUP, RowTable

PLAN_SCHEMA = pa.schema([("unit", pa.int64()), *CLIP_SCHEMA])
TAR_NBYTES_PER_CLIP = 4_096
ROWS_PER_GATHER = 1 << 17
"""Clips brought into unit order at once, some 500 bytes each; more where the manifest would be read too often."""
MOST_GATHERS = 8
"""Each reads the whole manifest if that is shuffled, otherwise its own part."""
FEW_UNITS, CLIPS_OF_FEW = 16, 8
"""A corpus smaller than so many shards is cut into so many units, if each gets so many clips: a first try of a hundred
clips would otherwise be one unit, which one worker encodes while nothing is seen to happen."""
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
    """Return the clips' lengths in seconds; an unknown one counts as 30 s."""
    return np.asarray(pc.fill_null(clips["seconds"], float(CLIP_SECONDS)), dtype=np.float64)


def predict_nbytes(seconds_N: Floats, recipe: Recipe, codec: Codec) -> Integers:
    """Predict the clips' bytes in their shards."""
    seconds_N = np.minimum(seconds_N, recipe.max_clip_seconds)
    frames = {"speech": speech_frames(seconds_N, recipe.speech_frames), "audio": audio_frames(seconds_N)}
    values_N = sum(
        (frames[name] * stream.width for name, stream in recipe.streams.items()), np.zeros(len(seconds_N), np.int64)
    )
    return values_N * STORED_TYPES[codec].value_nbytes + TAR_NBYTES_PER_CLIP


def cut_units(nbytes_N: Integers, *, shard_nbytes: int) -> Integers:
    """Return each clip's unit, counted from 0 without gaps.

    There are as many units as shards of this size are filled, and of few clips more, so that several workers have work;
    a clip goes where the middle of its bytes falls, so units differ from each other by a clip at most.
    """
    if not len(nbytes_N):
        return nbytes_N
    ends_N = np.cumsum(nbytes_N)
    units = max(-(-ends_N[-1] // shard_nbytes), min(FEW_UNITS, len(nbytes_N) // CLIPS_OF_FEW))
    places_N = ((ends_N - nbytes_N / 2) / ends_N[-1] * units).astype(np.int64)
    return np.cumsum(np.diff(places_N, prepend=places_N[0]) > 0, dtype=np.int64)


@dataclass(frozen=True)
class NewClips:
    """The clips of a manifest that are in no unit yet, in the order in which units take them."""

    rows: Integers
    """[N] Where they stand in the manifest's table."""
    seconds: Floats
    """[N] Their lengths; an unknown one counts as 30 s."""
    changed: Integers
    """Where clips stand in the manifest that are planned, and as another sound."""


def find_new_clips(cache: str, manifest: str) -> NewClips:
    """Return what is to be planned: clips of a recording follow each other by time, recordings as they are first met.

    Takes some 100 bytes of memory per clip, new or planned. Raises as `read_clips`.
    """
    planned, changed = _Planned(cache), []
    most, found, row = count_clips(manifest), 0, 0
    rows_N, recordings_N = np.empty(most, np.int64), np.empty(most, np.uint64)
    starts_N, seconds_N = np.empty(most), np.empty(most)
    for batch in read_batches(manifest, CLIPS, ["clip_id", "segments", "seconds", "sources"]):
        is_new, is_changed = planned.compare(to_ids(batch["clip_id"]), source_keys(batch["sources"]))
        new = np.flatnonzero(is_new)
        changed.append(row + np.flatnonzero(is_changed))
        clips = batch.take(pa.array(new))
        first = pc.list_element(clips["segments"], 0)
        part = slice(found, found + len(new))
        rows_N[part] = row + new
        seconds_N[part] = clip_seconds(clips)
        recordings_N[part] = _keys(pc.struct_field(first, "recording"))
        starts_N[part] = pc.struct_field(first, "start_seconds")
        row, found = row + batch.num_rows, part.stop
    order_N = recording_order(recordings_N[:found], starts_N[:found])
    changed_rows = np.concatenate([np.zeros(0, np.int64), *changed])
    return NewClips(rows_N[:found][order_N], seconds_N[:found][order_N], changed_rows)


class _Planned:
    """The planned clips and which sounds they are: 24 bytes each."""

    def __init__(self, cache: str) -> None:
        batches = list(_plan_batches(cache, ["clip_id", "sources"]))
        ids_P = np.concatenate([np.zeros(0, ID_TYPE), *(to_ids(batch["clip_id"]) for batch in batches)])
        keys_P = np.concatenate([np.zeros(0, np.uint64), *(source_keys(batch["sources"]) for batch in batches)])
        order_P = np.argsort(ids_P)
        self._ids_P, self._keys_P = ids_P[order_P], keys_P[order_P]

    def compare(self, ids_N: Ids, keys_N: Keys) -> tuple[Booleans, Booleans]:
        """Tell which clips [N] are not planned, and which are planned as another sound; 0 is a sound not known."""
        if not len(self._ids_P):
            return np.ones(len(ids_N), np.bool_), np.zeros(len(ids_N), np.bool_)
        places_N = np.minimum(np.searchsorted(self._ids_P, ids_N), len(self._ids_P) - 1)
        is_new_N = self._ids_P[places_N] != ids_N
        there_N = self._keys_P[places_N]
        return is_new_N, ~is_new_N & (there_N != 0) & (keys_N != 0) & (there_N != keys_N)


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


def extend_plan(
    cache: str, clips: str | Iterable[Clip], *, recipe: Recipe, shard_nbytes: int, replace_changed: bool = False
) -> int:
    """Add units for the clips, of a manifest or as they come, that are in none yet; return how many clips those were.

    With `replace_changed` the units of clips that are another sound now lose their index, to be encoded again.

    Units are counted before their clips are read: if another job adds some in between, its file has the name of ours.

    Raises:
        UserError: If another job has just done the same, or clips are planned as another sound.
    """
    with ExitStack() as spool:
        manifest = clips if isinstance(clips, str) else spool.enter_context(_spooled(clips))
        first = count_units(cache)
        new = find_new_clips(cache, manifest)
        if len(new.changed):
            _replace_or_refuse(cache, manifest, new.changed, replace=replace_changed)
        if not len(new.rows):
            return 0
        units_N = first + cut_units(predict_nbytes(new.seconds, recipe, recipe.codec), shard_nbytes=shard_nbytes)
        uri = storage.join(cache, UNITS, f"{unit_name(first)}.parquet")
        try:
            with (
                storage.staged_file(uri, exclusive=True) as path,
                pq.ParquetWriter(path, PLAN_SCHEMA, **storage.PAGE_CHECKSUMS) as writer,
            ):
                for part in _parts(len(new.rows)):
                    rows = take_rows(manifest, CLIPS, CLIP_SCHEMA.names, new.rows[part])
                    rows = rows.add_column(0, "unit", pa.array(units_N[part]))
                    writer.write_table(rows.cast(PLAN_SCHEMA), row_group_size=ROWS_PER_GROUP)
        except FileExistsError:
            raise UserError(
                f"{uri}: another job has just planned units of this cache; let it end, then try again"
            ) from None
    return len(new.rows)


def _replace_or_refuse(cache: str, manifest: str, changed: Integers, *, replace: bool) -> None:
    """Plan changed clips as the sound they are now, or say which they are."""
    if not replace:
        (first,) = read_rows(manifest, CLIPS, CLIP_SCHEMA.names, [int(changed[0])])
        raise UserError(
            f"{cache}: {counted(len(changed), 'clip')} of another sound than the manifest's of their name, first "
            f"{', '.join(segment.recording for segment in clip_from_row(first).located())}; if recordings were "
            "replaced, replace_changed=true encodes their shards again; if this is another folder, encode it into a "
            "cache of its own"
        )
    rows = {row["clip_id"]: row for row in read_rows(manifest, CLIPS, CLIP_SCHEMA.names, changed.tolist())}
    for uri in _plan_files(cache):
        with _open_plan(uri) as file:
            planned = pa.Table.from_batches(
                with_columns(batch, PLAN_SCHEMA.names) for batch in storage.iter_batches(file, ROWS_PER_GROUP)
            )
        is_changed = pc.is_in(planned["clip_id"], pa.array(list(rows), pa.string()))
        units = pc.unique(planned["unit"].filter(is_changed)).to_pylist()
        for unit in units:  # before the plan: killed in between, the same command finds the same clips changed
            index = storage.join(cache, "index", f"{unit_name(unit)}.parquet")
            if storage.file_exists(index):
                storage.delete_file(index)
        if units:
            new = [{**row, **rows.get(row["clip_id"], {})} for row in planned.to_pylist()]
            with storage.staged_file(uri) as path:
                table = pa.Table.from_pylist(new, schema=PLAN_SCHEMA)
                pq.write_table(table, path, row_group_size=ROWS_PER_GROUP, **storage.PAGE_CHECKSUMS)


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
    return [storage.join(cache, UNITS, name) for name in unit_files(cache, UNITS).values()]


def _open_plan(uri: str) -> AbstractContextManager[pq.ParquetFile]:
    return storage.open_parquet(uri, PLAN_SCHEMA, optional=OPTIONAL)


def _plan_batches(cache: str, columns: Sequence[str], rows: int = ROWS_PER_GROUP) -> Iterator[pa.RecordBatch]:
    for uri in _plan_files(cache):
        with _open_plan(uri) as file:
            for batch in storage.iter_batches(file, rows, columns):
                yield with_columns(batch, columns)


def count_units(cache: str) -> int:
    """Return how many units are planned; they are numbered from 0 without gaps."""
    files = _plan_files(cache)
    if not files:
        return 0
    with _open_plan(files[-1]) as file:
        filled = [group for group in range(file.num_row_groups) if file.metadata.row_group(group).num_rows]
        if not filled:
            raise pa.ArrowInvalid("it holds no clips")  # which `open_parquet` puts a name to
        *_, last = storage.iter_batches(file, ROWS_PER_GROUP, ["unit"], groups=filled[-1:])
        return 1 + int(with_columns(last, ["unit"])["unit"][-1].as_py())


def count_planned_clips(cache: str) -> int:
    """Return how many clips the plan holds."""
    counts = []
    for uri in _plan_files(cache):
        with _open_plan(uri) as file:
            counts.append(int(file.metadata.num_rows))
    return sum(counts)


def unit_sizes(cache: str) -> tuple[Integers, Floats]:
    """Return of each planned unit, by its number, how many clips it has and how many seconds they last."""
    units = count_units(cache)
    clips_U, seconds_U = np.zeros(units, np.int64), np.zeros(units)
    for batch in _plan_batches(cache, ["unit", "seconds"]):
        units_N = batch["unit"].to_numpy()
        clips_U += np.bincount(units_N, minlength=units)
        seconds_U += np.bincount(units_N, clip_seconds(batch), minlength=units)
    return clips_U, seconds_U


def repeated_clips(cache: str) -> dict[str, list[int]]:
    """Return the clips that stand in the plan more than once, with their units; 24 bytes of memory per planned clip."""
    batches = [
        (to_ids(batch["clip_id"]), batch["unit"].to_numpy()) for batch in _plan_batches(cache, ["clip_id", "unit"])
    ]
    ids_N = np.concatenate([np.zeros(0, ID_TYPE), *(ids for ids, _ in batches)])
    units_N = np.concatenate([np.zeros(0, np.int64), *(units for _, units in batches)])
    del batches
    order_N = np.argsort(ids_N, kind="stable")
    is_repeated = np.flatnonzero(ids_N[order_N[1:]] == ids_N[order_N[:-1]])
    rows = np.unique(np.concatenate([is_repeated, is_repeated + 1]))
    found: dict[str, list[int]] = {}
    for row in order_N[rows]:
        found.setdefault(bytes(ids_N[row]).ljust(ID_NBYTES, b"\0").hex(), []).append(int(units_N[row]))
    return found


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
