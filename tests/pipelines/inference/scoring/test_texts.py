import random

import pytest

from pipelines.inference.scoring import texts
from pipelines.inference.scoring.texts import (
    basic,
    caption_tokens,
    characters,
    is_latin,
    normalise,
    phones,
    whisper_english,
)
from tests.pipelines.inference.scoring.builders import VOCABULARY, sentences

MARKED = [
    "falls.",
    "rain,",
    "who?",
    "no!",
    "dogs;",
    "(quietly)",
    '"so"',
    "half",
    "and",
    "point",
    "gonna",
    "cannot",
    "mm",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("TWO HUNDRED", "200"),
        ("MISTER SMITH", "mister smith"),
        ("Mr. Smith", "mister smith"),
        ("It’s the dog’s", "it is the dog is"),
        ("the   colour\tgrey\n", "the color gray"),
        ("cafe\u0301", "cafe"),
        ("um, well", "well"),
        ("", ""),
    ],
)
def test_english_is_written_as_whisper_writes_it(text, expected):
    assert whisper_english(text) == expected


def test_the_english_normaliser_is_that_of_transformers():
    """The mapping of spellings is the only part that transformers has no copy of."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer
    from whisper_normalizer.english import EnglishSpellingNormalizer

    theirs = EnglishTextNormalizer(EnglishSpellingNormalizer().mapping)
    for text in sentences(2000, seed=1, vocabulary=[*VOCABULARY, *MARKED]):
        assert whisper_english(text) == " ".join(theirs(text).split()), text


def test_the_short_way_gives_what_the_whole_normaliser_gives():
    words = [*VOCABULARY, *MARKED, *random.Random(0).sample(sorted(texts._touched_by_whisper()), 60)]
    for text in sentences(3000, seed=2, most_words=6, vocabulary=words):
        assert whisper_english(text) == " ".join(texts._whisper()(text).split()), text
        split = [token for part in texts.SENTENCE_END.split(text) for token in texts._treebank()(part)]
        kept = [token for token in split if token not in texts.COCO_PUNCTUATION]
        assert caption_tokens(text) == [texts.BRACKETS.get(token, token) for token in kept]


def test_a_word_that_the_normaliser_touches_is_written_the_same_anywhere_alone():
    touched = sorted(texts._touched_by_whisper())
    around = random.Random(0).choices(["", "rain", "and half", "rain and", "a half of", "gone."], k=2 * len(touched))
    for word, before, after in zip(touched, around[::2], around[1::2], strict=True):
        text = f"{before} {word} {after}".strip()
        assert whisper_english(text) == " ".join(texts._whisper()(text).split()), text


def test_numbers_too_long_for_python_are_read_as_words():
    assert whisper_english("1" * 5000) == "1" * 5000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("हिन्दी, में!", "हिन्दी में"),
        ("L\u2019e\u0301te\u0301 (non) est la\u0300.", "l été est là"),
        ("Привет,  МИР", "привет мир"),
    ],
)
def test_other_languages_keep_their_marks(text, expected):
    assert basic(text) == expected


def test_letters_of_other_scripts_are_noticed():
    assert is_latin("Über 200 €!") and is_latin("") and is_latin("ＡＢ")
    assert not is_latin("hello мир") and not is_latin("हिन्दी") and not is_latin("好")


def test_characters_are_those_of_words():
    assert characters("我 喜欢你。") == ["我", "喜", "欢", "你"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Dog's  “bone”!", "a dog's bone"),
        ("'quoted' (B) 7,5_x", "quoted b 7 5 x"),
        ("हिन्दी, में", "हिन्दी में"),
        ("ｄｏｇ\x00’tis", "dog tis"),
        ("a\x00b_c", "a b c"),
    ],
)
def test_labels_lose_punctuation_and_case(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [("HH AH0 L OW1", "hh ah l ow"), ("ˈh ɛ ˌl oʊ", "h ɛ l oʊ"), ("AH2\tB", "ah0 b")],
)
def test_case_and_stress_of_phones_are_notation(one, other):
    assert phones(one) == phones(other)
    assert phones("AH1 N") != phones("AH1 M")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A dog barks. It isn't far!", ["a", "dog", "barks", "it", "is", "n't", "far"]),
        ("3.5 cats (faint) - maybe...", ["3.5", "cats", "-lrb-", "faint", "-rrb-", "maybe"]),
        ("I cannot", ["i", "can", "not"]),
        ("a\u2028b\x0bc\r\nd", ["a", "b", "c", "d"]),
        ("", []),
    ],
)
def test_captions_are_split_as_in_the_treebank(text, tokens):
    assert caption_tokens(text) == tokens
