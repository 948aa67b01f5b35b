"""What each training worker does: its share of every global batch, one sum over workers, one step.

The update is that of the mean loss over the target tokens of the global batch, whatever the number of workers: each
worker adds up the gradients of its tokens' summed losses, one all-reduce adds the workers up, and the division by the
number of tokens comes last. Dropout is seeded per micro-batch, so it does not depend on who computes it either.
"""

import json
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import MISSING
from ray import train as ray_train
from ray.train.torch import get_device

from cluster.connection import RayConfig
from llm.loading import Precision, require_precision
from llm.lora import LoraSettings, set_lora_scaling
from llm.packing import require_packing
from llm.salmonn import Batch
from pipelines import storage
from pipelines.batches import ExampleSet, global_batch, load_examples, micro_batches, read_batch, read_texts
from pipelines.checkpoint import RunSpec, complete_steps, load_optimizer, load_weights, save_checkpoint
from pipelines.config import require_range
from pipelines.feature_cache import FeatureCache
from pipelines.mix import load_mix
from pipelines.optim import OptimConfig, learning_rate, make_optimizer
from qformer.aligner import Aligner, QFormerConfig

METRICS, MIX = "metrics.jsonl", "mix.yaml"


@dataclass(frozen=True)
class TrainConfig:
    manifest: str = MISSING
    """[URI] Folder of the manifest whose examples are learnt."""
    cache: str = MISSING
    """[URI] Folder of the feature cache that holds their clips."""
    run: str = MISSING
    """[URI] Folder of this run; a run that was stopped continues from its newest checkpoint."""
    llm: str = MISSING
    """[path|name|tiny] Hugging Face folder of a causal language model or its name on the hub, organisation/model; tiny:
    a small seeded random one."""
    init_from: str = ""
    """[URI] Run of the stage before, whose aligner, adapter and tiny LLM this one starts from; empty: from scratch."""
    splits: list[str] = field(default_factory=lambda: ["train"])
    """[names] Splits of the manifest to learn from; empty: all."""
    tasks: list[str] = field(default_factory=list)
    """[names] Tasks to learn; empty: all, or those of the mix."""
    mix: str = ""
    """[name|URI] How much of which corpus and task an epoch holds: stage1, stage2, stage3, or a YAML file that lists
    rows of task, corpus, examples and weight; empty: every example once."""
    steps: int = 90_000
    """[steps] Length of the run."""
    batch_examples: int = 64
    """[examples] Global batch of a step, over all workers."""
    micro_batch_examples: int = 8
    """[examples] Most that a worker computes at a time; a global batch is dealt into such parts, of equal tokens."""
    heard_seconds: float = 30.0
    """[seconds] How much of each clip is heard, of its 30 s of frames; less makes short clips cheap to train on."""
    max_answer_tokens: int = 300
    """[tokens] Longer answers are cut."""
    lora_scaling: float = 1.0
    """[factor] On LoRA's alpha/rank; activation tuning trains below 1."""
    seed: int = 0
    """[number] Order of examples, choice of prompts, first weights, dropout."""
    max_missing_fraction: float = 0.05
    """[fraction] Share of the examples whose clips the cache may lack (they were rejected, say)."""
    precision: Precision = "float32"
    """[dtype] The frozen LLM's weights, int8 and int4 through bitsandbytes; aligner and LoRA train in float32."""
    gradient_checkpointing: bool = False
    """[switch] Keep only what enters each of the LLM's layers and compute the rest again: less memory, more time."""
    workers: int = 1
    """[count] Training processes, a GPU each if the cluster has any."""
    threads: int = 1
    """[count] CPU threads (and Ray CPUs) of each worker."""
    checkpoint_every: int = 1_000
    """[steps] Between checkpoints."""
    keep_checkpoints: int = 2
    """[count] Newest checkpoints to keep."""
    log_every: int = 10
    """[steps] Between lines of metrics.jsonl."""
    max_failures: int = 3
    """[count] Restarts after lost workers or nodes before the job gives up."""
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        """Check ranges and what is installed."""
        require_precision(self.precision)
        counts = ("steps", "batch_examples", "micro_batch_examples", "max_answer_tokens", "workers", "threads")
        require_range(self, (*counts, "checkpoint_every", "keep_checkpoints", "log_every"), low=1)
        require_range(self, ("max_failures",), low=0)
        require_range(self, ("seed",), low=0, high=2**31)
        require_range(self, ("max_missing_fraction",), low=0, high=1)
        require_range(self, ("heard_seconds",), low=max(1.0, self.qformer.window_seconds), high=30)


