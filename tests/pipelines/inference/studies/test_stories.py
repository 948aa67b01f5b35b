"""Covers pipelines.inference.studies.stories, pipelines.inference.studies.candidates,
pipelines.inference.studies.review.
"""

import dataclasses
import io
import json
import shutil
import sys

import pyarrow.parquet as pq
import pytest

from pipelines.cli import main
from pipelines.errors import UserError
from pipelines.inference import answering
from pipelines.inference.studies.candidates import Candidate, distinct_share, flaw_of, with_decisions, write_candidates
from pipelines.inference.studies.config import StoriesConfig
from pipelines.inference.studies.review import accept_first, accept_named, ask_person
from pipelines.manifest.tables import read_clips, read_examples
from tests.pipelines.builders import config_of, losses, train_here

LENIENT = ["min_words=1", "min_distinct=0", "temperature=1.5", "max_new_tokens=12", "top_p=1"]


def config(**keys) -> StoriesConfig:
    given = {"run": "r", "manifest": "m", "cache": "c", "out": "o", "min_words": 4, "max_words": 8, "min_distinct": 0.7}
    return StoriesConfig(**(given | keys))


def candidate(name: str, story: str = "the dog ran out at noon", **keys) -> Candidate:
    return Candidate(
        clip_id=name, recordings=(f"{name}.wav",), known=("aqa: a dog",), written=story, story=story, **keys
    )


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_run_writes_stories_that_stage_3_learns(unbroken, corpus, tmp_path, monkeypatch, capsys):
    run, out = shutil.copytree(unbroken, tmp_path / "run"), tmp_path / "stories"
    words = ["stories", f"run={run}", f"manifest={corpus[0]}", f"cache={corpus[1]}", f"out={out}", *LENIENT, "clips=4"]
    assert main(words) == 1
    assert "no story is accepted yet" in capsys.readouterr().err
    lines = [json.loads(line) for line in (out / "candidates.jsonl").read_text().splitlines()]
    train = {clip.clip_id for clip in read_clips(corpus[0]) if clip.split == "train"}
    assert len(lines) == 4 and {line["clip_id"] for line in lines} <= train
    assert not (out / "examples.parquet").exists()
    monkeypatch.setattr(answering, "run_units", lambda *_, **__: pytest.fail("written again"))

    lines[0] |= {"accept": True, "story": "A tone rose over the hills, and all the birds fell silent."}
    lines[1] |= {"accept": False}
    (out / "candidates.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([*words, "accept_first=9"]) == 1  # two more are offered, or none
    assert not (out / "examples.parquet").exists()
    assert main([*words, f"accept=[{lines[2]['clip_id'][:12]}]"]) == 0
    examples = list(read_examples(str(out)))
    told = {example.clip_id: example.answer for example in examples}
    assert told[lines[0]["clip_id"]] == lines[0]["story"] and lines[1]["clip_id"] not in told
    assert told[lines[2]["clip_id"]] == lines[2]["written"]
    assert {(example.task, example.split, example.question) for example in examples} == {("audio_story", "train", None)}
    assert {clip.clip_id for clip in read_clips(str(out))} == told.keys()
    assert main(words) == 2 and "append=true" in capsys.readouterr().err

    stage3 = config_of((str(out), corpus[1]), tmp_path / "stage3", init_from=str(run), lora_scaling=0.5, steps=4)
    train_here(dataclasses.replace(stage3, tasks=["audio_story"], batch_examples=4))
    assert losses(stage3.run)[-1] < losses(stage3.run)[0]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_drawn_stories_depend_on_the_seed_and_stand_in_any_manifest(unbroken, corpus, tmp_path):
    run = shutil.copytree(unbroken, tmp_path / "run")
    manifest = shutil.copytree(corpus[0], tmp_path / "m")
    words = ["stories", f"run={run}", f"manifest={manifest}", f"cache={corpus[1]}", *LENIENT, "clips=9", "workers=1"]
    before = pq.read_table(manifest / "examples.parquet").num_rows
    same = [*words, f"out={manifest}", "append=true", "split=stories", "accept_first=2"]
    assert main(same) == 0 and main(same) == 0  # what is there is not added twice
    table = pq.read_table(manifest / "examples.parquet")
    assert table.num_rows == before + 2 and table["split"].to_pylist()[before:] == ["stories"] * 2
    assert pq.read_table(manifest / "clips.parquet").num_rows == 12
    assert main([*words, f"out={tmp_path / 'other'}", "seed=1", "accept_first=1"]) == 0
    told = [
        {line["clip_id"]: line["written"] for line in map(json.loads, (folder / "candidates.jsonl").open())}
        for folder in (manifest, tmp_path / "other")
    ]
    assert told[0].keys() == told[1].keys() and told[0] != told[1]


@pytest.mark.parametrize(
    ("story", "flaw"),
    [
        ("One two three.", "3 words"),
        ("one two three four five six seven eight nine", "9 words"),
        ("go on go on go on go on", "67% repeated"),
        ("", "0 words"),
        ("A dog ran out at noon.", ""),
    ],
)
def test_stories_are_left_out_for_their_length_and_for_repetition(story, flaw):
    assert flaw_of(story, config()) == flaw


def test_repetition_counts_rows_of_three_words():
    assert distinct_share(["a", "b", "c", "a", "b", "c"]) == 3 / 4
    assert distinct_share(["a", "a"]) == 1.0


class TestFile:
    def test_decisions_and_corrections_outlive_another_call_and_a_new_story_is_undecided(self, tmp_path):
        first = [candidate("a", accept=True), candidate("b", accept=False), candidate("c")]
        first[0] = dataclasses.replace(first[0], story="corrected by a person")
        write_candidates(str(tmp_path), first, config())
        written_anew = [candidate("a"), candidate("b"), candidate("c", "another story of this clip")]
        assert with_decisions(str(tmp_path), written_anew) == [*first[:2], written_anew[2]]
        assert json.loads((tmp_path / "candidates.jsonl").read_text().splitlines()[0])["flaw"] == ""

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda line: "{", "not JSON"),
            (lambda line: "[]", "must be texts"),
            (lambda line: json.dumps(line | {"accept": "yes"}), "accept must be true, false or null"),
            (lambda line: json.dumps(line | {"story": " ", "accept": True}), "must not be empty"),
            (lambda line: json.dumps({name: line[name] for name in line if name != "accept"}), "accept must be"),
        ],
    )
    def test_a_line_that_was_edited_to_something_else_is_named(self, tmp_path, edit, message):
        write_candidates(str(tmp_path), [candidate("a"), candidate("b")], config())
        path = tmp_path / "candidates.jsonl"
        lines = path.read_text().splitlines()
        path.write_text(f"{lines[0]}\n{edit(json.loads(lines[1]))}\n")
        with pytest.raises(UserError, match=rf"candidates\.jsonl:2: .*{message}"):
            with_decisions(str(tmp_path), [candidate("a")])


