"""Scores of answers against references, as fractions: what the paper reports per task, but for METEOR and SPIDEr.

Those two need Java. Captions are compared in lower case without punctuation, as their published scores are.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

import jiwer

Score = Callable[[Sequence[str], Sequence[str]], float]
Tokenise = Callable[[str], list[str]]

ROUGE_BETA = 1.2
STORY_WORDS = 50
NUM_KEYWORDS = 3


def normalise(text: str) -> str:
    """Return lower-case words without punctuation, single spaces between them."""
    return " ".join(re.sub(r"[^\w\s']", " ", text.lower()).split())


def words(text: str) -> list[str]:
    """Return a text's words in lower case, without punctuation."""
    return normalise(text).split()


def characters(text: str) -> list[str]:
    """Return a text's characters but for white space: CoVoST 2's tokens of Chinese and Japanese."""
    return list("".join(text.split()))


def tokens_13a(text: str) -> list[str]:
    """Return words and punctuation as WMT's mteval-v13a.pl does: full stops and commas inside numbers stay there."""
    text = re.sub(r"([{-~\[-` -&(-+:-@/])", r" \1 ", f" {text} ")
    text = re.sub(r"([^0-9])([.,])", r"\1 \2 ", text)
    text = re.sub(r"([.,])([^0-9])", r" \1 \2", text)
    return re.sub(r"([0-9])(-)", r"\1 \2 ", text).split()


def _aligned(references: Sequence[str], answers: Sequence[str], tokenise: Tokenise) -> jiwer.WordOutput | None:
    """Align the pairs whose reference holds any token; None if there is none."""
    pairs = [(tokenise(reference), tokenise(answer)) for reference, answer in zip(references, answers, strict=True)]
    spoken = [(" ".join(reference), " ".join(answer)) for reference, answer in pairs if reference]
    return jiwer.process_words([pair[0] for pair in spoken], [pair[1] for pair in spoken]) if spoken else None


def word_error_rate(references: Sequence[str], answers: Sequence[str]) -> float:
    """Return substitutions, deletions and insertions per reference word over all pairs."""
    aligned = _aligned(references, answers, words)
    return float(aligned.wer) if aligned else 0.0


def phone_error_rate(references: Sequence[str], answers: Sequence[str]) -> float:
    """Return substitutions, deletions and insertions per phone; phones are what white space separates."""
    aligned = _aligned(references, answers, str.split)
    return float(aligned.wer) if aligned else 0.0


def word_accuracy(references: Sequence[str], answers: Sequence[str]) -> float:
    """Return the share of reference words that the answers hold in place, after alignment."""
    aligned = _aligned(references, answers, words)
    return aligned.hits / (aligned.hits + aligned.substitutions + aligned.deletions) if aligned else 0.0


def exact_match(references: Sequence[str], answers: Sequence[str]) -> float:
    """Return the share of answers equal to their reference."""
    pairs = zip(references, answers, strict=True)
    return sum(normalise(reference) == normalise(answer) for reference, answer in pairs) / len(references)


def contains_reference(references: Sequence[str], answers: Sequence[str]) -> float:
    """Return the share of answers in which their reference occurs, word for word."""
    pairs = zip(references, answers, strict=True)
    return sum(f" {normalise(reference)} " in f" {normalise(answer)} " for reference, answer in pairs) / len(references)


def bleu4(references: Sequence[str], answers: Sequence[str], *, tokenise: Tokenise = words) -> float:
    """Return BLEU of the whole corpus (Papineni et al. 2002): geometric mean of 1- to 4-gram precision × brevity."""
    matches, totals, reference_tokens, answer_tokens = [0] * 4, [0] * 4, 0, 0
    for reference, answer in zip(map(tokenise, references), map(tokenise, answers), strict=True):
        reference_tokens, answer_tokens = reference_tokens + len(reference), answer_tokens + len(answer)
        for order in range(4):
            found, wanted = (
                Counter(zip(*(text[n:] for n in range(order + 1)), strict=False)) for text in (answer, reference)
            )
            matches[order] += (found & wanted).total()
            totals[order] += found.total()
    if not all(matches):
        return 0.0
    precision = math.exp(sum(math.log(match / total) for match, total in zip(matches, totals, strict=True)) / 4)
    return precision * min(1.0, math.exp(1 - reference_tokens / answer_tokens))


def rouge_l(references: Sequence[str], answers: Sequence[str]) -> float:
    """Return the mean F measure of the longest common subsequence (Lin 2004), β = 1.2 as in COCO's captions."""
    return sum(map(_rouge_l, map(words, references), map(words, answers))) / len(references)


def _rouge_l(reference: list[str], answer: list[str]) -> float:
    common = _common_length(reference, answer)
    if not common:
        return 0.0
    precision, recall = common / len(answer), common / len(reference)
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _common_length(first: list[str], second: list[str]) -> int:
    """Return the length of the longest common subsequence."""
    lengths = [0] * (len(second) + 1)
    for word in first:
        before = 0  # the length one row up and one column to the left
        for place, other in enumerate(second, start=1):
            above = lengths[place]
            lengths[place] = before + 1 if word == other else max(above, lengths[place - 1])
            before = above
    return lengths[-1]


def keyword_accuracy(references: Sequence[str], answers: Sequence[str]) -> float:
    """Return the mean share of the three keywords that are asked for which the reference has too.

    Keywords stand between commas, semicolons or line ends, with or without numbers before them; the first three count.
    A reference of fewer than three sets how many there are to find.
    """
    scores = []
    for reference, answer in zip(map(_keywords, references), map(_keywords, answers), strict=True):
        wanted = min(NUM_KEYWORDS, len(reference))
        scores.append(len(set(answer[:NUM_KEYWORDS]) & set(reference)) / wanted if wanted else 0.0)
    return sum(scores) / len(scores)


def _keywords(text: str) -> list[str]:
    parts = (normalise(re.sub(r"^\W*\d+[.)]", "", part)) for part in re.split(r"[,;\n]", text))
    return list(dict.fromkeys(filter(None, parts)))


def story_diversity(references: Sequence[str], answers: Sequence[str]) -> float:
    """Return the mean number of different words of an answer."""
    return sum(len(set(words(answer))) for answer in answers) / len(answers)


def story_following_rate(references: Sequence[str], answers: Sequence[str]) -> float:
    """Return the share of answers long enough for a story, of 50 words or more."""
    return sum(len(words(answer)) >= STORY_WORDS for answer in answers) / len(answers)
