"""`salmonn manifest check`: whether a manifest's recordings are there, its tables agree and its splits stay apart.

Ten million clips and examples take about 2 GB. Letters: N clips, S segments, E examples.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders.sound.recordings import UnreadableError, split_member
from llm.errors import LLMError
from llm.prompts import question_for
from pipelines import storage
from pipelines.errors import JobIncompleteError, UserError
from pipelines.interface.words import counted
from pipelines.manifest.id_set import ID_NBYTES, ID_TYPE, IdSet, to_ids
from pipelines.manifest.sources import has_changed
from pipelines.manifest.tables import CLIPS, EXAMPLES, read_batches, read_rows
from pipelines.manifest.tools.config import ManifestCheckConfig
from pipelines.storage.arrays import Booleans, Ids
from pipelines.storage.threads import run_threads

FILES_PER_TURN = 64
Integers = np.ndarray[Any, np.dtype[np.int64]]


def manifest_check(config: ManifestCheckConfig) -> None:
    """Print what is wrong: how many faults of each kind, and the first.

    Recordings are there, and those that were prepared: some 50 KB of each are read. Of manifests made before 2026-11-28
    they are only looked for. A recording leaks if clips of one corpus that hold it belong to several splits, where all
    whose names begin with `train` count as one.

    Raises:
        FileNotFoundError: If there is no manifest.
        UserError: If a table lacks a column or an id is malformed.
        JobIncompleteError: If anything is wrong.
    """
    faults = _Faults(config.listed)
    clips = _Clips(config, faults)
    looked_for = 0
    for looked, missing, changed in run_threads(_faulty, _in_turns(clips.scan()), threads=config.threads):
        looked_for += looked
        faults.add("missing recordings", missing)
        faults.add("recordings replaced since they were prepared", changed)
    clips.find_leaks()
    num_examples = _check_examples(config.manifest, clips, faults)
    counts = ((clips.num_clips, "clip"), (num_examples, "example"), (looked_for, "recording"))
    print(f"{config.manifest}: {', '.join(counted(*each) for each in counts)} looked for")
    faults.show()
    if faults.counts:
        raise JobIncompleteError(
            f"{config.manifest}: " + ", ".join(f"{kind}: {count:,}" for kind, count in sorted(faults.counts.items()))
        )


class _Faults:
    """Counts faults by kind and keeps the first of each."""

    def __init__(self, listed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.listed, self._first = listed, dict[str, list[str]]()

    def add(self, kind: str, names: Sequence[str], *, count: int | None = None) -> None:
        """Add faults; `names` may be the first of `count` alone."""
        if names:
            self.counts[kind] += len(names) if count is None else count
            first = self._first.setdefault(kind, [])
            first += names[: self.listed - len(first)]

    def add_rows(self, kind: str, names: pa.Array, wrong: Booleans) -> None:
        """Add the names [N] of rows where `wrong` [N] holds."""
        if wrong.any():
            self.add(kind, names.filter(pa.array(wrong)).to_pylist())

    def show(self) -> None:
        for kind, count in sorted(self.counts.items()):
            print(f"{kind}: {count:,}")
            for name in self._first[kind]:
                print(f"  {name}")
            if count > len(self._first[kind]):
                print("  …")


class _Clips:
    """What is remembered of the clips: ids and splits [N], and which recording [S] each holds."""

    def __init__(self, config: ManifestCheckConfig, faults: _Faults) -> None:
        self._config, self._faults = config, faults
        self._splits: dict[str, int] = {}
        self._ids, self._recordings, self._repeated = list[Ids](), list[Ids](), list[Booleans]()
        self._split_numbers, self._clip_rows = list[Integers](), list[Integers]()
        self.num_clips = 0

    def scan(self) -> Iterator[tuple[str, str]]:
        """Read the table; yield the URI and the source, if known, of each recording to be looked for, once."""
        seen, located = IdSet(), IdSet()
        columns = ["clip_id", "corpus", "split", "root", "segments", "sources"]
        for batch in read_batches(self._config.manifest, CLIPS, columns):
            ids = to_ids(batch["clip_id"])
            repeated = ~seen.add(ids)
            self._faults.add_rows("duplicated clips", batch["clip_id"], repeated)
            self._repeated.append(repeated)
            rows_S = pc.list_parent_indices(batch["segments"]).to_numpy()
            recordings = pc.struct_field(pc.list_flatten(batch["segments"]), "recording").to_pylist()
            corpora, roots = (batch[name].to_pylist() for name in ("corpus", "root"))
            places = [(roots[row], name) for row, name in zip(rows_S, recordings, strict=True)]
            segments_N = pc.list_value_length(batch["segments"]).to_pylist()
            known = zip(batch["sources"].to_pylist(), segments_N, strict=True)
            sources = [source for row, count in known for source in row or [""] * count]
            self._ids.append(ids)
            self._split_numbers.append(self.split_numbers(batch["split"]))
            self._clip_rows.append(self.num_clips + rows_S)
            self._recordings.append(
                _digests((corpora[row], name) for row, name in zip(rows_S, recordings, strict=True))
            )
            self.num_clips += batch.num_rows
            yield from self._to_look_for(places, sources, located)

    def _to_look_for(
        self, places: Sequence[tuple[str, str]], sources: Sequence[str], located: IdSet
    ) -> Iterator[tuple[str, str]]:
        digests = _digests(places)
        chosen = digests.view(">u8")[::2] < self._config.fraction * 2.0**64
        for position in np.flatnonzero(located.add(digests) & chosen).tolist():
            root, recording = places[position]
            try:
                yield storage.join(root, recording), sources[position]
            except UserError as error:
                self._faults.add("recordings outside their root", [str(error)])

    def split_numbers(self, splits: pa.Array) -> Integers:
        """Return numbers of the splits' names; all that begin with `train` are one."""
        encoded = pc.dictionary_encode(splits.cast(pa.string()))
        names = ["train" if name.startswith("train") else name for name in encoded.dictionary.to_pylist()]
        numbers = np.array([self._splits.setdefault(name, len(self._splits)) for name in names], np.int64)
        return np.asarray(numbers[encoded.indices.to_numpy()])

    def find_leaks(self) -> None:
        """Note recordings that belong to several splits, and make ready to look up clips by their ids."""
        self._splits_N, rows_S = _joined(self._split_numbers, np.int64), _joined(self._clip_rows, np.int64)
        recordings_S = _joined(self._recordings, ID_TYPE)
        order_S = np.argsort(recordings_S, kind="stable")
        recordings_S, splits_S = recordings_S[order_S], self._splits_N[rows_S[order_S]]
        same_S = (recordings_S[1:] == recordings_S[:-1]) & (splits_S[1:] != splits_S[:-1])
        leaking = np.unique(recordings_S[1:][same_S])
        lines = []
        for recording in leaking[: max(1, self._faults.listed)]:
            first, last = (np.searchsorted(recordings_S, recording, side) for side in ("left", "right"))
            lines.append(self._leak(recording, rows_S[order_S[first:last]], splits_S[first:last]))
        self._faults.add("recordings in several splits", lines, count=len(leaking))

        ids_N = _joined(self._ids, ID_TYPE)
        self.repeated_N: Booleans = _joined(self._repeated, np.bool_)
        self._order_N = np.argsort(ids_N, kind="stable")
        self._sorted_N = ids_N[self._order_N]

    def _leak(self, recording: bytes, rows: Integers, splits: Integers) -> str:
        """Describe a recording that leaks by one clip of each of its splits."""
        names = list(self._splits)
        firsts = rows[np.unique(splits, return_index=True)[1]]
        clips = read_rows(self._config.manifest, CLIPS, ["corpus", "segments"], firsts)
        places = [(clip["corpus"], segment["recording"]) for clip in clips for segment in clip["segments"]]
        corpus, name = next(
            place for place, digest in zip(places, _digests(places), strict=True) if digest == recording
        )
        return f"{corpus}: {name} ({', '.join(names[split] for split in np.unique(splits))})"

    def rows_of(self, ids_E: Ids) -> Integers:
        """Return the clips' rows [E], -1 where there is no such clip."""
        if not self.num_clips:
            return np.full(len(ids_E), -1)
        places_E = np.minimum(np.searchsorted(self._sorted_N, ids_E), self.num_clips - 1)
        return np.where(self._sorted_N[places_E] == ids_E, self._order_N[places_E], -1)

    def splits_of(self, rows_E: Integers) -> Integers:
        return np.asarray(self._splits_N[rows_E])


