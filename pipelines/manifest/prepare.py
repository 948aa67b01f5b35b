"""What every `salmonn prepare` verb shares: a reader's examples in, both manifest tables out.

Everything streams, in the reader's order, so that the same corpus gives the same bytes wherever headers are read.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import pyarrow as pa

from cluster.config import RayConfig
from pipelines import storage
from pipelines.errors import UserError
from pipelines.interface.config import save_config
from pipelines.interface.progress import Progress
from pipelines.manifest.corpus import CorpusExample, PrepareConfig, Skipped
from pipelines.manifest.ids import clip_id, example_id
from pipelines.manifest.lengths import HEADERS_READ_HERE, read_lengths
from pipelines.manifest.tables import Clip, Example
from pipelines.manifest.writer import ManifestWriter
from pipelines.storage.tables import RowTable

BATCH_EXAMPLES = 2_048

SKIPPED_SCHEMA = pa.schema([(name, pa.string()) for name in ("recording", "reason", "detail")])
UNREADABLE = "header cannot be read; kept without a length"


@dataclass(frozen=True)
class PrepareReport:
    """What one `prepare` added to a manifest, and what it left out by reason."""

    clips: int
    examples: int
    duplicates: int
    unreadable: int
    hours: float
    skipped: Mapping[str, int]


@dataclass(frozen=True)
class _Batch:
    """What is new in some of a reader's entries; the clips' lengths are not known yet."""

    clips: Sequence[Clip]
    examples: Sequence[Example]
    duplicates: int
    skipped: Sequence[Skipped]

    @property
    def headers(self) -> int:
        return sum(segment.duration_seconds is None for clip in self.clips for segment in clip.segments)


def write_manifest(
    examples: Iterable[CorpusExample | Skipped],
    *,
    corpus: str,
    root: str,
    config: PrepareConfig,
    progress: Progress | None = None,
) -> PrepareReport:
    """Write (or add to) a manifest, reading the length of each clip from its files' headers where it is not stated.

    A file that cannot be opened does not stop the work: its clip has no length, and extraction rejects it. It is
    listed, as is what the reader leaves out, in `skipped-….parquet` beside the tables. Headers are read by threads
    here, or on Ray where a cluster is given or there are more than `HEADERS_READ_HERE`.

    Raises:
        UserError: If there is no example, if no file of the first batch can be opened (a wrong folder), or if another
            prepare is writing to the manifest.
    """
    if not re.fullmatch(r"[\w.-]+", corpus):
        raise UserError(f"corpus={corpus}: letters, digits, '_', '-' and '.' only")
    duplicates, seconds, reasons = 0, 0.0, Counter[str]()
    with ManifestWriter(config.out, append=config.append) as writer:
        there = writer.num_clips, writer.num_examples
        name = f"{len(storage.list_names(config.out, '.yaml')) + 1:03d}-{corpus}"
        with (
            RowTable(storage.join(config.out, f"skipped-{name}.parquet"), SKIPPED_SCHEMA) as skipped,
            (progress or Progress()).phase(f"prepare {corpus}", unit="examples") as phase,
        ):
            batches = (_read_batch(entries, corpus, root, writer) for entries in _entries(iter(examples)))
            for batch, lengths in _with_lengths(batches, config.ray):
                _refuse_wrong_root(root, lengths, first=writer.num_clips == there[0])
                _write_batch(batch, lengths, writer)
                for entry in _left_out(batch, lengths):
                    skipped.add(vars(entry))
                    reasons[entry.reason] += 1
                seconds += sum(length for length in lengths if not isinstance(length, str))
                duplicates += batch.duplicates
                phase.advance(len(batch.examples) + batch.duplicates)
            if writer.num_examples + duplicates == there[1]:
                raise UserError(f"corpus {corpus}, recordings below {root}: no examples were found")
        report = PrepareReport(
            clips=writer.num_clips - there[0],
            examples=writer.num_examples - there[1],
            duplicates=duplicates,
            unreadable=reasons.pop(UNREADABLE, 0),
            hours=seconds / 3600,
            skipped=reasons,
        )
        save_config(config, storage.join(config.out, f"prepare-{name}.yaml"))
    _print_report(config.out, corpus, report, listed=f"skipped-{name}.parquet")
    return report


def _write_batch(batch: _Batch, lengths: Sequence[float | str], writer: ManifestWriter) -> None:
    for clip, length in zip(batch.clips, lengths, strict=True):
        writer.add_clip(clip if isinstance(length, str) else replace(clip, seconds=length))
    for example in batch.examples:
        writer.add_example(example)


def _left_out(batch: _Batch, lengths: Sequence[float | str]) -> Iterator[Skipped]:
    yield from batch.skipped
    for clip, length in zip(batch.clips, lengths, strict=True):
        if isinstance(length, str):
            yield Skipped(", ".join(clip.recordings), UNREADABLE, length)


def _entries(examples: Iterator[CorpusExample | Skipped]) -> Iterator[list[CorpusExample | Skipped]]:
    while entries := list(islice(examples, BATCH_EXAMPLES)):
        yield entries


def _read_batch(entries: Sequence[CorpusExample | Skipped], corpus: str, root: str, writer: ManifestWriter) -> _Batch:
    told = [entry for entry in entries if isinstance(entry, CorpusExample)]
    clip_ids = [clip_id(corpus, entry.segments) for entry in told]
    clips = [
        Clip(clip_id=identity, corpus=corpus, split=entry.split, root=root, segments=entry.segments, seconds=None)
        for identity, entry, is_new in zip(clip_ids, told, writer.note_clips(clip_ids), strict=True)
        if is_new
    ]
    examples = [
        Example(
            example_id=example_id(clip, e.task, e.question, e.answer),
            clip_id=clip,
            corpus=corpus,
            split=e.split,
            task=e.task,
            question=e.question,
            answer=e.answer,
        )
        for clip, e in zip(clip_ids, told, strict=True)
    ]
    are_new = writer.note_examples([example.example_id for example in examples])
    new = [example for example, is_new in zip(examples, are_new, strict=True) if is_new]
    return _Batch(clips, new, len(examples) - len(new), [entry for entry in entries if isinstance(entry, Skipped)])


def _with_lengths(batches: Iterator[_Batch], config: RayConfig) -> Iterator[tuple[_Batch, list[float | str]]]:
    """Yield each batch with its clips' lengths in seconds, or why one is not known, in the batches' order."""
    left = 0 if config.address or os.environ.get("RAY_ADDRESS") else HEADERS_READ_HERE
    for batch in batches:
        left -= batch.headers
        if batch.headers and left < 0:
            from pipelines.manifest.lengths_on_ray import with_lengths_on_ray  # Ray is imported where it is needed

            yield from with_lengths_on_ray(chain([batch], batches), config)
            return
        yield batch, read_lengths(batch.clips)


def _refuse_wrong_root(root: str, lengths: Sequence[float | str], *, first: bool) -> None:
    errors = [length for length in lengths if isinstance(length, str)]
    if first and errors and len(errors) == len(lengths):
        raise UserError(f"none of the first {len(lengths)} recordings below {root} can be opened; {errors[0]}")


def _print_report(out: str, corpus: str, report: PrepareReport, *, listed: str) -> None:
    added = f"{report.clips} clips ({report.hours:.3f} h), {report.examples} examples of {corpus}"
    repeated = f", {report.duplicates} repeated examples left out" if report.duplicates else ""
    unreadable = f", {report.unreadable} clips whose header cannot be read" if report.unreadable else ""
    print(f"{out}: {added}{repeated}{unreadable}")
    for reason, count in sorted(report.skipped.items()):
        print(f"  skipped {count}: {reason}")
    if report.skipped or report.unreadable:
        print(f"  {storage.join(out, listed)} lists them")
