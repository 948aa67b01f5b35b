"""What each training worker does: its share of every global batch, one sum over workers, one step.

The update is that of the mean loss over the target tokens of the global batch, whatever the number of workers: each
worker adds up the gradients of its tokens' summed losses, one all-reduce adds the workers up, and the division by the
number of tokens comes last. Dropout is seeded per micro-batch, and sums are kept in float64, where the order of so few
terms leaves nothing behind once the result is float32: who computes what changes no bit.
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from llm.decoding.layers import require_decoding
from llm.lora import set_lora_scaling
from llm.packing import require_packing
from llm.sharding import shard_llm
from pipelines import storage
from pipelines.batches.example_set import ExampleSet
from pipelines.batches.micro_batch import MicroBatchReader, WorkerBatch, loss_by_task
from pipelines.batches.mix import load_mix
from pipelines.batches.order import global_batch
from pipelines.errors import JobIncompleteError, UserError
from pipelines.interface.words import counted
from pipelines.runs.checkpoint import CheckpointWriter, load_optimizer, load_weights
from pipelines.runs.folder import (
    MIX,
    best_checkpoint,
    complete_steps,
    delete_checkpoint,
    start_step,
    unfinished_steps,
)
from pipelines.runs.metrics import CHECKPOINT, COMPUTE, SUM, UPDATE, VALIDATION, WAIT
from pipelines.runs.model import build_model
from pipelines.runs.spec import RunSpec
from pipelines.storage.ahead import ReadAhead
from pipelines.training.config import TrainConfig
from pipelines.training.monitoring.metrics_log import MetricsLog
from pipelines.training.monitoring.step_timer import StepTimer
from pipelines.training.monitoring.watch import describe_line
from pipelines.training.optim import learning_rate, make_optimizer
from pipelines.training.worker.agreement import together
from pipelines.training.worker.resources import RunResources
from pipelines.training.worker.step_sums import StepSums
from pipelines.training.worker.validation import Validation, means

logger = logging.getLogger(__name__)


@dataclass
class Tally:
    """What was seen since the last line of metrics."""

    sums: torch.Tensor
    """[tasks, 3] As in `micro_batch`, of the steps that were not skipped."""
    examples_by_task: NDArray[np.int64]
    start: float = field(default_factory=time.perf_counter)
    skipped: int = 0
    heard_seconds: float = 0.0
    example_ids: Any = field(default_factory=hashlib.sha256)

    @classmethod
    def of(cls, tasks: list[str]) -> "Tally":
        return cls(torch.zeros(len(tasks), 3, dtype=torch.float64), np.zeros(len(tasks), np.int64))


class TrainWorker:
    """One worker's model, optimizer and place in the run."""

    def __init__(
        self,
        config: TrainConfig,
        rank: int,
        world: int,
        device: torch.device,
        *,
        resources: RunResources | None = None,
        preempted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Build the model and find the place to go on from.

        `resources` are what other runs of this process opened; `preempted` tells that machines are about to go.
        Raises as `together`.
        """
        torch.set_num_threads(config.threads)
        self.config, self.rank, self.world, self.device = config, rank, world, device
        self.resources = resources or RunResources()
        self.build = resources.build if resources else build_model  # which keeps no LLM beside the model's
        self.preempted, self.was_preempted = preempted, False
        self.sharded = config.shard_llm and world > 1
        with together(config.run, device=device):
            self._open()
        if self.sharded:
            shard_llm(self.model.llm, device, world=world)
            self.model.to(device)
        with together(config.run, device=device):
            require_packing(self.model.llm)
            require_decoding(self.model.llm)
        if config.gradient_checkpointing:
            self.model.llm.activation_checkpointing_enable()
        self.parameters = self.model.trainable_parameters()
        self.optimizer = make_optimizer(self.parameters, config.optim)
        self.sums = StepSums(self.parameters, len(self.tasks), device)
        self.writer = CheckpointWriter()
        self.step = self._restore()
        self.timer = StepTimer(device)
        self.skipped_in_row = 0
        best = best_checkpoint(config.run, self.validation.reader.examples.digest) if self.validation else None
        self.lowest_valid_loss = best[1] if best else math.inf

    def _open(self) -> None:
        """Open the data, which must be what the run began with, and build the model."""
        config = self.config
        whole_shards = 2 * config.shard_window if config.order == "shards" else 0
        self.cache = self.resources.open_cache(config.cache, config.read, whole_shards=whole_shards)
        mix = load_mix(storage.join(config.run, MIX)) if config.mix else ()
        self.examples = self.resources.load_train_examples(config, self.cache, mix)
        self.spec = RunSpec.read(config.run)
        if self.spec.examples_digest != self.examples.digest:
            raise UserError(f"began with other examples than {config.manifest} and {config.cache} hold now")
        built_on = "cpu" if self.sharded else str(self.device)
        self.model = self.build(self.spec, config.run, device=built_on, seed=config.seed)
        self.model.max_answer_tokens = config.max_answer_tokens
        set_lora_scaling(self.model.llm, config.lora_scaling)
        self.reader = self._reader(self.examples, prompt_seed=config.seed)
        self.tasks = self.reader.tasks
        self.validation = self._validation() if config.valid_every else None

    def _reader(self, examples: ExampleSet, *, prompt_seed: int | None) -> MicroBatchReader:
        return MicroBatchReader(
            examples,
            self.cache,
            self.model,
            heard=self.spec.heard,
            prompt_seed=prompt_seed,
            pin_memory=self.device.type == "cuda",
        )

    def _validation(self) -> Validation:
        examples = self.resources.load_valid_examples(self.config, self.cache, self.tasks)
        config = self.config
        return Validation(
            self._reader(examples, prompt_seed=None),
            config.batch_examples,
            config.micro_batch_examples,
            config.read,
            self.sharded,
        )

    def _restore(self) -> int:
        """Load the newest checkpoint, or the run before, and return the step to continue from."""
        run, init_from, step, start = self.config.run, self.config.init_from, 0, 0
        with together(run, device=self.device):
            if self.rank == 0:
                for unfinished in unfinished_steps(run):  # of a worker that was killed while it wrote or removed one
                    delete_checkpoint(run, unfinished)
                step = max(complete_steps(run), default=0)
                start = start_step(run, init_from) if init_from and not step else 0
        if self.world > 1:  # what one worker sees another may not yet
            steps = torch.tensor([step, start], device=self.device)
            dist.broadcast(steps, src=0)
            step, start = steps.tolist()
        with together(run, device=self.device):
            if step:
                load_weights(run, step, self.model)
                load_optimizer(run, step, self.optimizer)
            elif init_from:
                load_weights(init_from, start, self.model)
        return step

    def run(self) -> None:
        """Train to the last step, writing metrics and checkpoints on rank 0.

        Raises:
            JobIncompleteError: On all workers alike, where trying again would change nothing.
        """
        for line in self.lines():
            logger.info("step %d: %s", line["step"], describe_line(line))

    def lines(self) -> Iterator[dict[str, Any]]:
        """Train as `run` does, yielding rank 0's lines of metrics, each once it is saved.

        Whoever wants no more of them closes the generator, and training ends there.
        """
        config, tally = self.config, Tally.of(self.tasks)
        log = MetricsLog(config, self.tasks, first_step=self.step) if self.rank == 0 else None
        self.model.train()
        read, steps = config.read, range(self.step, config.steps)
        # Each micro-batch has the reader's time, and it names the clip; this is for what hangs elsewhere.
        ahead = ReadAhead(
            self.read_batch, steps, ahead_steps=read.ahead_steps, timeout_seconds=2 * read.timeout_seconds
        )
        try:
            for _ in steps:
                self.train_step(self._take(ahead), tally)
                self.step += 1
                try:
                    found = self._validate(tally)
                except JobIncompleteError:
                    if log:  # what is learnt stays
                        self._write(log, tally, {}, ends=True)
                    raise
                if log and (line := self._write(log, tally, found)):
                    yield line
                    tally = Tally.of(self.tasks)
        finally:
            self.writer.wait()
            if log:
                log.close()

    def _take(self, ahead: ReadAhead[WorkerBatch]) -> WorkerBatch:
        """Return this worker's part of the next step; raises as `together` where one worker's is damaged or gone."""
        where, timed = f"{self.config.run}: step {self.step + 1}", self.timer.part(SUM)
        with together(where, device=self.device, timed=timed), self.timer.part(WAIT):
            return ahead.take()

    def read_batch(self, step: int) -> WorkerBatch:
        """Read this worker's micro-batches of a step."""
        config = self.config
        picked = global_batch(
            step,
            batch_examples=config.batch_examples,
            num_examples=len(self.examples),
            seed=config.seed,
            mixture=self.examples.mixture,
            shards=self.examples.shards,
        )
        size = config.micro_batch_examples
        return self.reader.read(picked, size=size, rank=self.rank, world=self.world, in_step=self.sharded)

    def train_step(self, batch: WorkerBatch, tally: Tally) -> None:
        """Go one step with this worker's part of a batch; the sums go into the tally, the times to the timer."""
        self.sums.clear()
        with self.timer.part(COMPUTE):
            for part in batch.mine:
                torch.manual_seed((self.config.seed * 1_000_003 + self.step) * 4_096 + part.number)
                loss, by_task = loss_by_task(self.model, part, len(self.tasks), self.device)
                loss.backward()
                self.sums.add(by_task)
            if batch.filler:
                loss, _ = loss_by_task(self.model, batch.filler, len(self.tasks), self.device)
                (0.0 * loss).backward()
        with self.timer.part(SUM):
            if self.world > 1:
                self.sums.add_up_workers()
        tally.examples_by_task += batch.examples_by_task
        tally.heard_seconds += batch.heard_seconds
        tally.example_ids.update("".join(batch.example_ids).encode())
        with self.timer.part(UPDATE):
            updated = self._update()
        self.timer.end_step(nbytes=batch.nbytes)
        if updated:
            tally.sums += self.sums.by_task.cpu()
            self.skipped_in_row = 0
        else:
            tally.skipped += 1
            self._count_skipped()

    def _update(self) -> bool:
        optim = self.config.optim
        lr = learning_rate(self.step, self.config.steps, optim)
        return self.sums.apply(self.optimizer, lr=lr, clip_norm=optim.clip_norm)

    def _count_skipped(self) -> None:
        self.skipped_in_row += 1
        if self.skipped_in_row >= self.config.max_skipped_steps:
            raise JobIncompleteError(
                f"{self.config.run}: loss or gradient was not finite in "
                f"{counted(self.skipped_in_row, 'step')} in a row, the last of them step {self.step + 1}; "
                "checkpoints stay (max_skipped_steps, optim.lr, precision)"
            )

    def _validate(self, tally: Tally) -> dict[str, Any]:
        """Return the held-out numbers where they are due; the time they take is not counted as training."""
        config = self.config
        if not self.validation or (self.step % config.valid_every and self.step < config.steps):
            return {}
        start = time.perf_counter()
        with self.timer.part(VALIDATION):
            sums = self.validation.sums(self.model, rank=self.rank, world=self.world, device=self.device)
        tally.start += time.perf_counter() - start
        return means(self.validation.reader.tasks, sums, "valid_")

    def _write(
        self, log: MetricsLog, tally: Tally, found: dict[str, Any], *, ends: bool = False
    ) -> dict[str, Any] | None:
        """Write a checkpoint where one is due, or training ends here, and a line of metrics; return the line.

        Whatever goes on from a checkpoint counts from there, so that a line goes before each.
        """
        config = self.config
        valid_loss = found.get("valid_loss", math.nan)
        improved = valid_loss < self.lowest_valid_loss
        if improved:
            self.lowest_valid_loss = valid_loss
        notice = not self.was_preempted and self.preempted()
        ends = ends or self.step == config.steps
        saved = self.step % config.checkpoint_every == 0 or improved or notice or ends
        line = None
        if self.step % config.log_every == 0 or found or saved:
            line = self._line(tally) | found
            log.append(line)
        if saved:
            state: dict[str, Any] = {"seed": config.seed}
            if self.validation and math.isfinite(valid_loss):
                state |= {"valid_loss": valid_loss, "held_out": self.validation.reader.examples.digest}
            keep = config.keep_checkpoints
            with self.timer.part(CHECKPOINT):
                log.flush()
                self.writer.save(config.run, self.step, self.model, self.optimizer, self.spec, state, keep=keep)
        if notice:
            self.was_preempted = True
            self.writer.wait()
        return line

    def _line(self, tally: Tally) -> dict[str, Any]:
        seconds = time.perf_counter() - tally.start
        counts = zip(self.tasks, tally.examples_by_task.tolist(), strict=True)
        return {
            "step": self.step,
            **means(self.tasks, tally.sums),
            "examples_sha256": tally.example_ids.hexdigest()[:16],
            "lr": learning_rate(self.step - 1, self.config.steps, self.config.optim),
            "examples_by_task": {task: count for task, count in counts if count},
            "examples_per_second": int(tally.examples_by_task.sum()) / seconds,
            "audio_hours_per_second": tally.heard_seconds / 3600 / seconds,
            **self.timer.take(),
            "skipped_steps": tally.skipped,
        }
