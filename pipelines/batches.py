"""From examples and cached features to batches, in an order that depends on the seed alone.

Position p of a training run is example `order(epoch)[p % n]` of epoch `p // n`, where n is what an epoch holds: every
example once, or what a mix draws. Global batch s holds positions s·B … (s+1)·B-1. Nothing else is needed to know which
example comes next, on any number of workers. Its examples are dealt to micro-batches by their texts' lengths, so that
all workers are done at the same time.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llm.prompts import question_for
from llm.salmonn import Batch
from pipelines import storage
from pipelines.cache.reader import FeatureCache
from pipelines.manifest.tables import EXAMPLES, read_examples
from pipelines.mix import Indices, MixRow, Mixture, make_mixture

HASHED_ROWS = 65_536
"""Ids that are Python texts at a time."""
COLUMNS = ["example_id", "clip_id", "task", "question", "answer"]


@dataclass(frozen=True)
class ExampleSet:
    """Examples whose clips lie in a cache; `positions` are their rows in its index. About 300 bytes per example.

    An epoch of them is what `mixture` draws, without one every example once, in the order of `shards` if there is one.
    """

    table: pa.Table
    positions: Indices
    missing: pa.Table
    """example_id and clip_id of those that the cache lacks, which are left out."""
    mixture: Mixture | None = None
    shards: "ShardOrder | None" = None

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def digest(self) -> str:
        """Name these examples in this order; a run that continues on others would not go on where it stopped."""
        digest = hashlib.sha256()
        for batch in self.table.select(["example_id"]).to_batches(max_chunksize=HASHED_ROWS):
            digest.update("".join(batch["example_id"].to_pylist()).encode())
        if self.shards:
            digest.update(self.shards.numbers.tobytes())
        return digest.hexdigest()

    def rows(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return examples as dictionaries with the keys of `COLUMNS`."""
        rows: list[dict[str, Any]] = self.table.take(pa.array(indices, pa.int64())).to_pylist()
        return rows


def load_examples(
    manifest: str,
    cache: FeatureCache,
    *,
    splits: Sequence[str],
    tasks: Sequence[str],
    max_missing_fraction: float,
    mix: Sequence[MixRow] = (),
    shard_window: int = 0,
) -> ExampleSet:
    """Join a manifest's examples with a cache; an empty list of splits or tasks stands for all, or all of the mix.

    With a `shard_window` they come shard by shard, shuffled among so many.

    Raises:
        ValueError: If nothing is selected, or all of it, or more than `max_missing_fraction`, has no features in the
            cache.
    """
    tasks = tasks or sorted({row.task for row in mix})
    splits_read = splits and sorted({*splits, *(split for row in mix for split in row.splits)})
    next(read_examples(manifest), None)  # its errors name what a manifest is
    filesystem, path = storage.resolve(storage.join(manifest, EXAMPLES))
    conditions = [(name, "in", list(names)) for name, names in (("split", splits_read), ("task", tasks)) if names]
    columns = [*COLUMNS, "corpus", "split"] if mix else COLUMNS
    table = pq.read_table(path, filesystem=filesystem, columns=columns, filters=conditions or None)
    if table.num_rows == 0:
        raise ValueError(_nothing_selected(manifest, splits, tasks))
    positions = cache.positions(table["clip_id"])
    missing = int((positions < 0).sum())
    if missing > max_missing_fraction * table.num_rows or missing == table.num_rows:
        first = table["clip_id"][int(np.argmax(positions < 0))].as_py()
        raise ValueError(
            f"{cache.uri} lacks the features of {missing} of {table.num_rows} examples (the first: clip {first}), more "
            f"than max_missing_fraction={max_missing_fraction} allows; salmonn extract adds what was not rejected"
        )
    missing_ids = table.filter(pa.array(positions < 0)).select(["example_id", "clip_id"])
    table = table.filter(pa.array(positions >= 0))
    positions = positions[positions >= 0]
    mixture = make_mixture(mix, table, splits=splits) if mix else None
    shards = ShardOrder.of(cache.shard_numbers()[positions], shard_window) if shard_window else None
    # In one chunk: picking some rows of many chunks takes time that grows with the table.
    return ExampleSet(table.select(COLUMNS).combine_chunks(), positions, missing_ids, mixture, shards)


def _nothing_selected(manifest: str, splits: Sequence[str], tasks: Sequence[str]) -> str:
    filesystem, path = storage.resolve(storage.join(manifest, EXAMPLES))
    table = pq.read_table(path, filesystem=filesystem, columns=["split", "task"])
    found = {name: ", ".join(sorted(pc.unique(table[name]).to_pylist())) for name in ("split", "task")}
    return (
        f"{manifest}: no example has splits={list(splits)} and tasks={list(tasks)}; "
        f"splits found: {found['split']}; tasks found: {found['task']}"
    )


