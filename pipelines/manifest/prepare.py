"""What every `salmonn prepare` verb shares: a reader's examples in, both manifest tables out.

Everything streams, in the reader's order, so that the same corpus gives the same bytes wherever headers are read.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import pyarrow as pa

from pipelines import storage
from pipelines.errors import UserError, shorten
from pipelines.interface.config import save_config
from pipelines.interface.progress import Progress
from pipelines.interface.words import counted
from pipelines.manifest.corpus import CorpusExample, PrepareConfig, Skipped, require_question, some_file
from pipelines.manifest.emotions import EMOTION_TASK, emotion_label
from pipelines.manifest.formats import sampled_formats
from pipelines.manifest.id_set import IdSet, to_ids
from pipelines.manifest.ids import clip_id, example_id
from pipelines.manifest.lengths import HEADERS_READ_HERE, UNREADABLE, Look, look_at
from pipelines.manifest.reports import PrepareReport, write_report
from pipelines.manifest.tables import Clip, Example
from pipelines.manifest.writer import ManifestWriter
from pipelines.storage.tables import RowTable

BATCH_EXAMPLES = 2_048
SPLITS_NAMED = 8
"""In the terminal, the largest first."""
TOLD = 3
"""Entries left out that the terminal names; a table beside the manifest lists all."""

SKIPPED_SCHEMA = pa.schema([(name, pa.string()) for name in ("recording", "reason", "detail")])
NO_ANSWER = "its answer is empty, or holds a NUL"


@dataclass(frozen=True)
class _Batch:
    """What some of a reader's entries name for the first time; nobody has looked at the clips yet."""

    clips: Sequence[Clip]
    are_new: Sequence[bool]
    """Whether the manifest lacks the clip; one that it holds is only compared."""
    examples: Sequence[Example]
    duplicates: int
    skipped: Sequence[Skipped]

    @property
    def headers(self) -> int:
        """Return how many lengths are to be read; to look whether a recording is there costs little."""
        return sum(segment.duration_seconds is None for clip in self.clips for segment in clip.segments)


def write_manifest(
    examples: Iterable[CorpusExample | Skipped],
    *,
    corpus: str,
    root: str,
    config: PrepareConfig,
    progress: Progress | None = None,
) -> PrepareReport:
    """Write (or add to) a manifest; each recording is opened once, for its length and for what tells it from others.

    A clip whose recording is not there is left out, or what `config.missing` says. One whose header cannot be read has
    no length, and extraction rejects it. `skipped-….parquet` beside the tables lists both, and what the reader leaves
    out. Recordings are looked at by threads here, or on Ray where a cluster is given or there are more than
    `HEADERS_READ_HERE`.

    Raises:
        UserError: If there is no example, if no file of the first batch can be opened (a wrong folder), if a task has
            neither prompts nor a question, if the manifest has a clip of the same name and another sound, or if another
            prepare is writing to it.
    """
    if not re.fullmatch(r"[\w.-]+", corpus):
        raise UserError(f"corpus={corpus}: letters, digits, '_', '-' and '.' only")
    told: list[str] = []
    duplicates, cut, seconds, unheard, reasons, formats = 0, 0, 0.0, 0.0, Counter[str](), Counter[str]()
    with ManifestWriter(config.out, append=config.append) as writer:
        there = writer.num_clips, writer.num_examples
        name = f"{len(storage.list_names(config.out, '.yaml')) + 1:03d}-{corpus}"
        with (
            RowTable(storage.join(config.out, f"skipped-{name}.parquet"), SKIPPED_SCHEMA) as skipped,
            (progress or Progress()).phase(f"prepare {corpus}", unit="examples") as phase,
        ):
            reader = _Reader(corpus, root, writer)
            for batch, looks in _with_looks(map(reader.read, _entries(iter(examples))), config):
                _refuse_wrong_root(root, looks, config, first=writer.num_clips == there[0])
                kept = _write_batch(batch, looks, writer, config, reader)
                for entry in _left_out(batch, looks, config):
                    skipped.add(vars(entry))
                    reasons[entry.reason] += 1
                    if len(told) < TOLD:
                        told.append(f"{entry.detail or entry.recording} ({entry.reason})")
                formats.update(sampled_formats([clip for clip, _ in kept]))
                seconds += sum(look.seconds or 0.0 for _, look in kept)
                cut += sum(look.unheard_seconds > 0 for look in looks)
                unheard += sum(look.unheard_seconds for look in looks)
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
            skipped=dict(reasons),
            cut=cut,
            unheard_hours=unheard / 3600,
            max_clip_seconds=config.max_clip_seconds,
            respelt=dict(reader.respelt),
            formats=dict(formats),
        )
        write_report(config.out, name, report)
        save_config(config, storage.join(config.out, f"prepare-{name}.yaml"))
    _print_report(config.out, corpus, report, reader.splits, told, listed=f"skipped-{name}.parquet")
    return report