class MetricsLog:
    """The lines of metrics.jsonl up to the step a run continues from; the file is rewritten whole at every line."""

    def __init__(self, run: str, *, first_step: int) -> None:
        self._uri = storage.join(run, METRICS)
        lines = read_metrics(run) if first_step else []
        self._lines = [line for line in lines if line["step"] <= first_step]

    def append(self, line: dict[str, Any]) -> None:
        self._lines.append(line)
        storage.write_bytes(self._uri, "".join(json.dumps(line) + "\n" for line in self._lines).encode())


def read_metrics(run: str) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics; none if it has not written any."""
    uri = storage.join(run, METRICS)
    if not storage.file_exists(uri):
        return []
    return [json.loads(line) for line in storage.read_bytes(uri).decode().splitlines()]


@dataclass
class Tally:
    """What was seen since the last line of metrics."""

    start: float = field(default_factory=time.perf_counter)
    loss: float = 0.0
    targets: int = 0
    correct: int = 0
    examples: int = 0
    waited: float = 0.0
    skipped: int = 0


def train_loop(settings: dict[str, list[TrainConfig]]) -> None:
    """Train runs one after the other on one worker of a Ray Train job, but for those that are complete."""
    context = ray_train.get_context()
    for config in settings["configs"]:
        if complete_steps(config.run)[-1:] != [config.steps]:
            TrainWorker(config, context.get_world_rank(), context.get_world_size(), get_device()).run()
        if dist.is_initialized():
            dist.barrier()  # rank 0 has written what the next run starts from


class TrainWorker:
    """One worker's model, optimizer and place in the run."""

    def __init__(self, config: TrainConfig, rank: int, world: int, device: torch.device) -> None:
        torch.set_num_threads(config.threads)
        self.config, self.rank, self.world, self.device = config, rank, world, device
        self.cache = FeatureCache(config.cache)
        self.examples: ExampleSet = load_examples(
            config.manifest,
            self.cache,
            splits=config.splits,
            tasks=config.tasks,
            max_missing_fraction=config.max_missing_fraction,
            mix=load_mix(storage.join(config.run, MIX)) if config.mix else (),
        )
        self.spec = RunSpec.read(config.run)
        self.model = self.spec.build(config.run, device=str(device), seed=config.seed)
        self.model.max_answer_tokens = config.max_answer_tokens
        set_lora_scaling(self.model.llm, config.lora_scaling)
        require_packing(self.model.llm)
        if config.gradient_checkpointing:
            self.model.llm.activation_checkpointing_enable()
        self.parameters = self.model.trainable_parameters()
        self.optimizer = make_optimizer(self.parameters, config.optim)
        self.step = self._restore()

    def _restore(self) -> int:
        """Load the newest checkpoint, or the run before, and return the step to continue from."""
        steps = complete_steps(self.config.run)
        if steps:
            load_weights(self.config.run, steps[-1], self.model)
            load_optimizer(self.config.run, steps[-1], self.optimizer)
            return steps[-1]
        if self.config.init_from:
            load_weights(self.config.init_from, complete_steps(self.config.init_from)[-1], self.model)
        return 0

    def run(self) -> None:
        """Train to the last step, writing metrics and checkpoints on rank 0."""
        config, tally = self.config, Tally()
        log = MetricsLog(config.run, first_step=self.step)
        self.model.train()
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._read, self.step)
            while self.step < config.steps:
                batches = self._take(ahead, tally)
                if self.step + 1 < config.steps:
                    ahead = reader.submit(self._read, self.step + 1)
                self._train_step(batches, tally)
                self.step += 1
                if self.rank == 0:
                    tally = self._write(log, tally)

    def _take(self, ahead: "Future[list[tuple[int, Batch]]]", tally: Tally) -> list[tuple[int, Batch]]:
        start = time.perf_counter()
        batches = ahead.result()
        tally.waited += time.perf_counter() - start
        return batches

    def _read(self, step: int) -> list[tuple[int, Batch]]:
        """Read this worker's micro-batches of a step, with their numbers."""
        config, frames, seed = self.config, self.spec.frames, self.config.seed
        picked = global_batch(
            step,
            batch_examples=config.batch_examples,
            num_examples=len(self.examples),
            seed=seed,
            mixture=self.examples.mixture,
        )
        assert isinstance(self.model.aligner, Aligner)
        num_audio_tokens = self.model.aligner.num_tokens(frames)
        num_tokens = [
            self.model.count_tokens(question, answer, num_audio_tokens=num_audio_tokens)
            for question, answer in read_texts(self.examples, picked, prompt_seed=seed)
        ]
        parts = list(enumerate(micro_batches(picked, num_tokens, size=config.micro_batch_examples)))
        mine = parts[self.rank :: self.world]
        return [
            (number, read_batch(self.examples, self.cache, part, frames=frames, prompt_seed=seed))
            for number, part in mine
        ]

    def _train_step(self, batches: Sequence[tuple[int, Batch]], tally: Tally) -> None:
        counts = torch.zeros(3, device=self.device)
        for number, batch in batches:
            torch.manual_seed((self.config.seed * 1_000_003 + self.step) * 4_096 + number)
            loss = self.model.loss(batch.to(self.device))
            loss.total.backward()
            counts += torch.stack([loss.total.detach(), counts.new_tensor(loss.num_targets), loss.num_correct.float()])
        loss_sum, targets, correct = self._reduce(counts)
        tally.loss, tally.targets, tally.correct = (
            tally.loss + loss_sum,
            tally.targets + int(targets),
            tally.correct + int(correct),
        )
        tally.examples += self.config.batch_examples
        tally.skipped += not self._update()

    def _reduce(self, counts: torch.Tensor) -> tuple[float, float, float]:
        """Add up gradients and counts over the workers, in one message, and make the gradients those of the mean."""
        gradients = [
            parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            for parameter in self.parameters.values()
        ]
        flat = torch.cat([counts, *(gradient.flatten().float() for gradient in gradients)])
        if self.world > 1:
            dist.all_reduce(flat)
        loss_sum, targets, correct = flat[:3].tolist()
        parts = flat[3:].div_(max(targets, 1.0)).split([parameter.numel() for parameter in self.parameters.values()])
        for parameter, part in zip(self.parameters.values(), parts, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)
        return loss_sum, targets, correct

    def _update(self) -> bool:
        """Take one optimizer step; gradients that are not finite are dropped and False is returned."""
        config = self.config.optim
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), config.clip_norm or float("inf"))
        finite = bool(torch.isfinite(norm))
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.step, self.config.steps, config)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return finite

    def _write(self, log: MetricsLog, tally: Tally) -> Tally:
        """Write a line of metrics and a checkpoint where they are due; return the tally to go on with."""
        config, last = self.config, self.step == self.config.steps
        due = self.step % config.log_every == 0 or last
        if due:
            seconds = time.perf_counter() - tally.start
            log.append(
                {
                    "step": self.step,
                    "loss": tally.loss / max(tally.targets, 1),
                    "token_accuracy": tally.correct / max(tally.targets, 1),
                    "lr": learning_rate(self.step - 1, config.steps, config.optim),
                    "examples_per_second": tally.examples / seconds,
                    "data_wait_fraction": tally.waited / seconds,
                    "skipped_steps": tally.skipped,
                }
            )
        if self.step % config.checkpoint_every == 0 or last:
            state, keep = {"seed": config.seed}, config.keep_checkpoints
            save_checkpoint(config.run, self.step, self.model, self.optimizer, self.spec, state, keep=keep)
        return Tally() if due else tally
