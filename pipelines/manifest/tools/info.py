"""`salmonn manifest info`: what a manifest holds, from its columns alone.

Ten million clips with an example each take 1.2 GB. Clips are told apart by half of their ids: among ten million,
two that share it would be met once in 300,000 manifests. Letters: N clips, P pairs of group and clip.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from pipelines.manifest.id_set import to_ids
from pipelines.manifest.reports import PrepareReport, read_reports, sum_of
from pipelines.manifest.tables import CLIPS, EXAMPLES, read_batches
from pipelines.manifest.tools.config import ManifestInfoConfig

Keys = np.ndarray[Any, np.dtype[np.uint64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class TaskSummary:
    """The examples of a corpus, split and task; clips and hours count a clip once however many examples it has."""

    corpus: str
    split: str
    task: str
    clips: int
    examples: int
    hours: float


@dataclass(frozen=True)
class ManifestSummary:
    """A manifest in numbers; hours count the clips whose length is known."""

    clips: int
    examples: int
    hours: float
    shortest_seconds: float | None
    longest_seconds: float | None
    unknown_lengths: int
    tasks: list[TaskSummary]
    prepared: PrepareReport
    """What its prepares added and left out, in sum."""
    unreported: int
    """Prepares before 2026-11-28, of which nothing but their examples is known."""


def manifest_info(config: ManifestInfoConfig) -> ManifestSummary:
    """Print counts and hours, in all and by corpus, split and task.

    Raises:
        FileNotFoundError: If there is no manifest.
        UserError: If a table lacks a column.
    """
    summary = summarise(config.manifest)
    if config.json:
        print(json.dumps(asdict(summary), indent=2))
    else:
        _print(config.manifest, summary)
    return summary


def summarise(manifest: str) -> ManifestSummary:
    """Count a manifest. Raises as `manifest_info`."""
    keys_N, seconds_N = _read_clips(manifest)
    groups: dict[tuple[str, str, str], int] = {}
    pairs, examples = [np.zeros(0, np.int64)], Counter[int]()
    for batch in read_batches(manifest, EXAMPLES, ["clip_id", "corpus", "split", "task"]):
        numbers = _group_numbers(batch, groups)
        examples.update(dict(enumerate(np.bincount(numbers).tolist())))
        if len(keys_N):
            keys = _keys(batch["clip_id"])
            order = np.argsort(keys)  # so that bisecting stays in the processor's cache
            keys, numbers = keys[order], numbers[order]
            places = np.minimum(np.searchsorted(keys_N, keys), len(keys_N) - 1)
            pairs.append((numbers * len(keys_N) + places)[keys_N[places] == keys])
    groups_P, places_P = np.divmod(_distinct(np.concatenate(pairs)), max(1, len(keys_N)))
    clips = np.bincount(groups_P, minlength=len(groups))
    hours = np.bincount(groups_P, np.nan_to_num(seconds_N[places_P]), len(groups)) / 3600
    known = seconds_N[~np.isnan(seconds_N)]
    reports, unreported = read_reports(manifest)
    return ManifestSummary(
        clips=len(keys_N),
        examples=examples.total(),
        hours=float(known.sum()) / 3600,
        shortest_seconds=float(known.min()) if len(known) else None,
        longest_seconds=float(known.max()) if len(known) else None,
        unknown_lengths=len(seconds_N) - len(known),
        tasks=[
            TaskSummary(*names, int(clips[group]), examples[group], float(hours[group]))
            for names, group in sorted(groups.items())
        ],
        prepared=sum_of(reports),
        unreported=unreported,
    )


def _read_clips(manifest: str) -> tuple[Keys, Floats]:
    """Return the clips' keys [N], sorted, and lengths in seconds [N], NaN where unknown."""
    keys, seconds = [np.zeros(0, np.uint64)], [np.zeros(0)]
    for batch in read_batches(manifest, CLIPS, ["clip_id", "seconds"]):
        keys.append(_keys(batch["clip_id"]))
        seconds.append(batch["seconds"].to_numpy(zero_copy_only=False).astype(np.float64))
    keys_N = np.concatenate(keys)
    order_N = np.argsort(keys_N)
    return keys_N[order_N], np.concatenate(seconds)[order_N]


def _distinct(values: Integers) -> Integers:
    """Return each value once, sorted; `np.unique` hashes integers, which takes far longer for millions."""
    values.sort()
    return values[np.diff(values, prepend=-1) > 0]


def _keys(clip_ids: pa.Array) -> Keys:
    return to_ids(clip_ids).view(np.uint64)[::2].copy()


def _group_numbers(batch: pa.RecordBatch, groups: dict[tuple[str, str, str], int]) -> Integers:
    columns = [pc.dictionary_encode(batch[name].cast(pa.string())) for name in ("corpus", "split", "task")]
    sizes = [len(column.dictionary) for column in columns]
    codes = [column.indices.to_numpy(zero_copy_only=False) for column in columns]
    found, inverse = np.unique(np.ravel_multi_index(codes, sizes), return_inverse=True)
    numbers = []
    for places in zip(*np.unravel_index(found, sizes), strict=True):
        corpus, split, task = (
            column.dictionary[int(place)].as_py() for column, place in zip(columns, places, strict=True)
        )
        numbers.append(groups.setdefault((corpus, split, task), len(groups)))
    return np.array(numbers, np.int64)[inverse]


def _print(manifest: str, summary: ManifestSummary) -> None:
    print(f"manifest  {manifest}")
    unknown = f"; {summary.unknown_lengths:,} of unknown length" if summary.unknown_lengths else ""
    print(f"clips     {summary.clips:,}, {summary.hours:,.3f} h{unknown}")
    if summary.shortest_seconds is not None:
        print(f"lengths   {summary.shortest_seconds:.3f} to {summary.longest_seconds:.3f} s")
    print(f"examples  {summary.examples:,}")
    for line in summary.prepared.lines():
        print(f"  {line}")
    if summary.unreported:
        print(f"  {summary.unreported:,} prepares left no report: what they left out is not known")
    print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("corpus", "split", "task"):
        table.add_column(name, overflow="fold")
    for name in ("clips", "examples", "hours"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary.tasks:
        table.add_row(row.corpus, row.split, row.task, f"{row.clips:,}", f"{row.examples:,}", f"{row.hours:,.3f}")
    Console(markup=False, highlight=False).print(table)
