"""The keys of a training run: data, model, steps, machines."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from omegaconf import MISSING

from cluster.config import RayConfig
from llm.settings import LoraSettings, Precision, is_hub_name, require_precision
from pipelines import storage
from pipelines.cache.read_config import ReadConfig
from pipelines.cache.recipe import read_recipe
from pipelines.errors import UserError
from pipelines.interface.config import is_yaml, require_range
from pipelines.interface.help import CHANGE
from pipelines.interface.words import command
from pipelines.manifest.tables import require_clips
from pipelines.training.alarms import AlarmConfig
from qformer.config import CLIP_SECONDS, QFormerConfig


@dataclass(frozen=True)
class OptimConfig:
    lr: float = 3e-5
    """[1] Highest learning rate, reached after the warm-up."""
    min_lr: float = 1e-5
    """[1] Learning rate at the last step."""
    warmup_lr: float = 1e-6
    """[1] Learning rate at the first step."""
    warmup_steps: int = 3000
    """[steps] Length of the linear warm-up."""
    weight_decay: float = 0.05
    """[1] AdamW's decay of matrices and query tokens; norms and biases do not decay."""
    beta1: float = 0.9
    """[1] AdamW's decay of the gradient's mean."""
    beta2: float = 0.999
    """[1] AdamW's decay of its square."""
    clip_norm: float = 1.0
    """[L2 norm] Gradients are scaled down to this norm; 0: never."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("clip_norm", "weight_decay", "warmup_steps"), low=0)
        require_range(self, ("beta1", "beta2"), low=0, high=0.999999)
        if not 0.0 <= self.warmup_lr <= self.lr or not 0.0 <= self.min_lr <= self.lr:
            raise UserError(f"optim: warmup_lr and min_lr must lie between 0 and lr={self.lr}")


CONFIG_DIR = Path(__file__).parent / "configs"
FREE, GROWS = {CHANGE: "free"}, {CHANGE: "grows"}
"""Marks of a key that may change when a run continues: it does not change what is computed, or, `steps`, may grow.
(Recipe, examples and mix are compared by what they hold.)"""


@dataclass(frozen=True)
class TrainConfig:
    SHIPPED: ClassVar[Mapping[str, Path]] = {path.stem: path for path in sorted(CONFIG_DIR.glob("*.yaml"))}
    """YAML files that are given by their names."""

    manifest: str = field(default=MISSING, metadata=FREE)
    """[URI] Folder of the manifest whose examples are learnt."""
    cache: str = field(default=MISSING, metadata=FREE)
    """[URI] Folder of the feature cache that holds their clips."""
    run: str = field(default="", metadata=FREE)
    """[URI] Folder of this run; a run that was stopped continues from its newest checkpoint. Empty: `runs`/`name`."""
    runs: str = field(default="", metadata=FREE)
    """[URI] Folder of several stages' runs, each in a folder of its name."""
    name: str = field(default="", metadata=FREE)
    """[name] This stage's, in `runs`."""
    after: str = field(default="", metadata=FREE)
    """[name] Stage in `runs` that this one starts from, where `init_from` is empty."""
    llm: str = MISSING
    """[path|name|tiny] Hugging Face folder of a causal language model or its name on the hub, organisation/model; tiny:
    a small seeded random one."""
    init_from: str = ""
    """[URI] Run of the stage before, whose aligner, adapter and tiny LLM this one starts from; empty: from scratch."""
    splits: list[str] = field(default_factory=lambda: ["train"])
    """[names] Splits of the manifest to learn from; empty: all."""
    tasks: list[str] = field(default_factory=list)
    """[names] Tasks to learn; empty: all, or the mix's."""
    mix: str = field(default="", metadata=FREE)
    """[name|URI] How much of which corpus and task an epoch holds: stage1, stage2, stage3, or a YAML file that lists
    rows of task, corpus, examples and weight; empty: every example once."""
    order: Literal["shuffled", "shards"] = "shuffled"
    """[name] shuffled: any example may come next. shards: those of `shard_window` shards are shuffled among themselves,
    and each worker fetches shards whole, one after the other: for a store that gives ranges slowly or not at all."""
    shard_window: int = 4
    """[shards] Shards that examples are shuffled among with order=shards; twice as many lie in temporary files of each
    worker if the cache is remote."""
    steps: int = field(default=90_000, metadata=GROWS)
    """[steps] Length of the run; a run that has ended, or not, goes on with more, its learning rate as if it had begun
    with so many."""
    batch_examples: int = 64
    """[examples] Global batch of a step, over all workers."""
    micro_batch_examples: int = 8
    """[examples] Most that a worker computes at a time; a global batch is dealt into such parts, of equal tokens."""
    heard_seconds: float = 30.0
    """[seconds] How much of each clip is heard, of its 30 s of frames; less makes short clips cheap to train on. More
    than 30 needs hear=clip, and a cache of longer clips (max_clip_seconds)."""
    hear: Literal["", "all", "clip"] = ""
    """[name] all: each clip's 30 s, the silence behind its sound too, as the published model does. clip: its sound
    alone, so that a short clip becomes few audio tokens. Empty: as the run it starts from, or all."""
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
    gradient_checkpointing: bool = field(default=False, metadata=FREE)
    """[switch] Keep only what enters each of the LLM's layers and compute the rest again: less memory, more time."""
    shard_llm: bool = field(default=False, metadata=FREE)
    """[switch] Spread the frozen LLM's layers over the workers (FSDP2) instead of a copy on each: less memory, more
    traffic between them, the same losses."""
    workers: int = field(default=1, metadata=FREE)
    """[count] Training processes, a GPU each on cuda."""
    min_workers: int = field(default=0, metadata=FREE)
    """[count] Go on with as few when machines are lost, and with more, up to `workers`, when they come back; every
    change continues from the newest checkpoint. 0: always `workers`."""
    no_workers_seconds: float = field(default=3600.0, metadata=FREE)
    """[seconds] Longest time, all waits together, that a run waits for machines with room for its workers."""
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata=FREE)
    """[name] What each worker trains on; auto: cuda if the cluster has GPUs now, which one that grows may not."""
    threads: int = field(default=1, metadata=FREE)
    """[count] CPU threads (and Ray CPUs) of each worker."""
    checkpoint_every: int = field(default=1_000, metadata=FREE)
    """[steps] Between checkpoints."""
    keep_checkpoints: int = field(default=2, metadata=FREE)
    """[count] Newest checkpoints to keep."""
    log_every: int = field(default=10, metadata=FREE)
    """[steps] Between lines of metrics.jsonl."""
    valid_splits: list[str] = field(default_factory=list, metadata=FREE)
    """[names] Held-out splits to validate on."""
    valid_every: int = field(default=0, metadata=FREE)
    """[steps] Between validations; one that finds the lowest loss yet makes a checkpoint, which is kept. 0: never."""
    eval_every: int = field(default=0, metadata=FREE)
    """[steps] Between checkpoints that are scored by generating answers about `valid_splits`, beside the training, as
    evaluate does, greedily; a multiple of `checkpoint_every`. The last one is scored too. 0: none."""
    eval_questions: int = field(default=64, metadata=FREE)
    """[count] Most questions of each task, corpus and split that a checkpoint is scored on, always the same ones."""
    max_skipped_steps: int = field(default=20, metadata=FREE)
    """[steps] A step whose loss or gradient is not finite changes no weight; as many in a row end the run."""
    wandb: str = field(default="", metadata=FREE)
    """[name] Project on Weights & Biases to send the metrics to as well; empty: none."""
    alarms: AlarmConfig = field(default_factory=AlarmConfig, metadata=FREE)
    max_failures: int = field(default=3, metadata=FREE)
    """[count] Restarts after lost workers or nodes before the job gives up; announced losses are not counted."""
    collective_timeout_seconds: float = field(default=1800.0, metadata=FREE)
    """[seconds] Longest that a worker waits for the others before it fails."""
    read: ReadConfig = field(default_factory=ReadConfig, metadata=FREE)
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    optim: OptimConfig = field(default_factory=OptimConfig)
    forecast_step_seconds: float = field(default=0.0, metadata=FREE)
    """[seconds] A step's time as `salmonn plan train` forecasts it; the closing report compares. 0: unknown."""
    price_per_hour: float = field(default=0.0, metadata=FREE)
    """[money] An hour of a worker's device, for the closing report; 0: unknown."""
    ray: RayConfig = field(default_factory=RayConfig, metadata=FREE)

    def __post_init__(self) -> None:
        """Check ranges and what is installed."""
        if not self.run and not (self.runs and self.name):
            raise UserError("run=… is needed: folder of this run; or runs=…, with name=… or a stage's config")
        require_precision(self.precision)
        counts = ("steps", "batch_examples", "micro_batch_examples", "max_answer_tokens", "shard_window")
        require_range(self, (*counts, "workers", "threads", "log_every", "max_skipped_steps"), low=1)
        require_range(self, ("checkpoint_every", "keep_checkpoints", "eval_questions"), low=1)
        require_range(
            self, ("max_failures", "valid_every", "eval_every", "forecast_step_seconds", "price_per_hour"), low=0
        )
        require_range(self, ("min_workers",), low=0, high=self.workers)
        require_range(self, ("collective_timeout_seconds", "no_workers_seconds"), low=1)
        if self.shard_llm and self.precision in ("int8", "int4"):
            raise UserError(f"shard_llm=true: precision={self.precision} cannot be spread over workers")
        require_range(self, ("seed",), low=0, high=2**31)
        require_range(self, ("max_missing_fraction",), low=0, high=1)
        require_range(self, ("heard_seconds",), low=max(1.0, self.qformer.window_seconds))
        if self.heard_seconds > CLIP_SECONDS and (self.hear == "all" or not (self.hear or self.init_from)):
            raise UserError(
                f"heard_seconds={self.heard_seconds:g}: hear=all hears {CLIP_SECONDS} s; give hear=clip to hear more"
            )
        for key in ("valid_every", "eval_every"):
            self._require_held_out(key)
        if self.eval_every % self.checkpoint_every:
            raise UserError(
                f"eval_every={self.eval_every}: must be a multiple of checkpoint_every={self.checkpoint_every}"
            )
        if self.wandb and not find_spec("wandb"):
            raise UserError(f"wandb={self.wandb}: the package is not installed; pip install wandb")

    def _require_held_out(self, key: str) -> None:
        every = getattr(self, key)
        if every and not self.valid_splits:
            raise UserError(f"{key}={every}: valid_splits names no split")
        if every and (not self.splits or set(self.splits) & set(self.valid_splits)):
            raise UserError(f"valid_splits={self.valid_splits}: splits={self.splits} are learnt, not held out")

    def require_paths(self) -> None:
        """Check that what is read is there."""
        require_clips(self.manifest)
        read_recipe(self.cache)

    def next_step(self) -> str:
        """Return the command that goes on from here."""
        run = self.run or storage.join(self.runs, self.name)
        return command("evaluate", run=run, manifest=self.manifest, cache=self.cache)


