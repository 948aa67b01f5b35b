import pyarrow as pa
import pytest

from pipelines import storage
from pipelines.cli import main
from pipelines.inference.answer_table import ANSWERS, OWN
from pipelines.inference.compare import evaluations_compare
from pipelines.inference.config import EvaluationsCompareConfig

CLIPS = 40


def write_evaluation(folder, answers, *, task="sqa", references=None, corpus="tones") -> str:
    count = len(answers)
    table = {"clip_id": [str(n) for n in range(count)], "task": [task] * count, "corpus": [corpus] * count}
    table |= {"split": ["test"] * count, "question": ["Which?"] * count}
    table |= {"references": [[text] for text in references or ["dog"] * count], OWN: answers}
    storage.write_table(storage.join(str(folder), ANSWERS), pa.table(table))
    return str(folder)


def right(count) -> list[str]:
    return ["dog"] * count + ["cat"] * (CLIPS - count)


def compare(first, second, **keys):
    return evaluations_compare(EvaluationsCompareConfig(evaluations=[str(first), str(second)], **keys))


def test_differences_that_chance_does_not_make_are_told_from_others(tmp_path, capsys):
    good, fair, same = (
        write_evaluation(tmp_path / name, right(count)) for name, count in (("good", 36), ("fair", 10), ("same", 35))
    )
    (clear,) = compare(good, fair)
    assert (clear.name, clear.ours, clear.theirs) == ("accuracy", 0.9, 0.25)
    assert clear.difference == pytest.approx(0.65) and 0.4 < clear.low < 0.65 < clear.high and clear.p_value < 0.01
    (unclear,) = compare(good, same)
    assert unclear.p_value > 0.05
    assert "+0.650" in capsys.readouterr().out
    (turned,) = compare(fair, good)
    assert turned.difference == -clear.difference and turned.p_value == pytest.approx(clear.p_value, abs=0.01)


def test_runs_stand_for_what_both_were_evaluated_on(tmp_path, capsys):
    for run, splits in (("a", ("test", "all")), ("b", ("test", "dev"))):
        for name in splits:
            write_evaluation(tmp_path / run / "evaluation" / name, right(20))
    assert len(compare(tmp_path / "a", tmp_path / "b", out=str(tmp_path / "page.html"))) == 1
    page = (tmp_path / "page.html").read_text()
    assert "sqa" in page and "tones test" in page and "+0.000 to +0.000" in page
    write_evaluation(tmp_path / "c" / "evaluation" / "eval", right(20))
    assert main(["evaluations", "compare", f"evaluations=[{tmp_path / 'a'},{tmp_path / 'c'}]"]) == 2
    error = capsys.readouterr().err
    assert "no evaluation of the same splits" in error and "c has eval" in error


def test_only_what_both_have_is_compared(tmp_path):
    first = write_evaluation(tmp_path / "a", right(20))
    with pytest.raises(ValueError, match="no task on the same test set in common"):
        compare(first, write_evaluation(tmp_path / "b", right(20), corpus="others"))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"answers": right(20)[:-1]}, "1 questions are answered on one side, such as 'Which?' of clip 39"),
        ({"answers": right(20), "references": ["dog"] * 39 + ["fox"]}, "clip 39 has other references on either side"),
    ],
)
def test_other_questions_or_references_are_refused(tmp_path, second, message):
    first = write_evaluation(tmp_path / "a", right(20))
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        compare(first, write_evaluation(tmp_path / "b", **second))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_two_are_needed(count, capsys):
    given = ",".join(["here"] * count)
    assert main(["evaluations", "compare", f"evaluations=[{given}]"]) == 2
    assert "two are needed" in capsys.readouterr().err


def test_a_folder_without_an_evaluation_is_named(tmp_path, capsys):
    write_evaluation(tmp_path / "a", right(20))
    assert main(["evaluations", "compare", f"evaluations=[{tmp_path / 'a'},{tmp_path / 'no'}]"]) == 2
    assert f"{tmp_path / 'no'}: no evaluation there" in capsys.readouterr().err
