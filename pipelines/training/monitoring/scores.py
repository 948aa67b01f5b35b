"""Checkpoints scored by generating answers while a run trains: one at a time, the newest first, beside the steps.

Each is scored in a process of its own, which takes room in the cluster only as long as it works. While the cluster has
none it waits, at most until training has ended, and then scores what is the newest checkpoint by then.
"""

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import ray
from ray.exceptions import RayError

from cluster.connection import cluster_device
from cluster.failures import describe_error
from pipelines import storage
from pipelines.inference.config import AnsweringConfig
from pipelines.inference.studies.checkpoint_scores import CheckpointScores, Due, score_newest
from pipelines.runs.scores import ScoreLine, add_scores, read_scores
from pipelines.training.config import TrainConfig
from pipelines.training.monitoring.watch import LOOK_AFAR_SECONDS, LOOK_SECONDS


@contextmanager
def scored(configs: Sequence[TrainConfig]) -> Iterator[None]:
    """Score checkpoints of these runs while the block runs, and the last ones once it has ended well.

    What goes wrong with it is told once and ends nothing.
    """
    scoring = _Scoring(configs)
    thread = threading.Thread(target=scoring.work, daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        scoring.given_up.set()
        raise
    finally:
        scoring.ended.set()
        thread.join()


@dataclass
class _Scoring:
    configs: Sequence[TrainConfig]
    ended: threading.Event = field(default_factory=threading.Event)
    """No more checkpoints come."""
    given_up: threading.Event = field(default_factory=threading.Event)
    """And those there are stay without scores."""
    is_told: bool = False
    tried: dict[str, int] = field(default_factory=dict)
    """Run -> the newest step that was scored, or could not be."""

    def work(self) -> None:
        is_last_look = False
        while not is_last_look and not self.given_up.is_set():
            is_last_look = self.ended.wait(_seconds_between_looks(self.configs[0]))
            for config in self.configs:
                try:
                    self._score(config)
                except Exception as error:  # whatever it is, the run goes on
                    self._tell(config, error)

    def _score(self, config: TrainConfig) -> None:
        due = Due(config.eval_every, config.steps)
        if config.run not in self.tried:
            self.tried[config.run] = max((line.step for line in read_scores(config.run)), default=0)
        newest = due.newest(config.run)
        if newest <= self.tried[config.run] or self.given_up.is_set():
            return
        self.tried[config.run] = newest  # also if it fails: the next one may not
        if found := self._ask(config, due):
            self.tried[config.run] = found.step
            lines = [
                ScoreLine(found.step, scores.task, scores.test_set, score.name, score.value)
                for scores in found.test_sets
                for score in scores.scores
                if score.value is not None
            ]
            add_scores(config.run, lines)

    def _ask(self, config: TrainConfig, due: Due) -> CheckpointScores | None:
        """Return the scores from a process of its own; None if they are no longer waited for."""
        device = cluster_device(config.device)
        remote = ray.remote(num_cpus=config.threads, num_gpus=int(device == "cuda"), max_retries=0, max_calls=1)
        result = remote(score_newest).remote(
            _answering(config, device), due, config.eval_questions, config.lora_scaling
        )
        while not ray.wait([result], timeout=LOOK_SECONDS)[0]:
            if self.given_up.is_set():
                ray.cancel(result, force=True)
                return None
        scores: CheckpointScores = ray.get(result)
        return scores

    def _tell(self, config: TrainConfig, error: Exception) -> None:
        was_left = self.given_up.is_set() or not ray.is_initialized()
        if not self.is_told and not was_left:
            said = describe_error(error) if isinstance(error, RayError) else error
            print(f"{config.run}: a checkpoint could not be scored, and training goes on: {said}", file=sys.stderr)
            self.is_told = True


def _answering(config: TrainConfig, device: str) -> AnsweringConfig:
    """Return how a run's checkpoints answer: greedily, the held-out examples of the tasks it learns."""
    return AnsweringConfig(
        run=config.run,
        manifest=config.manifest,
        cache=config.cache,
        splits=config.valid_splits,
        tasks=config.tasks,
        num_beams=1,
        max_new_tokens=config.max_answer_tokens,
        batch_examples=config.micro_batch_examples,
        threads=config.threads,
        device=device,  # type: ignore[arg-type]  # cpu or cuda
        max_missing_fraction=config.max_missing_fraction,
    )


def _seconds_between_looks(config: TrainConfig) -> float:
    return LOOK_SECONDS if storage.is_local(config.run) else LOOK_AFAR_SECONDS
