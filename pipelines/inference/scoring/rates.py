"""Error rates of transcripts: words, characters, phones, and words of speakers who talk at once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import kaldialign
import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from pipelines.inference.scoring.answers import Answered
from pipelines.inference.scoring.measured import Measured
from pipelines.inference.scoring.texts import NO_SPACES, basic, characters, is_latin, phones, versions, whisper_english

WHISPER = "norm:whisper-english,basic+marks elsewhere"
MOST_LINES = 12
"""Lines of an answer that may be a speaker; an answer that repeats itself without end has hundreds."""

Read = Callable[[str], str]
Counts = NDArray[np.int64]
"""A row for each answer [answers, 3]: errors, words kept in place, words of the reference."""


@dataclass(frozen=True)
class Rated:
    """The counts of some answers, and what stands apart from them.

    Args:
        counts: As above; zeros where the answer does not count.
        notes: Of references without a word, which no rate is made for.
    """

    counts: Counts
    notes: tuple[str, ...] = ()

    def measured(self, name: str, column: int, signature: str) -> Measured:
        """Return one column over the reference's words as a score."""
        rows = self.counts[:, [column, 2]].astype(np.float64)
        items = int((self.counts[:, 2] > 0).sum())
        return Measured(name=name, rows=rows, signature=signature, items=items, notes=self.notes)


def transcripts(answered: Sequence[Answered]) -> Iterator[Measured]:
    """Yield word error rates, and the character error rate where the references' language has no spaces.

    The word error rate and the share of words kept are of Whisper's normalised words. The second rate is what
    leaderboards report since compounds are matched: `white paper` and `whitepaper` are no error.
    """
    pairs = _Pairs(answered, _normaliser)
    rated = pairs.rate(align_words)
    by_words = f"{WHISPER}|rapidfuzz|{versions('rapidfuzz', 'whisper-normalizer')}"
    yield rated.measured("wer", 0, by_words)
    compounds = f"{WHISPER}|kaldialign|compounds:merged|{versions('kaldialign', 'whisper-normalizer')}"
    yield pairs.rate(align_compounds).measured("wer_leaderboard", 0, compounds)
    yield rated.measured("word_accuracy", 1, by_words)
    in_characters = _Pairs(answered, lambda item: None if _has_spaces(item) else _spaced_characters).rate(align_words)
    by_characters = f"norm:basic+marks|characters|rapidfuzz|{versions('rapidfuzz', 'whisper-normalizer')}"
    yield in_characters.measured("cer", 0, by_characters)


def phone_transcripts(answered: Sequence[Answered]) -> Iterator[Measured]:
    """Yield the phone error rate; case and stress are notation."""
    rated = _Pairs(answered, lambda item: phones).rate(align_words)
    yield rated.measured("per", 0, f"phones|case:one|stress:none|rapidfuzz|{versions('rapidfuzz')}")


def overlapped(answered: Sequence[Answered]) -> Iterator[Measured]:
    """Yield the word error rate with the speakers in whatever order has the fewest errors (cpWER).

    Each line of an answer is a speaker. Lines past the reference's speakers are insertions.
    """
    rated = _Pairs(answered, _speakers).rate(align_speakers)
    signature = f"{WHISPER}|speakers:lines,best order|rapidfuzz|{versions('rapidfuzz', 'whisper-normalizer')}"
    yield rated.measured("cpwer", 0, signature)
    yield rated.measured("word_accuracy", 1, signature)


def _has_spaces(item: Answered) -> bool:
    return not NO_SPACES.search(item.references[0])


def _normaliser(item: Answered) -> Read | None:
    """Return the English normaliser where the reference is in Latin letters, the multilingual one elsewhere."""
    if not _has_spaces(item):
        return None
    return whisper_english if is_latin(item.references[0]) else basic


def _spaced_characters(text: str) -> str:
    return " ".join(characters(text))


def _speakers(item: Answered) -> Read:
    normalise = whisper_english if is_latin(item.references[0]) else basic
    return lambda text: "\n".join(filter(None, map(normalise, text.splitlines())))