def _write_batch(
    batch: _Batch, looks: Sequence[Look], writer: ManifestWriter, config: PrepareConfig, reader: "_Reader"
) -> list[tuple[Clip, Look]]:
    """Add a batch's clips and examples; return the clips that were added, with what was seen of them."""
    kept = []
    for clip, is_new, look in zip(batch.clips, batch.are_new, looks, strict=True):
        if not is_new:
            _require_same_sound(clip, look, writer, config)
        elif look.is_missing and config.missing != "keep":
            if config.missing == "fail":
                raise UserError(f"{look.detail} ({look.problem}), and missing=fail")
            reader.missing.add(to_ids(pa.array([clip.clip_id])))
        else:
            kept.append((clip, look))
            writer.add_seen_clip(clip, look.seconds, look.sources)
    are_missing = reader.missing.holds(to_ids(pa.array([e.clip_id for e in batch.examples], pa.string())))
    for example, is_missing in zip(batch.examples, are_missing, strict=True):
        if not is_missing:
            writer.add_example(example)
            reader.splits[example.split] += 1
    return kept


def _require_same_sound(clip: Clip, look: Look, writer: ManifestWriter, config: PrepareConfig) -> None:
    if look.sources and writer.is_other_sound(clip.clip_id, look.sources):
        found = ", ".join(segment.recording for segment in clip.located())
        raise UserError(
            f"{found}: is not the sound that {config.out} holds as {', '.join(clip.recordings)} of corpus "
            f"{clip.corpus}; if this is another folder, give it a name of its own (corpus=…); if the recording was "
            "replaced, prepare a new manifest (out=…)"
        )


def _left_out(batch: _Batch, looks: Sequence[Look], config: PrepareConfig) -> Iterator[Skipped]:
    yield from batch.skipped
    for clip, is_new, look in zip(batch.clips, batch.are_new, looks, strict=True):
        if is_new and look.problem:
            kept = look.is_missing and config.missing == "keep"
            yield Skipped(", ".join(clip.recordings), f"{look.problem}; kept" if kept else look.problem, look.detail)


def _entries(examples: Iterator[CorpusExample | Skipped]) -> Iterator[list[CorpusExample | Skipped]]:
    while entries := list(islice(examples, BATCH_EXAMPLES)):
        yield entries


