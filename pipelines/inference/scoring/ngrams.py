"""n-grams of many texts at once, counted in NumPy: BLEU's statistics and CIDEr-D in a sixteenth of the usual time.

Letters: A answers, R references of all answers together.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ORDERS = 4
CIDER_SIGMA = 6.0
"""What CIDEr-D's penalty of a length other than the reference's is as wide as, in tokens."""

Ints = NDArray[np.int64]
Small = NDArray[np.int32]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Texts:
    """Answers and their references as numbers: a token is the same number in all of them.

    Args:
        tokens: Of all texts one after the other, first the answers, then the references.
        lengths: Tokens of each text [A + R].
        owner: Which answer each reference is for, in ascending order [R].
    """

    tokens: Small
    lengths: Ints
    owner: Ints

    @property
    def num_answers(self) -> int:
        """Number of answers."""
        return len(self.lengths) - len(self.owner)

    def pairs(self) -> Iterator[tuple[int, list[int], list[int]]]:
        """Yield (place of the answer, answer, reference) for every reference."""
        ends = np.cumsum(self.lengths).tolist()
        starts = [0, *ends[:-1]]
        for place, owner in enumerate(self.owner.tolist(), start=self.num_answers):
            answer, reference = (self.tokens[starts[text] : ends[text]].tolist() for text in (owner, place))
            yield owner, answer, reference


def number_texts(answers: Iterable[Sequence[str]], references: Iterable[Sequence[Sequence[str]]]) -> Texts:
    """Return tokenised answers and the references to each as numbers; each iterable is read once."""
    known: defaultdict[str, int] = defaultdict()
    known.default_factory = known.__len__  # a new token gets the next number
    tokens, lengths, owner = array("i"), array("q"), array("q")

    def add(text: Sequence[str]) -> None:
        tokens.extend(map(known.__getitem__, text))
        lengths.append(len(text))

    for answer in answers:
        add(answer)
    for place, texts in enumerate(references):
        for text in texts:
            add(text)
            owner.append(place)
    return Texts(np.array(tokens, np.int32), np.array(lengths, np.int64), np.array(owner, np.int64))


@dataclass(frozen=True)
class Grams:
    """The n-grams of one order: a row for each text and n-gram, in ascending order of both."""

    text: Small
    gram: Small
    count: Small
    size: int
    """How many different n-grams there are."""

    def keys(self, texts: Ints, rows: NDArray[np.bool_]) -> Ints:
        """Return a number for each text and n-gram of some rows, given what the rows' texts count as."""
        return texts * self.size + self.gram[rows]


def count_ngrams(texts: Texts) -> Iterator[Grams]:
    """Yield the n-grams of all texts, from single tokens to rows of four."""
    owner = np.repeat(np.arange(len(texts.lengths), dtype=np.int32), texts.lengths)
    grams, words = texts.tokens, int(texts.tokens.max(initial=0)) + 1
    for order in range(1, ORDERS + 1):
        if order > 1:
            grams = _longer(grams, texts.tokens[order - 1 :], words)
        yield _count(grams, owner[: len(grams)], owner[order - 1 :])


def _longer(grams: Small, following: Small, words: int) -> Small:
    """Return the n-grams that these and the token after each make, numbered anew."""
    pairs = grams[:-1].astype(np.int64) * words + following
    numbers: Small = np.unique(pairs, return_inverse=True)[1].astype(np.int32)
    return numbers


def _count(grams: Small, first: Small, last: Small) -> Grams:
    """Count n-grams per text, given the texts of their first and last tokens: both must be the same."""
    inside, size = first == last, int(grams.max(initial=0)) + 1
    keys, counts = np.unique(first[inside].astype(np.int64) * size + grams[inside], return_counts=True)
    text, gram = np.divmod(keys, size)
    return Grams(text.astype(np.int32), gram.astype(np.int32), counts.astype(np.int32), size)


def bleu_rows(texts: Texts) -> Floats:
    """Return what BLEU sums up, for each answer [A, 10]: n-grams found, n-grams (n 1 to 4), tokens, reference tokens.

    An n-gram is found as often as the reference with the most of it has it; the reference whose length is nearest
    counts, of two the shorter.
    """
    found = [_found(grams, texts) for grams in count_ngrams(texts)]
    return _with_lengths(found, texts)