def _joined(parts: list[Any], dtype: Any) -> Any:
    """Return arrays end to end; the list gives them up."""
    whole = np.concatenate([np.zeros(0, dtype), *parts])
    parts.clear()
    return whole


def _digests(places: Iterable[tuple[str, str]]) -> Ids:
    """Return 128 bits for each (corpus or root, recording)."""
    digests = (hashlib.blake2b("\0".join(place).encode(), digest_size=ID_NBYTES).digest() for place in places)
    return np.frombuffer(b"".join(digests), ID_TYPE)


def _in_turns(places: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    while turn := list(islice(places, FILES_PER_TURN)):
        yield turn


def _faulty(places: Sequence[tuple[str, str]]) -> tuple[int, list[str], list[str]]:
    """Return how many recordings these are, and which of them are missing and which were replaced."""
    missing, changed = [], []
    for uri, source in places:
        try:
            if source and has_changed(uri, source):
                changed.append(uri)
            elif not source and not storage.file_exists(split_member(uri)[0]) and not storage.file_exists(uri):
                missing.append(uri)
        except (FileNotFoundError, NotADirectoryError, UnreadableError):
            missing.append(uri)
    return len(places), missing, changed


def _check_examples(manifest: str, clips: _Clips, faults: _Faults) -> int:
    """Check the examples against the clips and the prompts; return how many there are."""
    seen, num_examples = IdSet(), 0
    asked_N = clips.repeated_N.copy()
    columns = ["example_id", "clip_id", "split", "task", "question", "answer"]
    for batch in read_batches(manifest, EXAMPLES, columns):
        names, rows_E = batch["example_id"], clips.rows_of(to_ids(batch["clip_id"]))
        there_E = rows_E >= 0
        asked_N[rows_E[there_E]] = True
        faults.add_rows("duplicated examples", names, ~seen.add(to_ids(names)))
        faults.add_rows("examples without their clip", names, ~there_E)
        if clips.num_clips:
            other_split_E = there_E & (clips.splits_of(rows_E) != clips.split_numbers(batch["split"]))
            faults.add_rows("examples in another split than their clip", names, other_split_E)
        faults.add_rows("examples with an empty answer", names, _blank(batch["answer"]))
        _check_questions(batch, faults)
        num_examples += batch.num_rows
    rows = np.flatnonzero(~asked_N)
    listed = read_rows(manifest, CLIPS, ["clip_id"], rows[: max(1, faults.listed)]) if len(rows) else []
    faults.add("clips without an example", [row["clip_id"] for row in listed], count=len(rows))
    return num_examples


def _check_questions(batch: pa.RecordBatch, faults: _Faults) -> None:
    """Note examples that neither bring a question nor have a task that does."""
    silent = batch.filter(pa.array(_blank(batch["question"])))
    for task in pc.unique(silent["task"]).to_pylist():
        try:
            question_for(task)
        except LLMError:
            of_task = pc.equal(silent["task"], task).to_numpy(zero_copy_only=False)
            faults.add_rows(f"examples of task {task!r} without a question", silent["example_id"], of_task)


def _blank(texts: pa.Array) -> Booleans:
    trimmed = pc.utf8_trim_whitespace(pc.fill_null(texts.cast(pa.string()), ""))
    return np.asarray(pc.equal(trimmed, "").to_numpy(zero_copy_only=False), np.bool_)
