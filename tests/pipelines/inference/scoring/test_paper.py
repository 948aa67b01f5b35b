import json
import re

import pytest

from pipelines.inference.scoring.answers import Score, TaskScores
from pipelines.inference.scoring.paper import HEAD, PUBLISHED, cells, paper_table, to_json, to_markdown
from pipelines.inference.scoring.tasks import TASKS
from tests import SHARED


def scored(task, test_set, **values):
    scores = tuple(
        Score(name=name, value=value, low=value - 0.01, high=value + 0.01, signature=f"s|{name}", items=7)
        for name, value in values.items()
    )
    return TaskScores(task=task, test_set=test_set, clips=7, examples=7, references=7, scores=scores)


def lines_of(table, task):
    return [cells(row) for row in table if row.task == task]


def test_every_task_has_rows_in_the_order_of_the_task_table():
    table = paper_table([])
    assert list(dict.fromkeys(row.task for row in table)) == list(TASKS)
    assert sum(row.published is not None for row in table) == len(PUBLISHED)
    assert lines_of(table, "gender_recognition") == [("1", "gender_recognition", "—", "accuracy", *"——————")]


def test_published_scores_are_scores_of_their_tasks():
    for one in PUBLISHED:
        assert one.score in TASKS[one.task].scores


def test_ours_stands_beside_the_number_of_the_same_test_set():
    table = paper_table([scored("asr", "librispeech test-other", wer=0.05), scored("asr", "tedlium", wer=0.07)])
    assert lines_of(table, "asr") == [
        ("1", "asr", "LibriSpeech clean", "wer", "%", "—", "—", "2.1", "2.1", "2.2"),
        ("1", "asr", "librispeech test-other", "wer", "%", "5.0 (4.0 to 6.0)", "7", "4.9", "4.9", "5.1"),
        ("1", "asr", "GigaSpeech", "wer", "%", "—", "—", "9.1", "10.0", "9.2"),
        ("1", "asr", "tedlium", "wer", "%", "7.0 (6.0 to 8.0)", "7", "—", "—", "—"),
    ]


@pytest.mark.parametrize(
    ("task", "values", "shown"),
    [
        ("sqqa", {"accuracy": 0.25, "following_rate": 0.5}, ["0.25 (0.24 to 0.26)", "0.50 (0.49 to 0.51)"]),
        ("audio_story", {"diversity": 60.0}, ["60.00 (59.99 to 60.01)", "—"]),
        ("music_caption", {"bleu4": 0.05, "rouge_l": 0.2}, ["5.0 (4.0 to 6.0)", "20.0 (19.0 to 21.0)"]),
    ],
)
def test_ours_is_in_the_unit_of_the_paper(task, values, shown):
    test_set = "musiccaps" if task == "music_caption" else "any"
    assert [line[5] for line in lines_of(paper_table([scored(task, test_set, **values)]), task)] == shown


def test_tasks_that_the_paper_does_not_know_have_a_row():
    assert lines_of(paper_table([scored("digit", "own", accuracy=0.5)]), "digit") == [
        ("1", "digit", "own", "accuracy", "—", "0.50 (0.49 to 0.51)", "7", "—", "—", "—")
    ]


def test_the_table_is_written_in_markdown_and_json():
    table = paper_table([scored("en2zh", "covost | test", bleu4=0.3)])
    lines = to_markdown(table).splitlines()
    assert len(lines) == len(table) + 2 and {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(HEAD) + 1}
    row = json.loads(json.dumps(next(row for row in to_json(table) if row["task"] == "en2zh")))
    assert row["ours"] == 30 and row["paper_tuned"] == 33.1 and row["signature"] == "s|bleu4" and row["items"] == 7
    assert next(row for row in to_json(table) if row["task"] == "mqa")["ours"] is None


@pytest.mark.weights
def test_published_numbers_are_those_of_the_notes():
    notes = (SHARED / "facts.md").read_text().split("## Published results")[1].split("LoRA scaling")[0]
    rows = re.findall(r"^\| (?:with(?:out[^|]*)?|reference systems) \|(.*)\|$", notes, re.MULTILINE)
    found = [float(number) for row in rows for number in re.findall(r"\d*\.\d+", row)]
    ours = [number for one in PUBLISHED for number in (one.without, one.tuned, one.reference) if number is not None]
    assert sorted(ours) == sorted(found)
