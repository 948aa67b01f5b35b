"""`salmonn scaling`: the same questions answered with several LoRA scalings of one checkpoint, scored side by side."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import storage
from pipelines.inference.answering import answer
from pipelines.inference.answers import DecodeSettings
from pipelines.inference.held_out import (
    answers_to,
    each_test_set,
    open_held_out,
    score_test_sets,
    with_clips,
    with_full_paths,
)
from pipelines.inference.questions import Questions
from pipelines.inference.scoring.answers import TaskScores
from pipelines.inference.studies.config import ScalingConfig
from pipelines.inference.studies.scaling_report import ScaledScores, ScalingReport, print_scaling, write_scaling
from pipelines.interface.config import save_config
from pipelines.interface.progress import Progress


def scaling(config: ScalingConfig, progress: Progress | None = None) -> ScalingReport:
    """Answer what was not answered before with each scaling, score all, write the report, and return it.

    Raises as `evaluate`.
    """
    config = with_full_paths(config)  # workers run in folders of their own
    model, questions = open_held_out(config)
    own = questions.table["clip_id"].combine_chunks()
    own_scaling = model.spec.lora.alpha / model.spec.lora.rank
    factors = [one / own_scaling for one in config.scalings]
    settings = [
        DecodeSettings(num_beams=config.num_beams, max_new_tokens=config.max_new_tokens, lora_scaling=factor)
        for factor in factors
    ]
    answers = answer(config, model, settings, with_clips(questions, own), progress or Progress())
    report = ScalingReport(
        run=config.run,
        step=model.step,
        splits=tuple(config.splits),
        num_beams=config.num_beams,
        max_new_tokens=config.max_new_tokens,
        questions=len(questions),
        examples=questions.num_examples,
        missing=questions.missing,
        own_scaling=own_scaling,
        scalings=tuple(config.scalings),
        factors=tuple(factors),
        test_sets=_score(questions, [answers_to(questions, own, one) for one in answers]),
    )
    out = config.out or storage.join(config.run, "scaling", "+".join(config.splits) or "all")
    save_config(config, storage.join(out, "scaling.yaml"))
    write_scaling(out, report)
    print_scaling(report)
    print(f"{out}: scaling.html, scaling.json")
    return report


def _score(questions: Questions, given: Sequence[pa.Table]) -> tuple[tuple[ScaledScores, ...], ...]:
    by_number = {str(number): answers for number, answers in enumerate(given)}
    masks = (mask for _, _, mask in each_test_set(questions))
    return tuple(
        tuple(_scaled(scores[number], answers.filter(mask)) for number, answers in by_number.items())
        for mask, scores in zip(masks, score_test_sets(questions, by_number), strict=True)
    )


def _scaled(scores: TaskScores, answers: pa.Table) -> ScaledScores:
    is_empty = pc.equal(pc.utf8_trim_whitespace(answers["answer"]), "")
    return ScaledScores(scores, pc.mean(is_empty).as_py(), pc.mean(answers["tokens"]).as_py())
