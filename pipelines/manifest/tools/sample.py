"""`salmonn manifest sample`: some of a manifest's examples, drawn by chance and written out to be read."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders.audio import Segment
from llm.errors import LLMError
from llm.prompts import question_for
from pipelines.errors import UserError
from pipelines.manifest.tables import (
    CLIP_SCHEMA,
    CLIPS,
    EXAMPLE_SCHEMA,
    EXAMPLES,
    Clip,
    clip_from_row,
    read_batches,
    read_rows,
)
from pipelines.manifest.tools.config import ManifestSampleConfig


def manifest_sample(config: ManifestSampleConfig) -> None:
    """Print examples with question, answer, recordings and times, in the manifest's order.

    Raises:
        FileNotFoundError: If there is no manifest.
        UserError: If no example is as asked, or a table lacks a column.
    """
    numbers = _matching(config)
    if not len(numbers):
        asked = ", ".join(f"{key}={getattr(config, key)}" for key in ("corpus", "split", "task"))
        raise UserError(f"{config.manifest}: no example with {asked}; salmonn manifest info lists what there is")
    chosen = np.random.Generator(np.random.PCG64(config.seed)).permutation(numbers)[: config.n]
    examples = read_rows(config.manifest, EXAMPLES, EXAMPLE_SCHEMA.names, chosen.tolist())
    clips = _clips_of(config.manifest, [example["clip_id"] for example in examples])
    for example in examples:
        _show(example, clips.get(example["clip_id"]))
    print(f"{len(examples)} of {len(numbers):,} examples")


def _matching(config: ManifestSampleConfig) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Return the numbers of the rows that are as asked."""
    wanted = {key: getattr(config, key) for key in ("corpus", "split", "task") if getattr(config, key)}
    parts, start = [np.zeros(0, np.int64)], 0
    for batch in read_batches(config.manifest, EXAMPLES, ["corpus", "split", "task"]):
        matches = np.ones(batch.num_rows, np.bool_)
        for key, value in wanted.items():
            matches &= pc.equal(batch[key], value).to_numpy(zero_copy_only=False)
        parts.append(start + np.flatnonzero(matches))
        start += batch.num_rows
    return np.concatenate(parts)


def _clips_of(manifest: str, clip_ids: list[str]) -> dict[str, Clip]:
    wanted, clips = pa.array(clip_ids, pa.string()), dict[str, Clip]()
    for batch in read_batches(manifest, CLIPS, CLIP_SCHEMA.names):
        for row in batch.filter(pc.is_in(batch["clip_id"], value_set=wanted)).to_pylist():
            clips[row["clip_id"]] = clip_from_row(row)
    return clips


def _show(example: Mapping[str, Any], clip: Clip | None) -> None:
    print(f"{example['corpus']} · {example['split']} · {example['task']}")
    try:
        own = "" if example["question"] else "  (the task's first)"
        print(f"  question   {question_for(example['task'], question=example['question'])}{own}")
    except LLMError as error:
        print(f"  question   none: {error}")
    print(f"  answer     {example['answer']}")
    for segment in clip.located() if clip else ():
        print(f"  recording  {segment.recording}{_times(segment)}")
    length = (
        "not in the manifest" if clip is None else "length unknown" if clip.seconds is None else f"{clip.seconds:.2f} s"
    )
    print(f"  clip       {example['clip_id']}, {length}\n")


def _times(segment: Segment) -> str:
    if segment.duration_seconds is not None:
        return f"  {segment.start_seconds:.2f} to {segment.start_seconds + segment.duration_seconds:.2f} s"
    return f"  from {segment.start_seconds:.2f} s" if segment.start_seconds else ""
