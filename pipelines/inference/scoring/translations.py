"""BLEU of translations by sacrebleu's tokenisers, with its signature."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.inference.scoring.answers import Answered
from pipelines.inference.scoring.measured import Measured, unavailable
from pipelines.inference.scoring.ngrams import ORDERS, Texts, bleu_rows, number_texts

Floats = NDArray[np.float64]

_WORD = r"[^\W\d_](?:[^\W\d_]|['-])*"
PLAIN = {
    "13a": re.compile(rf"{_WORD}(?:[.,]? +{_WORD})*[.,]?"),
    "zh": re.compile("[\u4e00-\u9fa5\u3001-\u303f\uff01-\uffef]*"),
}
"""Texts that a tokeniser of sacrebleu splits in a plain way: words with a comma or full stop behind them,
and Chinese without a letter or digit of another script."""


def bleu_scores(answered: Sequence[Answered], tokenisers: Mapping[str, str]) -> Iterator[Measured]:
    """Yield BLEU of the whole corpus for each name -> tokeniser of sacrebleu, as a fraction."""
    for name, tokeniser in tokenisers.items():
        try:
            yield _bleu(answered, name, tokeniser)
        except RuntimeError:  # MeCab or its dictionary is not installed
            note = "needs MeCab and its dictionary: pip install 'salmonn-pipeline[japanese]'"
            yield unavailable(name, len(answered), signature=f"tok:{tokeniser}", note=note)


def _bleu(answered: Sequence[Answered], name: str, tokeniser: str) -> Measured:
    from sacrebleu.metrics.bleu import BLEU

    logging.getLogger("sacrebleu").setLevel(logging.ERROR)
    bleu = BLEU(tokenize=tokeniser)

    def tokens(text: str) -> list[str]:
        text = text.rstrip()
        if (plain := split_plainly(text, tokeniser)) is not None:
            return plain
        return str(bleu.tokenizer(text)).split()

    texts = number_texts(
        (tokens(item.answer) for item in answered), ([*map(tokens, item.references)] for item in answered)
    )
    counts = {len(item.references) for item in answered}
    bleu.num_refs = counts.pop() if len(counts) == 1 else -1  # what it writes as `var`
    rows = bleu_rows(texts)
    return Measured(
        name=name,
        rows=rows if exists(texts) else np.zeros_like(rows),
        of_sums=bleu_of_sums,
        signature=bleu.get_signature().format(),
        items=len(answered),
        notes=short_references(texts),
    )


def split_plainly(text: str, tokeniser: str) -> list[str] | None:
    """Return a plain text's tokens in a tenth of the tokeniser's time; None where it must look itself."""
    if tokeniser not in PLAIN or not PLAIN[tokeniser].fullmatch(text):
        return None
    return list(text) if tokeniser == "zh" else text.replace(",", " ,").replace(".", " .").split()


def bleu_of_sums(sums: Floats) -> Floats:
    """Return sacrebleu's BLEU of summed statistics [..., 10], zero counts smoothed by halves (`smooth:exp`).

    Not a number where there is no reference.
    """
    found, total = sums[..., :ORDERS], sums[..., ORDERS : 2 * ORDERS]
    none_found = np.cumsum(found == 0, axis=-1)
    smoothed = np.where(found == 0, 0.5**none_found, found)
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithm = np.log(smoothed / total).mean(axis=-1)
        brevity = np.minimum(0.0, 1 - sums[..., -1] / sums[..., -2])
        value = np.exp(logarithm + brevity)
    is_zero = (found == 0).all(axis=-1) | (total == 0).any(axis=-1)
    return np.where(sums[..., -1] == 0, np.nan, np.where(is_zero, 0.0, value))


def exists(texts: Texts) -> bool:
    """Tell whether any reference has four tokens; if none has, the right answers would get 0."""
    return bool((texts.lengths[texts.num_answers :] >= ORDERS).any())


def short_references(texts: Texts) -> tuple[str, ...]:
    """Return how many references are shorter than four tokens, as a note, if any is."""
    references = texts.lengths[texts.num_answers :]
    short = int((references < ORDERS).sum())
    return (f"{short} of {len(references)} references shorter than {ORDERS} tokens",) if short else ()
