"""Phones of utterances, from a lexicon or from a forced alignment."""

import re
from collections.abc import Mapping

from pipelines import storage
from pipelines.errors import UserError
from pipelines.manifest.corpora.text_files import read_lines

STRESS = "012"
SILENCE = ("", "sil", "sp", "SIL", "SP")
UNKNOWN = ("spn", "SPN", "<unk>")
"""What aligners write where a word was not in their dictionary."""

_TIER = re.compile(r'name = "(?:[^"]* - )?phones"(.*?)(?=item \[\d+\]:|\Z)', re.DOTALL)
_LABEL = re.compile(r'text = "([^"]*)"')


def read_lexicon(uri: str) -> dict[str, str]:
    """Return lower-case word -> its first pronunciation, phones separated by spaces and without stress.

    A line holds a word and its phones, with tabs or spaces between: LibriSpeech's lexicon (OpenSLR 11) or a Montreal
    Forced Aligner dictionary, whose probabilities are skipped.

    Raises:
        UserError: Naming the line that has no phones.
    """
    lexicon: dict[str, str] = {}
    for place, line in read_lines(uri):
        word, *cells = line.split()
        phones = [cell.rstrip(STRESS) for cell in cells if not cell[0].isdigit()]
        if not phones:
            raise UserError(f"{place}: {word!r} has no phones")
        lexicon.setdefault(word.lower(), " ".join(phones))
    return lexicon


def lexicon_phones(text: str, lexicon: Mapping[str, str]) -> str | None:
    """Return a lower-case text's phones; None if a word is not in the lexicon."""
    words = [lexicon.get(word) for word in text.split()]
    return " ".join(map(str, words)) if all(words) else None


def textgrid_phones(uri: str) -> str | None:
    """Return the phones of a Praat TextGrid (long text form) without silences and stress.

    None if there is no such file, as where the alignment failed, or if it has a word whose phones are not known.

    Raises:
        UserError: If the file has no tier of phones.
    """
    try:
        content = storage.read_bytes(uri).decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise UserError(f"{uri}: not UTF-8 ({error.reason})") from None
    tier = _TIER.search(content)
    if tier is None:
        raise UserError(f"{uri}: not a TextGrid in the long text form with a tier 'phones'")
    labels = [label for label in _LABEL.findall(tier[1]) if label not in SILENCE]
    known = labels and not any(label in UNKNOWN for label in labels)
    return " ".join(label.rstrip(STRESS) for label in labels) if known else None
