"""Answers in, scores with intervals out, and two sets of answers compared.

What imports slowly is imported by the score that needs it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import UserError, shorten
from pipelines.inference.scoring.answers import Answered, Difference, Score, TaskScores
from pipelines.inference.scoring.bootstrap import RESAMPLES, interval, p_value, resample, sum_by_clip
from pipelines.inference.scoring.captions import caption_scores
from pipelines.inference.scoring.labels import (
    LABEL_WORDS,
    accuracy,
    first_label,
    keywords,
    match_exact,
    match_label,
    match_open,
    match_slot,
    stories,
)
from pipelines.inference.scoring.measured import Measured
from pipelines.inference.scoring.rates import overlapped, phone_transcripts, transcripts
from pipelines.inference.scoring.tasks import OTHER, TASKS
from pipelines.inference.scoring.texts import normalise as normalise  # callers compare single answers with it
from pipelines.inference.scoring.translations import bleu_scores

Measure = Callable[[Sequence[Answered]], Iterator[Measured]]

_exact = partial(accuracy, match=match_exact, links=("exact",))
_open = partial(accuracy, match=match_open)


def _audio_captions(answered: Sequence[Answered]) -> Iterator[Measured]:
    yield from caption_scores(answered)
    yield from _exact(answered)


MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        "asr": transcripts,
        "en2zh": partial(bleu_scores, tokenisers={"bleu4": "char", "bleu4_zh": "zh"}),
        "audiocaption": _audio_captions,
        "phone_recognition": phone_transcripts,
        "music_caption": caption_scores,
        "overlapped_speech_recognition": overlapped,
        **{
            task: partial(accuracy, match=partial(match_label, read=first_label(labels)), links=("exact", "contains"))
            for task, labels in LABEL_WORDS.items()
        },
        "sqa": _open,
        "aqa": _open,
        "mqa": _open,
        "en2de": partial(bleu_scores, tokenisers={"bleu4": "13a"}),
        "en2ja": partial(bleu_scores, tokenisers={"bleu4": "char", "bleu4_mecab": "ja-mecab"}),
        "keywords": keywords,
        "sqqa": _open,
        "slot_filling": partial(accuracy, match=match_slot, links=("exact", "contains")),
        "audio_story": stories,
        "speech_audio_coreasoning": _open,
    }
)
"""Task -> what measures its answers; the names of its scores are in the task table."""
LOW_IS_GOOD = frozenset({"wer", "wer_leaderboard", "cer", "per", "cpwer"})
"""Scores that count errors."""


def score_task(
    task: str,
    answered: Iterable[Answered],
    *,
    test_set: str = "",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> TaskScores:
    """Return a task's scores; a task that is not in the table is scored by exact match.

    Args:
        task: Its name.
        answered: Read once; one for each clip and question.
        test_set: What was answered, such as `librispeech test-clean`; empty: the names of the corpora.
        resamples: Draws of the bootstrap over clips; 0: no intervals.
        seed: Of these draws.

    Raises:
        UserError: If there is no answer, an answer has no reference, or a clip's question is answered twice.
    """
    items = checked(task, answered)
    measured = _measure(task, items)
    values = np.empty((len(measured), 0))
    if resamples:
        sums = sum_by_clip(np.concatenate([one.rows for one in measured], axis=1), [item.clip_id for item in items])
        values = _values(measured, resample(sums, resamples=resamples, seed=seed))
    empty = sum(not item.answer.strip() for item in items)
    return TaskScores(
        task=task,
        test_set=test_set or "+".join(sorted({item.corpus for item in items})),
        clips=len({item.clip_id for item in items}),
        examples=len(items),
        references=sum(len(item.references) for item in items),
        scores=tuple(_score(one, drawn) for one, drawn in zip(measured, values, strict=True)),
        notes=(f"{empty} empty answers",) if empty else (),
    )


def score_each(task: str, answered: Iterable[Answered]) -> tuple[str, NDArray[np.float64]]:
    """Return the task's first score that single answers have, and its value of each answer, as if it were the only one.

    Values are not a number where an answer does not count; what comes after that score is not computed.

    Raises:
        UserError: As `score_task`.
    """
    items = checked(task, answered)
    names = TASKS.get(task, OTHER).scores
    for one in MEASURES.get(task, _exact)(items):
        values = one.of_sums(one.rows) if one.rows.shape[1] else np.full(len(items), np.nan)
        if one.name in names and not np.isnan(values).all():
            return one.name, values
    return names[0], np.full(len(items), np.nan)


def paired_test(
    task: str, ours: Iterable[Answered], theirs: Iterable[Answered], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Difference, ...]:
    """Return ours less theirs for each score that both have and that has an interval, by the same draws of clips.

    Raises:
        UserError: As `score_task`; and naming a question that only one side answers.
    """
    first, second = checked(task, ours), checked(task, theirs)
    by_question = {(item.clip_id, item.question): item for item in second}
    asked = {(item.clip_id, item.question) for item in first}
    if alone := sorted(asked ^ by_question.keys()):
        clip, question = alone[0]
        raise UserError(
            f"{task}: {len(alone)} questions are answered on one side, such as {shorten(question)!r} of clip {clip}"
        )
    second = [by_question[item.clip_id, item.question] for item in first]
    pairs = _paired(_measure(task, first), _measure(task, second))
    rows = np.concatenate([one.rows for pair in pairs for one in pair], axis=1)
    sums = sum_by_clip(rows, [item.clip_id for item in first])
    flat = [one for pair in pairs for one in pair]
    whole = _values(flat, sums.sum(axis=0, keepdims=True))[:, 0]
    drawn = _values(flat, resample(sums, resamples=resamples, seed=seed))
    return tuple(
        _difference(pair[0].name, whole[2 * place], whole[2 * place + 1], drawn[2 * place] - drawn[2 * place + 1])
        for place, pair in enumerate(pairs)
        if not np.isnan(whole[2 * place : 2 * place + 2]).any()
    )


def score(task: str, references: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Return the values that exist of answers to one reference each."""
    pairs = enumerate(zip(references, answers, strict=True))
    answered = (
        Answered(clip_id=str(place), corpus="", question="", references=(reference,), answer=answer)
        for place, (reference, answer) in pairs
    )
    found = score_task(task, answered, resamples=0).scores
    return {one.name: one.value for one in found if one.value is not None}