class _Reader:
    """Makes batches of a reader's entries, and remembers which clips were met."""

    def __init__(self, corpus: str, root: str, writer: ManifestWriter) -> None:
        self.missing = IdSet()
        self.respelt = Counter[str]()
        self.splits = Counter[str]()
        self._corpus, self._root, self._writer = corpus, root, writer
        self._asked: set[str] = set()
        self._met = IdSet()

    def read(self, entries: Sequence[CorpusExample | Skipped]) -> _Batch:
        told = [self._in_one_spelling(_in_one_form(e)) for e in entries if isinstance(e, CorpusExample)]
        skipped = [entry for entry in entries if isinstance(entry, Skipped)]
        if empty := [entry for entry in told if not _is_answer(entry.answer)]:
            skipped += [Skipped(_named(entry), NO_ANSWER, repr(entry.answer)) for entry in empty]
            told = [entry for entry in told if _is_answer(entry.answer)]
        for entry in told:
            if entry.question is None and entry.task not in self._asked:
                require_question(entry.task, f"corpus {self._corpus}")
                self._asked.add(entry.task)
        clip_ids = [clip_id(self._corpus, entry.segments) for entry in told]
        are_new = self._writer.note_clips(clip_ids)
        is_first = are_new if not self._writer.appends else self._met.add(to_ids(pa.array(clip_ids, pa.string())))
        clips = [
            Clip(
                clip_id=identity,
                corpus=self._corpus,
                split=entry.split,
                root=self._root,
                segments=entry.segments,
                seconds=None,
            )
            for identity, entry, first in zip(clip_ids, told, is_first, strict=True)
            if first
        ]
        examples = [
            Example(
                example_id=example_id(clip, e.split, e.task, e.question, e.answer),
                clip_id=clip,
                corpus=self._corpus,
                split=e.split,
                task=e.task,
                question=e.question,
                answer=e.answer,
            )
            for clip, e in zip(clip_ids, told, strict=True)
        ]
        fresh = self._writer.note_examples([example.example_id for example in examples])
        new = [example for example, is_new in zip(examples, fresh, strict=True) if is_new]
        return _Batch(clips, are_new[is_first].tolist(), new, len(examples) - len(new), skipped)

    def _in_one_spelling(self, entry: CorpusExample) -> CorpusExample:
        """Return the example with an emotion as all corpora spell it."""
        label = emotion_label(entry.answer) if entry.task == EMOTION_TASK else entry.answer
        if label == entry.answer:
            return entry
        self.respelt[f"{entry.answer.strip()} → {label}"] += 1
        return replace(entry, answer=label)


def _named(entry: CorpusExample) -> str:
    return ", ".join(segment.recording for segment in entry.segments)


def _in_one_form(entry: CorpusExample) -> CorpusExample:
    """Return the example with texts in NFC, so that what looks equal is equal."""
    if entry.answer.isascii() and (entry.question is None or entry.question.isascii()):
        return entry
    question = None if entry.question is None else unicodedata.normalize("NFC", entry.question)
    return replace(entry, answer=unicodedata.normalize("NFC", entry.answer), question=question)


def _is_answer(answer: str) -> bool:
    return bool(answer.strip()) and "\0" not in answer


def _with_looks(batches: Iterator[_Batch], config: PrepareConfig) -> Iterator[tuple[_Batch, list[Look]]]:
    """Yield each batch with what was seen of its clips, in the batches' order."""
    left = 0 if config.ray.address or os.environ.get("RAY_ADDRESS") else HEADERS_READ_HERE
    for batch in batches:
        left -= batch.headers
        if batch.headers and left < 0:
            from pipelines.manifest.lengths_on_ray import with_lengths_on_ray  # Ray is imported where it is needed

            yield from with_lengths_on_ray(chain([batch], batches), config.ray, config.max_clip_seconds)
            return
        yield batch, look_at(batch.clips, config.max_clip_seconds)


def _refuse_wrong_root(root: str, looks: Sequence[Look], config: PrepareConfig, *, first: bool) -> None:
    problems = [look for look in looks if look.problem]
    if first and problems and len(problems) == len(looks) and config.missing != "keep":
        there = some_file(root)
        hint = f"; there is {there}" if there else "; nothing is there"
        raise UserError(
            f"none of the first {len(looks)} recordings below {root} can be opened; {problems[0].detail}{hint}"
        )


def _print_report(
    out: str, corpus: str, report: PrepareReport, splits: Counter[str], told: Sequence[str], *, listed: str
) -> None:
    added = f"{counted(report.clips, 'clip')} ({report.hours:.3f} h), {counted(report.examples, 'example')} of {corpus}"
    print(f"{out}: {added}")
    named = [f"{split or 'none'} {count:,}" for split, count in splits.most_common(SPLITS_NAMED)]
    if named:  # a misspelt one is seen here, before anything is encoded
        print(f"  by split: {', '.join(named)}{', …' if len(splits) > SPLITS_NAMED else ''}")
    for line in report.lines():
        print(f"  {line}")
    for line in told:
        print(f"    {shorten(line)}")
    if report.skipped or report.unreadable:
        print(f"  {storage.join(out, listed)} lists them")