class _Pairs:
    """References beside answers, each normalised once by what `choose` gives; None leaves an answer out."""

    def __init__(self, answered: Sequence[Answered], choose: Callable[[Answered], Read | None]) -> None:
        self._size = len(answered)
        self._owner: list[int] = []
        self._references: list[str] = []
        self._answers: list[str] = []
        self._unspoken: list[str] = []
        for place, item in enumerate(answered):
            if read := choose(item):
                self._add(place, read(item.answer), [*filter(None, map(read, item.references))])

    def _add(self, place: int, answer: str, spoken: Sequence[str]) -> None:
        if not spoken:
            self._unspoken.append(answer)
        for reference in spoken:
            self._owner.append(place)
            self._references.append(reference)
            self._answers.append(answer)

    def rate(self, align: Callable[[Sequence[str], Sequence[str]], Counts]) -> Rated:
        """Return the counts of each answer beside the reference that it has the lowest rate against."""
        counts = np.zeros((self._size, 3), np.int64)
        if self._owner:
            found, owner = align(self._references, self._answers), np.array(self._owner)
            best = np.lexsort((found[:, 0] / found[:, 2], owner))
            first = np.unique(owner[best], return_index=True)[1]
            counts[owner[best][first]] = found[best][first]
        return Rated(counts, self._notes())

    def _notes(self) -> tuple[str, ...]:
        inserted = sum(len(answer.split()) for answer in self._unspoken)
        empty = len(self._unspoken)
        return (f"{empty} empty references: {inserted} words inserted, counted apart",) if empty else ()


def align_words(references: Sequence[str], answers: Sequence[str]) -> Counts:
    """Return the counts of texts whose words are separated by white space; no reference is empty.

    jiwer aligns by rapidfuzz too, and takes seven times as long to show every step of it.
    """
    rows = []
    for reference, answer in zip(references, answers, strict=True):
        words = reference.split()
        steps = Levenshtein.editops(words, answer.split())
        rows.append((len(steps), len(words) - sum(step.tag != "insert" for step in steps), len(words)))
    return np.array(rows, np.int64)


def align_compounds(references: Sequence[str], answers: Sequence[str]) -> Counts:
    """Return the counts with words that are written apart or together taken for the same, by kaldialign."""
    found = (
        kaldialign.edit_distance(reference.split(), answer.split(), merge_compounds=True)
        for reference, answer in zip(references, answers, strict=True)
    )
    return np.array(
        [(one["total"], one["ref_len"] - one["sub"] - one["del"], one["ref_len"]) for one in found], np.int64
    )


def align_speakers(references: Sequence[str], answers: Sequence[str]) -> Counts:
    """Return the counts of texts with a line per speaker, of the order of speakers with the fewest errors."""
    assigned = [_assign(one.split("\n"), other.split("\n")) for one, other in zip(references, answers, strict=True)]
    counts = align_words(
        [line for lines, _ in assigned for line, _ in lines], [line for lines, _ in assigned for _, line in lines]
    )
    first = np.cumsum([0, *(len(lines) for lines, _ in assigned)])[:-1]
    summed = np.add.reduceat(counts, first)
    summed[:, 0] += [inserted for _, inserted in assigned]
    return summed


def _assign(speakers: list[str], lines: list[str]) -> tuple[list[tuple[str, str]], int]:
    """Return each speaker's words beside the line that fits, and the words of the lines that are left over."""
    lines = lines + [""] * (len(speakers) - len(lines))
    spoken, said = [speaker.split() for speaker in speakers], [line.split() for line in lines]
    cost = [[Levenshtein.distance(words, line) - len(line) for line in said] for words in spoken]
    best = min(
        permutations(range(min(len(lines), max(MOST_LINES, len(speakers)))), len(speakers)),
        key=lambda order: sum(cost[speaker][line] for speaker, line in enumerate(order)),
    )
    left = sum(len(line) for place, line in enumerate(said) if place not in best)
    return [(words, lines[line]) for words, line in zip(speakers, best, strict=True)], left