class TestDecision:
    def test_ids_may_be_short_but_must_name_one_story(self):
        found = accept_named([candidate("abc"), candidate("abd"), candidate("e")], ["abd", "e"])
        assert [one.accept for one in found] == [None, True, True]
        for name, message in {"ab": "2 clips begin so", "x": "no story about such", "": "no story about such"}.items():
            with pytest.raises(UserError, match=message):
                accept_named([candidate("abc"), candidate("abd")], [name])

    def test_the_first_that_are_offered_and_not_declined_are_accepted(self):
        candidates = [candidate("a", "short"), candidate("b", accept=False), *map(candidate, "cde")]
        found = accept_first(candidates, config(accept_first=2))
        assert [one.accept for one in found] == [None, False, True, True, None]

    def test_a_person_sees_clip_and_captions_and_answers(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "stdin", io.StringIO("what\nn\nyes\nq\n"))
        candidates = [candidate("a", "short"), candidate("b", accept=True), *map(candidate, "cdef")]
        *_, decided = ask_person(candidates, config())
        assert [one.accept for one in decided] == [None, True, False, True, None, None]
        shown = capsys.readouterr().out
        assert "1/4  clip c: c.wav\n  aqa: a dog\n\nthe dog ran out at noon\n" in shown and "clip a" not in shown

    def test_the_end_of_the_input_decides_nothing(self, monkeypatch):
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        assert list(ask_person([candidate("a")], config())) == []


def test_ids_and_a_number_exclude_each_other():
    with pytest.raises(UserError, match="give one of them"):
        config(accept=["a"], accept_first=1)
