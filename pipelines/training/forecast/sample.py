"""What a run will hear, before it does: what an epoch holds, and how long and large the examples of a sample are.

Letters: N examples of a set, S examples of a sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from encoders.features import Heard
from llm.salmonn import Salmonn
from pipelines.batches.batch import read_texts
from pipelines.batches.example_set import ExampleSet
from pipelines.batches.micro_batch import count_audio_tokens
from pipelines.batches.order import epoch_order, global_batch, micro_batches
from pipelines.cache.clip_index import ClipIndex
from pipelines.storage.arrays import Booleans, Integers
from pipelines.training.config import TrainConfig
from pipelines.training.forecast.cost import MicroBatchSize
from qformer.aligner import Aligner

SAMPLED_EXAMPLES = 4_096
"""A mean over so many is within 2 % where lengths spread as much as they measure, and takes a few seconds."""


@dataclass(frozen=True)
class Epoch:
    """What a pass over a set of examples holds; hours are of what is heard."""

    examples: int
    examples_by_task: dict[str, int]
    audio_hours: float


def count_epoch(examples: ExampleSet, cache: ClipIndex, *, heard_seconds: float) -> Epoch:
    """Count what an epoch draws; a row of a mix that draws some of its examples counts with their mean length."""
    seconds_N = np.minimum(cache.seconds[examples.positions], heard_seconds)
    if not examples.mixture:
        counts = pc.value_counts(examples.table["task"]).to_pylist()
        by_task = {count["values"]: count["counts"] for count in counts}
        return Epoch(len(examples), dict(sorted(by_task.items())), float(seconds_N.sum()) / 3600)
    by_task, hours = {}, 0.0
    for share in sorted(examples.mixture.shares, key=lambda share: share.row.task):
        by_task[share.row.task] = by_task.get(share.row.task, 0) + share.epoch_examples
        hours += share.epoch_examples * float(seconds_N[share.indices].mean()) / 3600
    return Epoch(examples.mixture.epoch_examples, by_task, hours)


def count_clips(examples: ExampleSet, *, places: int, seed: int) -> int:
    """Return how many different clips are at the first places of a run's order."""
    drawn = np.concatenate([share.indices for share in examples.mixture.shares]) if examples.mixture else None
    reachable = len(np.unique(examples.positions if drawn is None else examples.positions[drawn]))
    epoch_examples = examples.mixture.epoch_examples if examples.mixture else len(examples)
    heard = np.zeros(int(examples.positions.max()) + 1, np.bool_)
    for epoch in range(-(-places // epoch_examples)):
        order = epoch_order(epoch_examples, seed, epoch, examples.mixture, examples.shards)
        heard[examples.positions[order[: places - epoch * epoch_examples]]] = True
        if heard.sum() == reachable:
            break
    return int(heard.sum())


@dataclass(frozen=True)
class Sample:
    """The examples of a run's first batches, arrays [S], and their micro-batches."""

    audio_tokens: Integers
    """Tokens that the clips become."""
    positions: Integers
    """Positions of the LLM: audio, question and what of the answer is read."""
    targets: Integers
    """Tokens of the answers, their end included."""
    is_cut: Booleans
    """Answers that `max_answer_tokens` cuts."""
    nbytes: Integers
    """Bytes that storage gives."""
    parts: Sequence[MicroBatchSize]


def draw_sample(examples: ExampleSet, cache: ClipIndex, model: Salmonn, config: TrainConfig, *, heard: Heard) -> Sample:
    """Draw the batches that training would begin with, `SAMPLED_EXAMPLES` or all that the run has; reads no features.

    The model's weights are not needed: it may be on the device `meta`.
    """
    assert isinstance(model.aligner, Aligner)
    size = config.batch_examples
    picked: list[tuple[int, int]] = []
    for step in range(min(config.steps, -(-SAMPLED_EXAMPLES // size))):
        picked += global_batch(
            step,
            batch_examples=size,
            num_examples=len(examples),
            seed=config.seed,
            mixture=examples.mixture,
            shards=examples.shards,
        )
    texts = read_texts(examples, picked, prompt_seed=config.seed)
    positions_of_clips = examples.positions[[index for _, index in picked]]
    audio_tokens = count_audio_tokens(model, heard, cache.seconds[positions_of_clips])
    lengths = [_count(model, *pair, audio_tokens=tokens) for pair, tokens in zip(texts, audio_tokens, strict=True)]
    positions_S, targets_S, is_cut_S = np.array(lengths, np.int64).T
    frames_S, tokens_S = cache.heard_of(positions_of_clips, heard), np.array(audio_tokens, np.int64)
    parts = []
    for start in range(0, len(picked), size):
        places = [(0, place) for place in range(start, start + size)]
        for part in micro_batches(places, positions_S[start : start + size].tolist(), size=config.micro_batch_examples):
            rows = [row for _, row in part]
            positions, targets, tokens = (int(values_S[rows].sum()) for values_S in (positions_S, targets_S, tokens_S))
            parts.append(MicroBatchSize(positions, targets, len(rows) * int(frames_S[rows].max()), tokens))
    nbytes_S = cache.read_nbytes(positions_of_clips, frames=frames_S)
    return Sample(tokens_S, positions_S, targets_S, is_cut_S.astype(np.bool_), nbytes_S, parts)


def _count(model: Salmonn, question: str, answer: str, *, audio_tokens: int) -> tuple[int, int, bool]:
    prompt = model.count_tokens(question, "", num_audio_tokens=audio_tokens)
    positions = model.count_tokens(question, answer, num_audio_tokens=audio_tokens)
    return positions, positions - prompt + 1, model.is_cut(answer)
