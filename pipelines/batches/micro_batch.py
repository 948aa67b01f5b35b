"""Micro-batches with the task of every target token, and their loss task by task, in training and in validation.

Letters: N target tokens of a micro-batch, V vocabulary, T tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from encoders.features import FRAME_RATE_HZ, Heard
from llm.salmonn import Batch, Salmonn
from pipelines.batches.batch import join_features, read_texts
from pipelines.batches.example_set import ExampleSet, tasks_of
from pipelines.batches.order import micro_batches
from pipelines.cache.reader import FeatureCache
from pipelines.storage.arrays import Floats
from qformer.aligner import Aligner

Place = tuple[int, int]
"""(epoch, example index)"""
LOSS, TARGETS, CORRECT = range(3)
"""Columns of a task's sums: nats, target tokens, and target tokens that were the most likely ones."""


@dataclass(frozen=True)
class MicroBatch:
    """What a worker computes at a time; `number` is its place in the whole batch."""

    number: int
    batch: Batch
    token_tasks: Tensor
    """[N] Index of each target token's task."""


@dataclass(frozen=True, kw_only=True)
class WorkerBatch:
    """A worker's micro-batches of a batch, and what the whole batch holds."""

    mine: list[MicroBatch]
    filler: MicroBatch | None
    """One more, computed without effect where all workers have to compute the same number of times."""
    examples_by_task: np.ndarray[tuple[int], np.dtype[np.int64]]
    heard_seconds: float
    example_ids: list[str]
    """Those of the whole batch."""
    nbytes: int
    """[bytes] What storage gives for the whole batch."""


class MicroBatchReader:
    """Reads batches of an example set; about 12 bytes per example beside it."""

    def __init__(
        self,
        examples: ExampleSet,
        cache: FeatureCache,
        model: Salmonn,
        *,
        heard: Heard,
        prompt_seed: int | None,
        pin_memory: bool,
    ) -> None:
        """Take an example set and its cache; `heard` of each clip is heard, `prompt_seed` asks."""
        self.examples, self.tasks = examples, tasks_of(examples)
        self._cache, self._model, self._heard, self._prompt_seed = cache, model, heard, prompt_seed
        self._pin_memory = pin_memory
        found = pc.index_in(examples.table["task"], pa.array(self.tasks))
        self._task_of = found.fill_null(-1).to_numpy().astype(np.int32)

    def read(self, picked: Sequence[Place], *, size: int, rank: int, world: int, in_step: bool = False) -> WorkerBatch:
        """Read one worker's micro-batches of at most `size` of these (epoch, example index).

        With `in_step` a worker that has one less than others gets filler.
        """
        texts = dict(zip(picked, read_texts(self.examples, picked, prompt_seed=self._prompt_seed), strict=True))
        num_tokens = [self._count_tokens(place, *texts[place]) for place in picked]
        parts = list(enumerate(micro_batches(picked, num_tokens, size=size)))
        mine = [self._read(number, part, texts) for number, part in parts[rank::world]]
        filler = None
        if in_step and 0 < len(parts) % world <= rank:
            filler = mine[-1] if mine else self._read(*parts[0], texts)
        indices = [index for _, index in picked]
        positions = self.examples.positions[indices]
        return WorkerBatch(
            mine=mine,
            filler=filler,
            examples_by_task=np.bincount(self._task_of[indices], minlength=len(self.tasks)),
            heard_seconds=float(np.minimum(self._cache.seconds[positions], self._heard.frames / FRAME_RATE_HZ).sum()),
            example_ids=self.examples.table["example_id"].take(pa.array(indices, pa.int64())).to_pylist(),
            nbytes=int(self._cache.read_nbytes(positions, frames=self._cache.heard_of(positions, self._heard)).sum()),
        )

    def _read(self, number: int, part: Sequence[Place], texts: Mapping[Place, tuple[str, str]]) -> MicroBatch:
        batch = join_features(self.examples, self._cache, part, texts, heard=self._heard, pin_memory=self._pin_memory)
        num_targets = [
            self._count_tokens(place, *texts[place]) - self._count_tokens(place, texts[place][0], "") + 1
            for place in part
        ]
        tasks = torch.from_numpy(self._task_of[[index for _, index in part]]).long()
        return MicroBatch(number, batch, tasks.repeat_interleave(torch.tensor(num_targets)))

    def _count_tokens(self, place: Place, question: str, answer: str) -> int:
        num_audio_tokens = count_audio_tokens(
            self._model, self._heard, self._cache.seconds[self.examples.positions[[place[1]]]]
        )[0]
        return self._model.count_tokens(question, answer, num_audio_tokens=num_audio_tokens)


def count_audio_tokens(model: Salmonn, heard: Heard, seconds_N: Floats) -> list[int]:
    """Return how many audio tokens clips of these lengths become."""
    aligner = model.aligner
    assert isinstance(aligner, Aligner)
    count = aligner.num_reached_tokens if heard.hear == "clip" else aligner.num_tokens
    return [count(int(frames)) for frames in heard.frames_of(seconds_N)]


def loss_by_task(model: Salmonn, part: MicroBatch, num_tasks: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a micro-batch's summed loss, to go backward from, and the detached sums [T, 3] in float64."""
    logits_NV, targets_N = model.target_logits(part.batch.to(device, non_blocking=True))
    losses_N = nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
    correct_N = logits_NV.detach().argmax(dim=-1) == targets_N
    sums_N3 = torch.stack([losses_N.detach(), torch.ones_like(losses_N), correct_N], dim=1).double()
    # A product adds up in the same order every time; scattered additions on a GPU do not.
    is_task_TN = part.token_tasks.to(device) == torch.arange(num_tasks, device=device).unsqueeze(1)
    return losses_N.sum(), is_task_TN.double() @ sums_N3