@dataclass(frozen=True, eq=False)
class ShardOrder:
    """Brings the examples of neighbouring shards together, for storage that is best read from end to end."""

    numbers: Indices
    """[N] The shard that each example's clip lies in, counted among those that hold any."""
    window: int
    """[shards] Examples are shuffled among so many shards."""

    @classmethod
    def of(cls, numbers: Indices, window: int) -> "ShardOrder":
        """Count the shards anew, so that those that hold none of the examples do not matter."""
        return cls(np.unique(numbers, return_inverse=True)[1].astype(np.int64), window)

    def group(self, order_E: Indices, *, seed: int, epoch: int) -> Indices:
        """Return an epoch's examples window by window, shards in an order drawn anew; in a window as they came."""
        drawn = np.random.Generator(np.random.PCG64([seed, epoch, 1])).permutation(int(self.numbers.max()) + 1)
        grouped: Indices = order_E[np.argsort(drawn[self.numbers[order_E]] // self.window, kind="stable")]
        return grouped


@lru_cache(maxsize=2)
def epoch_order(
    num_examples: int, seed: int, epoch: int, mixture: Mixture | None = None, shards: ShardOrder | None = None
) -> Indices:
    """Return the examples of an epoch in their order, which depends on nothing but the arguments.

    Without a mixture it is a permutation of all; with one, `num_examples` is the mixture's `epoch_examples`.
    """
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_examples)
    order = mixture.draw(seed, epoch)[order] if mixture else order
    return shards.group(order, seed=seed, epoch=epoch) if shards else order


def global_batch(
    step: int,
    *,
    batch_examples: int,
    num_examples: int,
    seed: int,
    mixture: Mixture | None = None,
    shards: ShardOrder | None = None,
) -> list[tuple[int, int]]:
    """Return (epoch, example index) of every example of a step; an epoch holds what a mixture, if any, draws."""
    epoch_examples = mixture.epoch_examples if mixture else num_examples
    places = (divmod(step * batch_examples + offset, epoch_examples) for offset in range(batch_examples))
    return [(epoch, int(epoch_order(epoch_examples, seed, epoch, mixture, shards)[place])) for epoch, place in places]


def micro_batches(
    batch: Sequence[tuple[int, int]], num_tokens: Sequence[int], *, size: int
) -> list[list[tuple[int, int]]]:
    """Deal a global batch into parts of at most `size` examples and nearly equal sums of tokens.

    The longest example goes first, each to the part with the fewest tokens that has room. Part j is the work of rank j
    modulo the number of workers; the parts do not depend on that number.
    """
    places: list[list[int]] = [[] for _ in range(-(-len(batch) // size))]
    sums = [0] * len(places)
    for place in sorted(range(len(batch)), key=lambda place: -num_tokens[place]):
        part = min((part for part in range(len(places)) if len(places[part]) < size), key=sums.__getitem__)
        places[part].append(place)
        sums[part] += num_tokens[place]
    return [[batch[place] for place in sorted(part)] for part in places]


def read_texts(
    examples: ExampleSet, picked: Sequence[tuple[int, int]], *, prompt_seed: int | None
) -> list[tuple[str, str]]:
    """Return question and answer of some (epoch, example index), as `read_batch` does."""
    rows = examples.rows([index for _, index in picked])
    return [
        (
            question_for(
                row["task"], question=row["question"], example_id=row["example_id"], seed=prompt_seed, epoch=epoch
            ),
            row["answer"],
        )
        for row, (epoch, _) in zip(rows, picked, strict=True)
    ]


def read_batch(
    examples: ExampleSet,
    cache: FeatureCache,
    picked: Sequence[tuple[int, int]],
    *,
    frames: int,
    prompt_seed: int | None,
) -> Batch:
    """Read the features of some (epoch, example index) and ask their questions.

    Args:
        examples: Where the indices point to.
        cache: Where the features lie.
        picked: What to read.
        frames: How many frames of each stream are heard, from the clip's start.
        prompt_seed: Chooses among a task's prompts per example and epoch; None takes the first, as in evaluation.
    """
    texts = read_texts(examples, picked, prompt_seed=prompt_seed)
    return join_features(examples, cache, picked, dict(zip(picked, texts, strict=True)), frames=frames)


def join_features(
    examples: ExampleSet,
    cache: FeatureCache,
    picked: Sequence[tuple[int, int]],
    texts: Mapping[tuple[int, int], tuple[str, str]],
    *,
    frames: int,
    pin_memory: bool = False,
) -> Batch:
    """Read the features of some (epoch, example index) and put their questions and answers beside them."""
    positions = [int(examples.positions[index]) for _, index in picked]
    streams = cache.read_frames(positions, frames=frames, pin_memory=pin_memory)
    speech, audio = streams["speech"], streams.get("audio")
    return Batch(
        speech.frames,
        audio.frames if audio else None,
        audio.lengths if audio else None,
        [texts[place][0] for place in picked],
        [texts[place][1] for place in picked],
        speech_scale=speech.scale,
        audio_scale=audio.scale if audio else None,
    )


def make_batch(
    streams: Sequence[dict[str, Tensor]], questions: Sequence[str], answers: Sequence[str], *, frames: int
) -> Batch:
    """Stack the first frames of clips of different lengths, zeros after their ends, real lengths beside them."""
    speech = torch.stack([clip["speech"][:frames] for clip in streams])
    if "audio" not in streams[0]:
        return Batch(speech, None, None, list(questions), list(answers))
    audio = [clip["audio"][:frames] for clip in streams]
    lengths = torch.tensor([len(clip) for clip in audio])
    return Batch(speech, pad_sequence(audio, batch_first=True), lengths, list(questions), list(answers))
