import random

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU

from pipelines.inference.scoring.scores import score, score_task
from pipelines.inference.scoring.translations import bleu_of_sums, split_plainly
from tests.pipelines.inference.scoring.builders import answered, captioned, pairs, sentences

CHINESE = ["我", "你", "喜欢", "夏天", "的", "雨", "GPT-4", "3.5%", "猫", "狗", "在", "家", "。", "，", "今天"]
JAPANESE = ["犬", "が", "好き", "です", "。", "今日", "は", "雨", "猫", "の", "東京", "ABC"]
GERMAN = ["Der", "Hund", "schläft", "hier.", "3,5", "km", "(ca.", "10-mal)!", '"Ja,"', "sagte", "er;", "z.B.", "&amp;"]


def near(texts, *, seed, joint):
    draw = random.Random(seed)
    return [joint.join(part for part in text.split() if draw.random() > 0.15) for text in texts]


@pytest.mark.parametrize(
    ("task", "name", "tokeniser", "vocabulary", "joint"),
    [
        ("en2de", "bleu4", "13a", GERMAN, " "),
        ("en2zh", "bleu4", "char", CHINESE, ""),
        ("en2zh", "bleu4_zh", "zh", CHINESE, ""),
        ("en2ja", "bleu4", "char", JAPANESE, ""),
        ("en2ja", "bleu4_mecab", "ja-mecab", JAPANESE, ""),
    ],
)
def test_bleu_is_that_of_sacrebleu(task, name, tokeniser, vocabulary, joint):
    texts = sentences(120, seed=1, vocabulary=vocabulary)
    references, answers = [joint.join(text.split()) for text in texts], near(texts, seed=2, joint=joint)
    bleu = BLEU(tokenize=tokeniser)
    expected = bleu.corpus_score(answers, [references]).score / 100
    found = next(one for one in score_task(task, pairs(references, answers)).scores if one.name == name)
    assert found.value == pytest.approx(expected, abs=1e-12) and 0.1 < expected < 0.9
    assert found.low < found.value < found.high
    assert found.signature == str(bleu.get_signature())


@pytest.mark.parametrize(
    ("tokeniser", "characters"), [("13a", "aäß².,' -3&\u00a0\n"), ("zh", "我。，３ｘ\u3000\u9fbba1. “")]
)
def test_plain_texts_are_split_as_sacrebleu_splits_them(tokeniser, characters):
    draw, whole, plain = random.Random(0), BLEU(tokenize=tokeniser).tokenizer, 0
    for _ in range(20_000):
        text = "".join(draw.choices(characters, k=draw.randint(0, 7)))
        tokens = split_plainly(text, tokeniser)
        plain += tokens is not None
        assert tokens is None or tokens == whole(text).split(), repr(text)
    assert plain > 1000


def test_bleu_of_several_references_is_that_of_sacrebleu():
    items = captioned(60, seed=3)
    padded = [
        [item.references[place] if place < len(item.references) else None for item in items] for place in range(5)
    ]
    bleu = BLEU(tokenize="13a")
    expected = bleu.corpus_score([item.answer for item in items], padded).score / 100
    found = score_task("en2de", items).scores[0]
    assert found.value == pytest.approx(expected, abs=1e-12) and found.signature == str(bleu.get_signature())


def test_values_of_sums_are_those_of_sacrebleu():
    draw = np.random.default_rng(0)
    for _ in range(300):
        total = np.sort(draw.integers(0, 12, 4))[::-1]
        found = draw.integers(0, total + 1)
        lengths = int(total[0]), int(draw.integers(1, 12))
        expected = BLEU.compute_bleu(list(found), list(total), *lengths, smooth_method="exp").score / 100
        assert bleu_of_sums(np.array([*found, *total, *lengths], float)) == pytest.approx(expected, abs=1e-12)


def test_bleu_by_hand():
    # 8 of 9 words, 5 of 7, 3 of 5 and 1 of 3 rows of two, three and four; 9 words for 10.
    found = score("en2de", ["a b c d e f", "g h i j"], ["a b c d f", "g h i k"])["bleu4"]
    precision = ((5 + 3) / 9 * (3 + 2) / 7 * (2 + 1) / 5 * (1 + 0) / 3) ** 0.25
    assert found == pytest.approx(precision * np.exp(1 - 10 / 9))


def test_case_and_punctuation_count_in_german():
    lower, same = (
        score("en2de", ["Der Hund schläft hier."], [answer])["bleu4"]
        for answer in ("der Hund schläft hier.", "Der Hund schläft hier .")
    )
    assert lower == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25) and same == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("references", "note"),
    [
        (["好"], "1 of 1 references shorter than 4 tokens"),
        (["雨", "雨天"], "2 of 2 references shorter than 4 tokens"),
        (["犬です", "です"], "2 of 2 references shorter than 4 tokens"),
    ],
)
def test_bleu_of_references_without_four_tokens_does_not_exist(references, note):
    found = score_task("en2zh", pairs(references, references)).scores[0]
    assert found.value is found.low is found.high is None
    assert found.notes == (note,) and found.signature.startswith(
        "nrefs:1|case:mixed|eff:no|tok:char|smooth:exp|version:"
    )


def test_short_references_are_counted_beside_the_value():
    found = score_task("en2de", [answered(["a b c d", "a b"], "a b c d")]).scores[0]
    assert (found.value, found.notes) == (pytest.approx(1), ("1 of 2 references shorter than 4 tokens",))
    assert score("en2de", ["a b c d"], [""]) == {"bleu4": 0}


def test_without_mecab_the_other_score_is_there(monkeypatch):
    from sacrebleu.tokenizers import tokenizer_ja_mecab

    monkeypatch.setattr(tokenizer_ja_mecab, "MeCab", None)
    by_characters, by_words = score_task("en2ja", pairs(["犬が好きです"], ["犬が好きです"])).scores
    assert by_characters.value == pytest.approx(1) and by_words.value is None
    assert "salmonn-pipeline[japanese]" in by_words.notes[0]