def checked(task: str, answered: Iterable[Answered]) -> list[Answered]:
    """Return answers as a list.

    Raises:
        UserError: As `score_task` says.
    """
    items = list(answered)
    if not items:
        raise UserError(f"{task}: there is no answer to score")
    for item in items:
        if not item.references:
            raise UserError(f"{task}: {shorten(item.question)!r} of clip {item.clip_id} has no reference")
    asked = Counter((item.clip_id, item.question) for item in items)
    (clip, question), times = asked.most_common(1)[0]
    if times > 1:
        raise UserError(f"{task}: {shorten(question)!r} of clip {clip} is answered {times} times")
    return items


def _measure(task: str, items: Sequence[Answered]) -> list[Measured]:
    """Return the scores that stand on any answer, and in any case the task's first."""
    measure = MEASURES.get(task, _exact)
    names = TASKS.get(task, OTHER).scores
    found = {one.name: one for one in measure(items) if one.name in names}
    return [found[name] for name in names if name == names[0] or found[name].items or found[name].notes]


def _values(measured: Sequence[Measured], sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each score's values [scores, draws] of all scores' sums beside each other [draws, columns]."""
    ends = np.cumsum([one.rows.shape[1] for one in measured])
    parts = np.split(sums, ends[:-1], axis=1)
    return np.stack([one.of_sums(part) for one, part in zip(measured, parts, strict=True)])


def _score(measured: Measured, drawn: NDArray[np.float64]) -> Score:
    value = float(measured.of_sums(measured.rows.sum(axis=0)))
    has_interval = measured.rows.shape[1] > 0 and not np.isnan(value)
    low, high = interval(drawn) if has_interval else (None, None)
    return Score(
        name=measured.name,
        value=None if np.isnan(value) else value,
        low=low,
        high=high,
        signature=measured.signature,
        items=measured.items,
        notes=measured.notes,
    )


def _paired(ours: Sequence[Measured], theirs: Sequence[Measured]) -> list[tuple[Measured, Measured]]:
    by_name = {one.name: one for one in theirs}
    return [(one, by_name[one.name]) for one in ours if one.name in by_name and one.rows.shape[1]]


def _difference(name: str, ours: float, theirs: float, drawn: NDArray[np.float64]) -> Difference:
    drawn = drawn[~np.isnan(drawn)]
    low, high = interval(drawn)
    assert low is not None and high is not None, "a value without a single draw"
    return Difference(
        name=name,
        ours=float(ours),
        theirs=float(theirs),
        difference=float(ours - theirs),
        low=low,
        high=high,
        p_value=p_value(drawn),
    )
