"""What every `salmonn prepare` verb shares: a reader's examples in, both manifest tables out."""

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from omegaconf import MISSING

from encoders.audio import AudioError, Segment, clip_seconds, probe_seconds
from pipelines import storage
from pipelines.config import save_config
from pipelines.manifest import Clip, Example, ManifestWriter, clip_id, example_id
from pipelines.progress import Progress

PROBE_THREADS = 16
PROBE_BATCH = 2_048


@dataclass(frozen=True)
class PrepareConfig:
    """The keys that all corpora share."""

    out: str = MISSING
    """[URI] Folder of the manifest to write."""
    append: bool = False
    """[true/false] Add to the manifest that lies there; clips and examples it holds already are not written twice."""


@dataclass(frozen=True)
class CorpusExample:
    """One example as a corpus tells it; recordings are names below the corpus's root."""

    segments: tuple[Segment, ...]
    split: str
    task: str
    answer: str
    question: str | None = None


@dataclass(frozen=True)
class PrepareReport:
    """What one `prepare` added to a manifest."""

    clips: int
    examples: int
    duplicates: int
    unreadable: int
    hours: float


def write_manifest(
    examples: Iterable[CorpusExample],
    *,
    corpus: str,
    root: str,
    config: PrepareConfig,
    progress: Progress | None = None,
) -> PrepareReport:
    """Write (or add to) a manifest, reading the length of each clip from its files' headers.

    A file that cannot be opened does not stop the work: its clip has no length, and extraction rejects it.

    Raises:
        ValueError: If there is no example, or if no file of the first batch can be opened (a wrong folder).
    """
    if not re.fullmatch(r"[\w.-]+", corpus):
        raise ValueError(f"corpus={corpus}: letters, digits, '_', '-' and '.' only")
    unreadable, seconds = 0, 0.0
    with (
        ManifestWriter(config.out, append=config.append) as writer,
        ThreadPoolExecutor(PROBE_THREADS) as pool,
        (progress or Progress()).phase(f"prepare {corpus}", unit="examples") as phase,
    ):
        there = writer.num_clips, writer.num_examples
        for batch in _batches(iter(examples), PROBE_BATCH):
            new = _new_clips(batch, corpus, writer)
            lengths = list(pool.map(lambda segments: _probe(root, segments), new.values()))
            _refuse_wrong_root(root, lengths, first=writer.num_clips == there[0])
            split_of = {clip_id(corpus, example.segments): example.split for example in reversed(batch)}
            for (identity, segments), length in zip(new.items(), lengths, strict=True):
                known = None if isinstance(length, Exception) else length
                writer.add_clip(Clip(identity, corpus, split_of[identity], root, segments, known))
                unreadable += known is None
                seconds += known or 0.0
            for example in batch:
                writer.add_example(_example(example, corpus))
            phase.advance(len(batch))
        if writer.num_examples == 0:
            raise ValueError(f"corpus {corpus}, recordings below {root}: no examples were found")
        report = PrepareReport(
            writer.num_clips - there[0],
            writer.num_examples - there[1],
            writer.num_duplicates,
            unreadable,
            seconds / 3600,
        )
    before = len(storage.list_names(config.out, ".yaml"))
    save_config(config, storage.join(config.out, f"prepare-{before + 1:03d}-{corpus}.yaml"))
    _print_report(config.out, corpus, report)
    return report


def _batches(examples: Iterator[CorpusExample], size: int) -> Iterator[list[CorpusExample]]:
    while batch := list(islice(examples, size)):
        yield batch


def _new_clips(batch: list[CorpusExample], corpus: str, writer: ManifestWriter) -> dict[str, tuple[Segment, ...]]:
    new: dict[str, tuple[Segment, ...]] = {}
    for example in batch:
        identity = clip_id(corpus, example.segments)
        if not writer.has_clip(identity):
            new[identity] = example.segments
    return new


def _example(example: CorpusExample, corpus: str) -> Example:
    clip = clip_id(corpus, example.segments)
    identity = example_id(clip, example.task, example.question, example.answer)
    return Example(identity, clip, corpus, example.split, example.task, example.question, example.answer)


def _probe(root: str, segments: Sequence[Segment]) -> float | Exception:
    try:
        return clip_seconds([_segment_seconds(root, segment) for segment in segments])
    except (AudioError, OSError) as error:
        return error


def _segment_seconds(root: str, segment: Segment) -> float:
    if segment.duration_seconds is not None:
        return segment.duration_seconds
    uri = storage.join(root, segment.recording)
    return probe_seconds(uri, open_file=storage.open_file) - segment.start_seconds


def _refuse_wrong_root(root: str, lengths: list[float | Exception], *, first: bool) -> None:
    errors = [length for length in lengths if isinstance(length, Exception)]
    if first and errors and len(errors) == len(lengths):
        raise ValueError(f"none of the first {len(lengths)} recordings below {root} can be opened; {errors[0]}")


def _print_report(out: str, corpus: str, report: PrepareReport) -> None:
    left_out: list[Any] = [
        f", {report.duplicates} repeated examples left out" if report.duplicates else "",
        f", {report.unreadable} clips whose header cannot be read" if report.unreadable else "",
    ]
    print(
        f"{out}: {report.clips} clips ({report.hours:.3f} h), {report.examples} examples of {corpus}{''.join(left_out)}"
    )


def require_folder(uri: str, key: str) -> str:
    """Return the folder's full URI.

    Raises:
        FileNotFoundError: If there is no such folder, naming the key.
    """
    if not storage.folder_exists(uri):
        raise FileNotFoundError(f"{key}={uri}: no such folder")
    return storage.full_path(uri)