FREE_KEYS = frozenset(key.name for key in fields(TrainConfig) if key.metadata.get(CHANGE) == "free")
ConfigT = TypeVar("ConfigT", bound=TrainConfig)


def with_full_paths(config: TrainConfig) -> TrainConfig:
    """Return the config with folders that mean the same everywhere, stages' folders found by their names."""
    if config.runs:
        before = storage.join(config.runs, config.after) if config.after else ""
        run = config.run or storage.join(config.runs, config.name)
        config = replace(config, run=run, init_from=config.init_from or before)
    elif config.after and not config.init_from:
        raise UserError(
            f"after={config.after}: in which folder? runs=DIR finds it and names this run too; with run=… give "
            f"init_from=…, or after= to start anew"
        )
    return full_paths(config)


def full_paths(config: ConfigT) -> ConfigT:
    """Return the config with folders, and a mix of one's own, that mean the same everywhere."""
    is_path = {
        "llm": config.llm != "tiny" and not is_hub_name(config.llm),
        "mix": is_yaml(config.mix),
    }
    keys = ("manifest", "cache", "run", "runs", "init_from", *(key for key, is_one in is_path.items() if is_one))
    paths: dict[str, Any] = {key: storage.full_path(getattr(config, key)) for key in keys if getattr(config, key)}
    return replace(config, **paths)