def bleu_rows_and_cider(texts: Texts) -> tuple[Floats, Floats]:
    """Return BLEU's rows [A, 10] and CIDEr-D of each answer [A], 0 to 10, as COCO computes it.

    For CIDEr-D rare n-grams weigh more: how rare one is says the number of answers whose references have it.
    """
    answers = texts.num_answers
    found, similar = [], np.zeros(len(texts.owner))
    for grams in count_ngrams(texts):
        found.append(_found(grams, texts))
        similar += _cosine(grams, texts)
    bigrams = np.maximum(texts.lengths - 1, 0)
    longer = bigrams[:answers][texts.owner] - bigrams[answers:]
    similar *= np.exp(-(longer**2) / (2 * CIDER_SIGMA**2)) * 10 / ORDERS
    cider = np.bincount(texts.owner, similar, minlength=answers) / np.bincount(texts.owner, minlength=answers)
    return _with_lengths(found, texts), cider


def _found(grams: Grams, texts: Texts) -> Ints:
    """Return how many n-grams of each answer its references have [A]."""
    ours = grams.text < texts.num_answers
    keys = grams.keys(grams.text[ours].astype(np.int64), ours)
    most = _look_up(*_most_of_any_reference(grams, texts), keys)
    found = np.bincount(grams.text[ours], np.minimum(grams.count[ours], most), minlength=texts.num_answers)
    return found.astype(np.int64)


def _with_lengths(found: Sequence[Ints], texts: Texts) -> Floats:
    lengths = texts.lengths[: texts.num_answers]
    all_of_them = [np.maximum(lengths - order, 0) for order in range(ORDERS)]
    return np.stack([*found, *all_of_them, lengths, _nearest_lengths(texts)], axis=1).astype(np.float64)


def _cosine(grams: Grams, texts: Texts) -> Floats:
    """Return how near each reference [R] is to its answer in n-grams of one order, weighed by how rare they are."""
    answers, references = texts.num_answers, len(texts.owner)
    rarity = np.log(answers) - np.log(np.maximum(_document_frequency(grams, texts), 1))
    weight = grams.count * rarity[grams.gram]
    norm = np.sqrt(np.bincount(grams.text, weight**2, minlength=len(texts.lengths)))
    ours = grams.text < answers
    reference, theirs = grams.text[~ours] - answers, weight[~ours]
    keys = grams.keys(grams.text[ours].astype(np.int64), ours)
    other = _look_up(keys, weight[ours], grams.keys(texts.owner[reference], ~ours))
    common = np.bincount(reference, np.minimum(other, theirs) * theirs, minlength=references)
    scale = norm[:answers][texts.owner] * norm[answers:]
    cosine = np.zeros(references)
    np.divide(common, scale, out=cosine, where=scale > 0)
    return cosine


def _most_of_any_reference(grams: Grams, texts: Texts) -> tuple[Ints, Ints]:
    """Return (answer · size + n-gram, the most that a reference of the answer has of it), in ascending order."""
    theirs = grams.text >= texts.num_answers
    keys = grams.keys(texts.owner[grams.text[theirs] - texts.num_answers], theirs)
    order = np.argsort(keys, kind="stable")
    unique, first = np.unique(keys[order], return_index=True)
    if not len(unique):
        return unique, unique
    return unique, np.maximum.reduceat(grams.count[theirs][order], first)


def _look_up(keys: Ints, values: NDArray[np.generic], wanted: Ints) -> NDArray[np.generic]:
    """Return the values of the wanted keys, 0 where a key is not there; keys are in ascending order."""
    if not len(keys):
        return np.zeros(len(wanted), values.dtype)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)


def _nearest_lengths(texts: Texts) -> Ints:
    answers, references = texts.lengths[: texts.num_answers], texts.lengths[texts.num_answers :]
    distance = np.abs(references - answers[texts.owner])
    order = np.lexsort((references, distance, texts.owner))
    first = np.searchsorted(texts.owner, np.arange(texts.num_answers))
    return references[order][first]


def _document_frequency(grams: Grams, texts: Texts) -> Ints:
    """Return for each n-gram how many answers have it in a reference."""
    theirs = grams.text >= texts.num_answers
    keys = grams.keys(texts.owner[grams.text[theirs] - texts.num_answers], theirs)
    unique = np.unique(keys, return_counts=True)[0]  # without counts NumPy hashes, which is five times slower
    return np.bincount(unique % grams.size, minlength=grams.size)
