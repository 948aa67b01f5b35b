"""What is scored and what comes out: answers beside their references, scores with their intervals and signatures."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One question about a clip, all references to it, and the answer.

    Args:
        clip_id: The clip; intervals treat the answers about one clip as one draw.
        corpus: Where the clip comes from.
        question: As it was asked, with the options that it shows.
        references: Every right answer, at least one. Speakers at once are lines of one reference.
        answer: As it was decoded.
    """

    clip_id: str
    corpus: str
    question: str
    references: tuple[str, ...]
    answer: str


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score of a task's answers.

    Args:
        name: As in the task table.
        value: Rates, accuracies and BLEU are fractions; CIDEr-D is 0 to 10, a story's diversity counts words. None: the
            score does not exist for these references, or what computes it is not installed; the notes say which.
        low: Where the 95 % interval begins, None where there is no value or no interval.
        high: Where it ends.
        signature: How it was computed: scorer, normaliser or tokens, options, versions.
        items: How many answers it stands on.
        notes: What a reader must know beside the value, a sentence each.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    signature: str
    items: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """The scores of a task on a test set, in the order of the task table: the paper's first.

    Args:
        task: Its name.
        test_set: What was answered: the corpora's names, or the name that the caller gave.
        clips: Different clips.
        examples: Answers, one for each clip and question.
        references: References in all.
        scores: As above.
        notes: What holds for all of them.
    """

    task: str
    test_set: str
    clips: int
    examples: int
    references: int
    scores: tuple[Score, ...]
    notes: tuple[str, ...] = ()

    def value(self, name: str) -> float | None:
        """Return a score's value; None if there is no such score."""
        return next((score.value for score in self.scores if score.name == name), None)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two sets of answers to the same questions, compared by one score.

    Args:
        name: The score.
        ours: Its value for the first answers.
        theirs: Its value for the second.
        difference: Ours less theirs.
        low: Where the 95 % interval of the difference begins.
        high: Where it ends.
        p_value: How often chance alone makes a difference as large, two-sided, by the paired bootstrap over clips.
    """

    name: str
    ours: float
    theirs: float
    difference: float
    low: float
    high: float
    p_value: float
