"""Caption scores as COCO's evaluation computes them, each answer against all references of its clip."""

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq

from pipelines.inference.scoring.answers import Answered
from pipelines.inference.scoring.measured import Measured, mean, unavailable
from pipelines.inference.scoring.ngrams import ORDERS, Texts, bleu_rows_and_cider, number_texts
from pipelines.inference.scoring.texts import caption_tokens, versions
from pipelines.inference.scoring.translations import exists, short_references

ROUGE_BETA = 1.2
TINY, SMALL = 1e-15, 1e-9
"""What COCO's BLEU adds to counts above and below the line, so that nothing is divided by 0."""
SPICE_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
SPICE_SOURCE = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"
"""Holds the jars, which are in no package; SPICE's values are those of this version of the parser."""

Floats = NDArray[np.float64]


def caption_scores(answered: Sequence[Answered]) -> Iterator[Measured]:
    """Yield BLEU-4, ROUGE-L and CIDEr-D, and METEOR, SPICE and SPIDEr where Java and what they need are installed."""
    texts = number_texts(
        (caption_tokens(item.answer) for item in answered),
        ([*map(caption_tokens, item.references)] for item in answered),
    )
    tokens = f"tok:treebank,lower,no punctuation|{versions('nltk')}"
    rows, cider = bleu_rows_and_cider(texts)
    yield Measured(
        name="bleu4",
        rows=rows if exists(texts) else np.zeros_like(rows),
        of_sums=coco_bleu_of_sums,
        signature=f"coco|reflen:closest|{tokens}",
        items=len(answered),
        notes=short_references(texts),
    )
    yield mean("rouge_l", rouge_l(texts), signature=f"coco|beta:{ROUGE_BETA}|{tokens}")
    yield _cider(cider, answered, f"coco|n:4|sigma:6|idf:references here|{tokens}")
    yield _meteor(answered, tokens)
    yield from _spice(answered, cider, tokens)


def _cider(values: Floats, answered: Sequence[Answered], signature: str) -> Measured:
    if len(answered) < 2:
        note = "needs two clips: how rare a phrase is shows beside others"
        return unavailable("cider_d", len(answered), signature=signature, note=note)
    return mean("cider_d", values, signature=signature)


def coco_bleu_of_sums(sums: Floats) -> Floats:
    """Return COCO's BLEU-4 of summed statistics [..., 10]; not a number where there is no reference."""
    found, total = sums[..., :ORDERS] + TINY, sums[..., ORDERS : 2 * ORDERS] + SMALL
    lengths = (sums[..., -2] + TINY) / (sums[..., -1] + SMALL)
    with np.errstate(under="ignore"):
        value = np.exp(np.log(found / total).mean(axis=-1) + np.minimum(0.0, 1 - 1 / lengths))
    return np.where(sums[..., -1] == 0, np.nan, value)


def rouge_l(texts: Texts) -> Floats:
    """Return each answer's F measure of the longest common subsequence [A], β = 1.2.

    As in COCO's code the best precision and the best recall may come from different references.
    """
    precision, recall = np.zeros((2, texts.num_answers))
    for place, answer, reference in texts.pairs():
        if common := LCSseq.similarity(reference, answer):
            precision[place] = max(precision[place], common / len(answer))
            recall[place] = max(recall[place], common / len(reference))
    weighted = recall + ROUGE_BETA**2 * precision
    return np.divide(
        (1 + ROUGE_BETA**2) * precision * recall, weighted, out=np.zeros_like(weighted), where=weighted > 0
    )


def _lines(answered: Sequence[Answered]) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Return references and answers as COCO's programs take them: place -> texts, tokens between spaces."""

    def line(text: str) -> str:
        return " ".join(token for token in caption_tokens(text) if "|||" not in token)

    return (
        {place: [*map(line, item.references)] for place, item in enumerate(answered)},
        {place: [line(item.answer)] for place, item in enumerate(answered)},
    )


def _java_folder() -> Path | None:
    """Return the folder of COCO's Java programs; None if they or Java are not installed."""
    found = importlib.util.find_spec("pycocoevalcap")
    if shutil.which("java") is None or found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0])


def _what_java_lacks() -> str:
    """Say what to install for `_java_folder` to be there."""
    lacking = [] if shutil.which("java") else ["a Java runtime (apt-get install default-jre-headless)"]
    if importlib.util.find_spec("pycocoevalcap") is None:
        lacking.append("pip install 'salmonn-pipeline[meteor]'")
    return f"needs {' and '.join(lacking)}"


def _meteor(answered: Sequence[Answered], tokens: str) -> Measured:
    """Return METEOR of the corpus; Java computes it as a whole, so it has no interval."""
    signature = f"meteor-1.5|en|norm|{tokens}"
    if _java_folder() is None:
        return unavailable("meteor", len(answered), signature=signature, note=_what_java_lacks())
    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()
    try:
        value, _ = meteor.compute_score(*_lines(answered))
    except (OSError, ValueError) as error:  # Java ended, or wrote what is no number
        meteor.lock.release()  # its destructor would wait for it for ever
        return unavailable("meteor", len(answered), signature=signature, note=f"Java failed: {error}")
    return Measured(
        name="meteor",
        rows=np.zeros((len(answered), 0)),
        of_sums=lambda sums: np.full(sums.shape[:-1], value),
        signature=signature,
        items=len(answered),
        notes=("no interval: Java scores the corpus as a whole",),
    )


def _spice(answered: Sequence[Answered], cider: Floats, tokens: str) -> Iterator[Measured]:
    """Yield SPICE, and SPIDEr, its mean with CIDEr-D; the program that parses sentences is never downloaded."""
    names, signature = ("spice", "spider"), f"spice-1.0|corenlp:3.6.0|{tokens}"
    folder = _java_folder()
    missing = [name for name in SPICE_JARS if folder and not (folder / "spice" / "lib" / name).exists()]
    if folder is None or missing:
        note = _what_java_lacks()
        if folder:
            note = f"needs {' and '.join(missing)} in spice/lib of the installed pycocoevalcap, out of {SPICE_SOURCE}"
        yield from (unavailable(name, len(answered), signature=signature, note=note) for name in names)
        return
    from pycocoevalcap.spice.spice import Spice

    try:
        _, found = Spice().compute_score(*_lines(answered))
    except (OSError, subprocess.CalledProcessError) as error:
        note = f"Java failed: {error}"
        yield from (unavailable(name, len(answered), signature=signature, note=note) for name in names)
        return
    spice = np.array([one["All"]["f"] for one in found])
    yield mean("spice", spice, signature=signature)
    yield mean("spider", (spice + cider) / 2, signature=signature)
