"""The scores of a run's newest checkpoint on a sample of held-out questions: what a run is scored with as it trains."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipelines.inference.answers import SCHEMA, DecodeSettings
from pipelines.inference.config import AnsweringConfig
from pipelines.inference.held_out import answers_to, each_test_set, open_held_out, score_test_sets, with_clips
from pipelines.inference.questions import Questions
from pipelines.inference.scoring.answers import TaskScores
from pipelines.inference.units import AnswerConfig, cut_units
from pipelines.runs.folder import complete_steps

SAMPLE_SEED = 0
"""Everywhere the same, so that the scores of all checkpoints and runs stand on the same questions."""
OWN = "own"


@dataclass(frozen=True)
class Due:
    """Which checkpoints are scored: of the steps that are multiples of `every`, and of the last step."""

    every: int
    last_step: int

    def newest(self, run: str) -> int:
        """Return the newest such checkpoint that is complete; 0 if there is none."""
        steps = complete_steps(run)
        return max((step for step in steps if step % self.every == 0 or step == self.last_step), default=0)


@dataclass(frozen=True)
class CheckpointScores:
    """A checkpoint's scores on each test set of the sample."""

    step: int
    test_sets: tuple[TaskScores, ...]


def score_newest(config: AnsweringConfig, due: Due, most_questions: int, lora_scaling: float) -> CheckpointScores:
    """Answer and score a sample with the checkpoint that is the newest when this begins; no file is written.

    Args:
        config: Of the run; its `checkpoint` and `workers` are of no account.
        due: Which checkpoints count; one is there.
        most_questions: Of each test set.
        lora_scaling: The factor on alpha/rank.

    Raises:
        UserError: As `evaluate`.
        MissingError: If a checkpoint is no longer there.
    """
    from pipelines.inference.worker import AnswerWorker  # loads PyTorch, which the driver does without

    step = due.newest(config.run)
    model, questions = open_held_out(replace(config, checkpoint=str(step)))
    questions = sample_questions(questions, most_questions)
    settings = DecodeSettings(
        num_beams=config.num_beams, max_new_tokens=config.max_new_tokens, lora_scaling=lora_scaling
    )
    worker = AnswerWorker(
        AnswerConfig(
            run=config.run,
            step=step,
            spec=model.spec,
            cache=config.cache,
            stores=(),
            settings=(settings,),
            whisper="",
            beats="",
            device=config.device,
            threads=config.threads,
            batch_examples=config.batch_examples,
        )
    )
    own = questions.table["clip_id"].combine_chunks()
    wanted = with_clips(questions, own)
    units = cut_units(
        wanted, SCHEMA.empty_table(), setting=0, workers=1, batch=config.batch_examples, in_whole_batches=False
    )
    answers = pa.Table.from_pylist([row for unit in units for row in worker.answers(unit)], SCHEMA)
    given = {OWN: answers_to(questions, own, answers)}
    return CheckpointScores(step, tuple(scores[OWN] for scores in score_test_sets(questions, given)))


def sample_questions(questions: Questions, most: int) -> Questions:
    """Return at most so many questions of each test set, the same ones at every call, in their order."""
    generator = np.random.default_rng(SAMPLE_SEED)
    picked = [
        generator.permutation(np.flatnonzero(mask.to_numpy(zero_copy_only=False)))[:most]
        for _, _, mask in each_test_set(questions)
    ]
    rows = np.sort(np.concatenate(picked))
    return replace(questions, table=questions.table.take(pa.array(rows)))
