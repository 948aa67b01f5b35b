"""Covers pipelines.inference.units."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm.prompts import PROMPTS
from pipelines.inference.questions import Questions, load_questions
from pipelines.inference.units import cut_units, with_lengths
from pipelines.manifest.tables import CLIP_SCHEMA, EXAMPLE_SCHEMA


class Cache:
    """Holds the clips of these names."""

    uri = "cache"

    def __init__(self, *clips):
        self.clips = clips

    def positions(self, ids):
        return pa.array([self.clips.index(clip) if clip in self.clips else -1 for clip in ids.to_pylist()]).to_numpy()


def manifest(folder, *rows):
    """Write examples of (clip, task, question, answer)."""
    names = ("clip_id", "task", "question", "answer")
    table = [
        {"example_id": str(number), "corpus": "c", "split": "test", **dict(zip(names, row, strict=True))}
        for number, row in enumerate(rows)
    ]
    pq.write_table(pa.Table.from_pylist(table, EXAMPLE_SCHEMA), folder / "examples.parquet")
    clips = [
        {"clip_id": clip, "corpus": "c", "segments": [{"recording": f"{clip}{part}.wav"} for part in parts]}
        for clip, parts in (("unasked", "1"), ("b", "12"), ("a", "1"))
    ]
    pq.write_table(pa.Table.from_pylist(clips, CLIP_SCHEMA), folder / "clips.parquet")
    return str(folder)


def load(uri, *clips):
    return load_questions(uri, Cache(*clips), splits=["test"], tasks=[], max_missing_fraction=0.5)


def test_a_clip_is_asked_once_for_all_its_references(tmp_path):
    captions = [("a", "audiocaption", None, f"caption {number}") for number in range(5)]
    others = [("b", "audiocaption", "", "rain"), ("b", "aqa", "How loud?", "loud"), ("gone", "aqa", "What?", "x")]
    questions = load(manifest(tmp_path, *captions, *others), "a", "b")
    first = PROMPTS["audiocaption"][0]
    found = [tuple(row[name] for name in ("clip_id", "task", "question")) for row in questions.table.to_pylist()]
    assert found == [("a", "audiocaption", first), ("b", "audiocaption", first), ("b", "aqa", "How loud?")]
    assert questions.table["references"].to_pylist() == [[f"caption {n}" for n in range(5)], ["rain"], ["loud"]]
    assert questions.table["recordings"].to_pylist() == [["a1.wav"], ["b1.wav", "b2.wav"], ["b1.wav", "b2.wav"]]
    assert questions.table["example_ids"].to_pylist() == [list("01234"), ["5"], ["6"]]
    assert (len(questions), questions.num_examples, questions.missing) == (3, 7, 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_whole_clips_change_places_within_task_and_corpus(seed):
    rows = [(clip, "aqa", "c") for clip in "abcabc"] + [(clip, "sqa", "d") for clip in "xyab"] + [("l", "mqa", "c")]
    columns = {name: [row[place] for row in rows] for place, name in enumerate(("clip_id", "task", "corpus"))}
    other = Questions(pa.table(columns), 11, 0).of_other_clips(seed).to_pylist()
    assert all(mine != its for (mine, _, _), its in zip(rows, other, strict=True))
    assert sorted(other[:6]) == list("aabbcc") and other[:3] == other[3:6]
    assert sorted(other[6:10]) == list("abxy")
    assert other[10] is None  # there is no other one


def test_units_hold_what_has_no_answer_once_the_longest_first():
    rows = [(f"clip{number}", "Q?", ["x" * number]) for number in range(1, 41)]
    table = pa.table({name: [row[place] for row in rows] for place, name in enumerate(("clip_id", "question", "r"))})
    wanted = with_lengths(table, table["r"])
    twice = pa.concat_tables([wanted, wanted])
    answered = table.slice(0, 5)
    units = list(cut_units(twice, answered, setting=1, workers=2, batch=2, in_whole_batches=True))
    assert {unit.setting for unit in units} == {1} and {len(unit.clip_ids) for unit in units[:-1]} == {4}
    assert [clip for unit in units for clip in unit.clip_ids] == [f"clip{number}" for number in range(40, 5, -1)]
    again = list(cut_units(wanted, answered, setting=1, workers=2, batch=2, in_whole_batches=True))
    assert [unit.unit_id for unit in again] == [unit.unit_id for unit in units]
    assert list(cut_units(wanted, table, setting=0, workers=2, batch=2, in_whole_batches=True)) == []


@pytest.mark.parametrize(
    ("count", "workers", "sizes"),
    [
        (24, 2, [12, 12]),
        (96, 2, [24, 24, 24, 24]),
        (33, 1, [17, 16]),
        (3, 4, [1, 1, 1]),
        (3000, 2, [188] * 15 + [180]),
        (0, 2, []),
    ],
)
def test_even_units_give_every_worker_as_much(count, workers, sizes):
    rows = {"clip_id": [f"c{row}" for row in range(count)], "question": ["?"] * count, "length": [1.0] * count}
    wanted = pa.table(rows, pa.schema({"clip_id": pa.string(), "question": pa.string(), "length": pa.float64()}))
    units = cut_units(wanted, wanted.slice(0, 0), setting=0, workers=workers, batch=32, in_whole_batches=False)
    assert [len(unit.clip_ids) for unit in units] == sizes


def test_the_length_of_an_answer_is_the_mean_of_its_references():
    table = pa.table({"clip_id": ["a", "b"], "question": ["?", "?"], "r": [["ab", "abcd"], ["x"]]})
    assert with_lengths(table, table["r"])["length"].to_pylist() == [3.0, 1.0]
