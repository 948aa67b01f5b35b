"""The order of examples: it depends on the seed alone, not on the number of workers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipelines.batches.mix import Mixture
from pipelines.storage.arrays import Indices


@dataclass(frozen=True, eq=False)
class ShardOrder:
    """Brings the examples of neighbouring shards together, for storage that is best read from end to end."""

    numbers: Indices
    """[N] The shard that holds each example's clip, counted among the shards that hold any."""
    window: int
    """[shards] Examples are shuffled among so many shards."""

    @classmethod
    def of(cls, numbers: Indices, window: int) -> "ShardOrder":
        """Count the shards anew, so that shards that hold none of the examples do not matter."""
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
