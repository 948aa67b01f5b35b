"""What is done to texts before they are compared: the field's normalisers and tokens, each applied once."""

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import version
from itertools import pairwise

NO_SPACES = re.compile("[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")
"""A character of a script that puts no spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, kana, Han."""
COCO_PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""Tokens that caption scores leave out."""
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
"""What brackets become. COCO's list names them in upper case, so none of them is left out there or here."""
APOSTROPHES = str.maketrans("’‘‛ʼ＇`´", "'''''''")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
PLAIN = re.compile(r"[a-z]+(?:[,.;:!?]? +[a-z]+)*[.!?]?")
"""Lower-case words with spaces, and no mark inside a word: what normalisers and tokenisers leave as it is."""

_NEITHER_LETTER_NOR_DIGIT = re.compile(r"[^a-z0-9\s']+")
_STRESS = re.compile("[ˈˌ'ʹ\"ˊ]")
_ARPABET = re.compile(r"(?<!\S)([A-Z]{1,3})[0-2](?!\S)")


def straight(text: str) -> str:
    """Return a text in NFC with plain apostrophes and single spaces."""
    if text.isascii():
        return " ".join(text.replace("`", "'").split())
    return " ".join(unicodedata.normalize("NFC", text).translate(APOSTROPHES).split())


def whisper_english(text: str) -> str:
    """Return a text as Whisper's English normaliser writes it: numbers as digits, contractions and titles in full.

    It costs 160 µs per sentence. Words that it would not touch are found in 10, and what it makes of one that stands
    alone among such words is asked once: it looks no further than at the words beside a number.
    """
    text = straight(text).lower()
    if PLAIN.fullmatch(text):
        words = re.findall("[a-z]+", text)
        touched = _touched_by_whisper()
        if touched.isdisjoint(words):
            return " ".join(words)
        if not any(_may_join(word) and _may_join(other) for word, other in pairwise(words)):
            return " ".join(filter(None, (_whisper_alone(word) if word in touched else word for word in words)))
    try:
        normalised = _whisper()(text)
    except (AssertionError, ValueError):  # on a number longer than Python reads or writes
        normalised = _basic()(text)
    return " ".join(normalised.split())


def basic(text: str) -> str:
    """Return lower-case words by Whisper's multilingual normaliser, with the marks that are vowels in Hindi or Thai."""
    return " ".join(_basic()(straight(text)).split())


def is_latin(text: str) -> bool:
    """Tell whether every letter is Latin: such texts are taken for English, the one language of the paper's ASR."""
    return text.isascii() or all(
        unicodedata.name(letter, "").startswith(("LATIN", "FULLWIDTH LATIN", "MODIFIER LETTER"))
        for letter in text
        if letter.isalpha()
    )


def characters(text: str) -> list[str]:
    """Return the characters of a text by the multilingual normaliser, but for white space."""
    return list(basic(text).replace(" ", ""))


def normalise(text: str) -> str:
    """Return lower-case words without punctuation, single spaces between them: how labels are compared.

    What stands in brackets stays, other than in `basic`: it may be an option's letter.
    """
    if text.isascii():
        text = _NEITHER_LETTER_NOR_DIGIT.sub(" ", text.lower().replace("`", "'"))
        if "'" not in text:
            return " ".join(text.split())
    else:
        text = unicodedata.normalize("NFKC", text).translate(APOSTROPHES).lower()
        text = "".join(" " if c != "'" and _is_no_letter(unicodedata.category(c)) else c for c in text)
    return " ".join(filter(None, (word.strip("'") for word in text.split())))


def _is_no_letter(category: str) -> bool:
    """Tell whether a category is punctuation, a symbol or a control character; marks are parts of letters."""
    return category[0] in "PS" or category == "Cc"


def words(text: str) -> list[str]:
    """Return a text's words in lower case, without punctuation."""
    return normalise(text).split()


def phones(text: str) -> str:
    """Return phones with a space between them, in one case and without stress: notation, not sound.

    ARPAbet's digits and the marks of the IPA and X-SAMPA go; what white space separates is a phone.
    """
    unstressed = _STRESS.sub("", unicodedata.normalize("NFC", text)).upper()
    return " ".join(_ARPABET.sub(r"\1", unstressed).split())


def caption_tokens(text: str) -> list[str]:
    """Return a caption's tokens as COCO's scores count them: the Penn Treebank's in lower case, without punctuation.

    NLTK's tokeniser knows the end of a text only, so each sentence is a text.
    """
    text = straight(text).lower()
    if PLAIN.fullmatch(text):
        found = re.findall("[a-z]+", text)
        if _split_by_treebank().isdisjoint(found):
            return found
    tokens = (token for sentence in SENTENCE_END.split(text) for token in _treebank()(sentence))
    return [BRACKETS.get(token, token) for token in tokens if token not in COCO_PUNCTUATION]


def versions(*packages: str) -> str:
    """Return `name:version` of each package, as they stand in a signature."""
    return "|".join(f"{package}:{_version(package)}" for package in packages)


_version = cache(version)


@cache
def _whisper() -> Callable[[str], str]:
    from whisper_normalizer.english import EnglishTextNormalizer

    normaliser: Callable[[str], str] = EnglishTextNormalizer()
    return normaliser


@cache
def _basic() -> Callable[[str], str]:
    from whisper_normalizer.basic import BasicTextNormalizer

    normaliser: Callable[[str], str] = BasicTextNormalizer(preserve_marks=True)
    return normaliser


@cache
def _touched_by_whisper() -> frozenset[str]:
    """Return the words that Whisper's normaliser may change where nothing but letters and spaces is around them.

    They are read from its own tables. `and` counts only beside one of the others.
    """
    from whisper_normalizer.english import EnglishTextNormalizer

    whole = EnglishTextNormalizer()
    patterns = [whole.ignore_patterns, *(pattern for pattern in whole.replacers if "'" not in pattern)]
    in_patterns: Iterable[str] = (
        word for pattern in patterns for word in re.findall("[a-z]+", pattern.replace(r"\b", " "))
    )
    found = frozenset([*in_patterns, *whole.standardize_numbers.words, *whole.standardize_spellings.mapping])
    return found - {"and"}


def _may_join(word: str) -> bool:
    """Tell whether a word may make a number with the one beside it."""
    return word == "and" or word in _touched_by_whisper()


@cache
def _whisper_alone(word: str) -> str:
    """Return what the normaliser makes of a word that it touches, among words that it does not."""
    return " ".join(_whisper()(f"x {word} x").split()[1:-1])


@cache
def _treebank() -> Callable[[str], list[str]]:
    from nltk.tokenize import TreebankWordTokenizer  # takes a second to import

    tokenise: Callable[[str], list[str]] = TreebankWordTokenizer().tokenize
    return tokenise


@cache
def _split_by_treebank() -> frozenset[str]:
    """Return the words without an apostrophe that the Treebank counts as two."""
    from nltk.tokenize.destructive import MacIntyreContractions

    patterns = MacIntyreContractions.CONTRACTIONS2 + MacIntyreContractions.CONTRACTIONS3
    return frozenset(re.sub(r"\(\?#X\)|\(\?i\)|\\[bs]|\W", "", pattern) for pattern in patterns)
