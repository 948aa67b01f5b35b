import shutil
from pathlib import Path

import numpy as np
import pycocoevalcap
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from pipelines.inference.scoring.captions import SPICE_JARS, SPICE_SOURCE, _lines, _meteor, _spice
from pipelines.inference.scoring.scores import score, score_task
from tests.pipelines.inference.scoring.builders import answered, captioned, no_java, pairs

__all__ = ["no_java"]
quick = pytest.mark.usefixtures("no_java")
java = pytest.mark.skipif(shutil.which("java") is None, reason="METEOR and COCO's own tokeniser need Java")


@quick
@pytest.mark.parametrize("task", ["audiocaption", "music_caption"])
@pytest.mark.parametrize("seed", [1, 2])
def test_scores_are_those_of_coco(task, seed):
    items = captioned(80, seed=seed)
    lines = _lines(items)
    found = score_task(task, items)
    assert found.value("bleu4") == pytest.approx(Bleu(4).compute_score(*lines, verbose=0)[0][3], rel=1e-9)
    assert found.value("rouge_l") == pytest.approx(Rouge().compute_score(*lines)[0], rel=1e-9)
    assert found.value("cider_d") == pytest.approx(Cider().compute_score(*lines)[0], rel=1e-9)
    assert all(one.low < one.value < one.high for one in found.scores[:3])


@quick
def test_rouge_l_by_hand():
    # "the cat … the mat" is common: 4 words of 6 in the reference and of 5 in the answer.
    expected = (1 + 1.44) * (4 / 5) * (4 / 6) / (4 / 6 + 1.44 * 4 / 5)
    assert score("music_caption", ["The cat sat on the mat."], ["the cat under the mat"])["rouge_l"] == pytest.approx(
        expected
    )
    assert score("music_caption", ["a b", "c"], ["b a", ""])["rouge_l"] == pytest.approx(0.5 / 2)


@quick
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_caption_that_is_one_of_five_is_right(place):
    captions = (
        "A dog barks in the yard.",
        "Barking of a dog, far away",
        "a dog barks at a passing car",
        "dog barking outdoors again and again",
        "An animal makes noise near the road",
    )
    items = [answered(captions, captions[place], clip="1"), answered(["Rain falls on a roof"], "rain falls on a roof")]
    found = score_task("audiocaption", items)
    assert found.value("bleu4") == pytest.approx(1) and found.value("rouge_l") == pytest.approx(1)
    assert (found.clips, found.examples, found.references) == (2, 2, 6)
    assert found.value("accuracy") == 1


@quick
@pytest.mark.parametrize(
    ("references", "value", "note"),
    [
        (["Rain falls"], None, "1 of 1 references shorter than 4 tokens"),
        (["Rain falls", "a dog", "wind."], None, "3 of 3 references shorter than 4 tokens"),
        (["Rain falls", "a dog barks loudly"], 1, "1 of 2 references shorter than 4 tokens"),
    ],
)
def test_short_captions_are_counted_beside_bleu(references, value, note):
    found = score_task("audiocaption", pairs(references, map(str.lower, references))).scores[0]
    assert found.value == (value and pytest.approx(value)) and found.notes == (note,)
    assert found.signature.startswith("coco|reflen:closest|tok:treebank") and score("audiocaption", ["x"], ["x"])


@quick
def test_cider_needs_two_clips():
    found = {one.name: one for one in score_task("music_caption", pairs(["a b c d"], ["a b c d"])).scores}
    assert found["cider_d"].value is None and "two clips" in found["cider_d"].notes[0]


@quick
def test_without_java_the_scores_that_need_it_say_so():
    found = {one.name: one for one in score_task("audiocaption", captioned(5, seed=1)).scores}
    for name in ("meteor", "spice", "spider"):
        assert found[name].value is None and found[name].notes == (
            "needs a Java runtime (apt-get install default-jre-headless)",
        )


@pytest.mark.usefixtures("no_java")
def test_without_cocos_programs_the_scores_that_need_them_say_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    scores = [_meteor(captioned(3, seed=1), ""), *_spice(captioned(3, seed=1), np.zeros(3), "")]
    needed = "needs a Java runtime (apt-get install default-jre-headless) and pip install 'salmonn-pipeline[meteor]'"
    assert [score.notes for score in scores] == [(needed,)] * 3


def test_java_that_fails_is_told(monkeypatch, tmp_path):
    (tmp_path / "java").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = _meteor(captioned(3, seed=1), "")
    assert found.items == 0 and found.notes[0].startswith("Java failed: ")


@java
def test_meteor_is_the_value_of_the_whole_corpus(monkeypatch):
    from pycocoevalcap.meteor.meteor import Meteor

    returned = []
    monkeypatch.setattr(
        Meteor, "compute_score", lambda *args, of=Meteor.compute_score: returned.append(of(*args)) or returned[0]
    )
    found = _meteor(captioned(20, seed=1), "")
    (whole, each), value = returned[0], float(found.of_sums(np.zeros(0)))
    assert value == whole != pytest.approx(sum(each) / len(each)) and 0.2 < value < 0.6
    assert found.notes == ("no interval: Java scores the corpus as a whole",)


def test_spice_names_the_files_that_it_lacks_and_where_they_are(monkeypatch, tmp_path):
    (tmp_path / "java").write_text("")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    spice, spider = _spice(captioned(5, seed=1), np.zeros(5), "")
    lib = Path(pycocoevalcap.__path__[0]) / "spice" / "lib"
    if all((lib / name).exists() for name in SPICE_JARS):
        assert spice.notes[0].startswith("Java failed: ")
    else:
        assert spice.notes == spider.notes and spice.items == 0
        assert (
            f"stanford-corenlp-3.6.0-models.jar in spice/lib of the installed pycocoevalcap, out of {SPICE_SOURCE}"
            in spice.notes[0]
        )


@java
def test_tokens_are_those_of_cocos_own_tokeniser():
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    items = captioned(200, seed=5)
    theirs = PTBTokenizer().tokenize({place: [{"caption": item.answer}] for place, item in enumerate(items)})
    assert _lines(items)[1] == theirs
