"""Covers pipelines.manifest.tools.check, pipelines.manifest.tools.config, pipelines.manifest.tools.info,
pipelines.manifest.tools.plot, pipelines.manifest.tools.sample, pipelines.storage.arrays.
"""

import json
import random
import re
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoders.audio import Segment
from pipelines.cli import main
from pipelines.manifest.ids import clip_id, example_id
from pipelines.manifest.tables import CLIP_SCHEMA, EXAMPLE_SCHEMA, Clip, Example, read_rows
from pipelines.manifest.tools.info import summarise
from pipelines.manifest.writer import ManifestWriter
from tests.toy import write_tone_corpus, write_tones


def clip_of(recording, *, corpus="c", split="train", root="/r", seconds=2.0):
    segments = (Segment(recording),)
    return Clip(
        clip_id=clip_id(corpus, segments), corpus=corpus, split=split, root=root, segments=segments, seconds=seconds
    )


def example_of(clip, *, task="asr", question=None, answer="yes", split=None):
    identity = example_id(clip.clip_id, split or clip.split, task, question, answer)
    return Example(
        example_id=identity,
        clip_id=clip.clip_id,
        corpus=clip.corpus,
        split=split or clip.split,
        task=task,
        question=question,
        answer=answer,
    )


def write(folder, clips, examples):
    with ManifestWriter(str(folder), append=False) as writer:
        for clip in clips:
            writer.add_clip(clip)
        for example in examples:
            writer.add_example(example)
    return str(folder)


@pytest.fixture
def tones(tmp_path):
    """A clean manifest of twelve recordings that are there, four of them in the split test."""
    folder = write_tone_corpus(tmp_path / "tones")
    words = [f"table={folder}/table.jsonl", f"audio_root={folder}/audio", f"out={tmp_path}/m"]
    assert main(["prepare", "table", *words]) == 0
    return str(tmp_path / "m")


def check(manifest, capsys, *words):
    """Return exit code, what was printed and the one line of the error."""
    capsys.readouterr()
    code = main(["manifest", "check", f"manifest={manifest}", *words])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("seed", range(3))
def test_summary_is_that_of_counting_by_hand(tmp_path, seed):
    rng = random.Random(seed)
    clips = [
        clip_of(f"{number}.wav", corpus=rng.choice("ab"), seconds=rng.choice([None, 1.5, 20.0])) for number in range(60)
    ]
    examples = [
        example_of(clip, task=task, split=rng.choice(["train", "test"]), answer=str(rng.random()))
        for clip in clips
        for task in rng.choices(["asr", "aqa", "sqa"], k=rng.randrange(4))
    ]
    summary = summarise(write(tmp_path / "m", clips, examples))
    seconds = {clip.clip_id: clip.seconds or 0.0 for clip in clips}
    assert (summary.clips, summary.examples) == (60, len(examples))
    assert summary.hours == pytest.approx(sum(seconds.values()) / 3600)
    assert summary.unknown_lengths == sum(clip.seconds is None for clip in clips)
    assert (summary.shortest_seconds, summary.longest_seconds) == (1.5, 20.0)
    assert [(row.corpus, row.split, row.task) for row in summary.tasks] == sorted(
        {(example.corpus, example.split, example.task) for example in examples}
    )
    for row in summary.tasks:
        mine = [e for e in examples if (e.corpus, e.split, e.task) == (row.corpus, row.split, row.task)]
        heard = {example.clip_id for example in mine}
        assert (row.clips, row.examples) == (len(heard), len(mine))
        assert row.hours == pytest.approx(sum(seconds[clip] for clip in heard) / 3600)


def test_summary_does_not_depend_on_the_groups_of_rows(tones, monkeypatch):
    whole = summarise(tones)
    monkeypatch.setattr("pipelines.storage.tables.ROWS_PER_GROUP", 5)
    assert summarise(tones) == whole and whole.clips == 12


def test_info_is_a_table_or_json(tones, capsys):
    assert main(["manifest", "info", f"manifest={tones}"]) == 0
    shown = capsys.readouterr().out
    assert "examples  12" in shown and re.search(r"table +test +audiocaption +3 +3 ", shown)
    assert main(["manifest", "info", f"manifest={tones}", "json=true"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["clips"] == 12 and [row["split"] for row in told["tasks"]] == ["test", "train"]


def test_manifest_without_rows_is_counted_and_not_drawn(tmp_path, capsys):
    (tmp_path / "m").mkdir()
    pq.write_table(CLIP_SCHEMA.empty_table(), tmp_path / "m" / "clips.parquet")
    pq.write_table(EXAMPLE_SCHEMA.empty_table(), tmp_path / "m" / "examples.parquet")
    assert main(["manifest", "info", f"manifest={tmp_path}/m"]) == 0
    assert check(tmp_path / "m", capsys)[0] == 0
    assert main(["manifest", "plot", f"manifest={tmp_path}/m", f"out={tmp_path}/x.png"]) == 2
    assert "holds no examples" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["info", "check", "sample", "plot"])
def test_folder_without_a_manifest_is_named(tmp_path, capsys, verb):
    words = ["out=x.png"] if verb == "plot" else []
    assert main(["manifest", verb, f"manifest={tmp_path}/none", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "none: no manifest there" in error


def test_clean_manifest_passes(tones, capsys):
    code, out, _ = check(tones, capsys)
    assert code == 0 and out == f"{tones}: 12 clips, 12 examples, 12 recordings looked for\n"


def test_missing_recordings_are_counted_and_the_first_listed(tones, tmp_path, capsys):
    for number in (1, 4, 7):
        (tmp_path / "tones" / "audio" / f"tone-{number}.wav").unlink()
    code, out, error = check(tones, capsys, "listed=2")
    assert code == 1 and "missing recordings: 3" in error
    assert out.splitlines()[1:] == [
        "missing recordings: 3",
        f"  {tmp_path}/tones/audio/tone-1.wav",
        f"  {tmp_path}/tones/audio/tone-4.wav",
        "  …",
    ]
    assert check(tones, capsys, "fraction=0")[0] == 0


def test_some_of_the_recordings_can_be_looked_for(tmp_path, capsys):
    clips = [clip_of(f"{number}.wav") for number in range(400)]
    manifest = write(tmp_path / "m", clips, map(example_of, clips))
    code, out, _ = check(manifest, capsys, "fraction=0.25")
    assert code == 1 and check(manifest, capsys, "fraction=0.25")[1] == out
    assert 60 < int(re.search(r"(\d+) recordings looked for", out)[1]) < 140


def test_archives_are_looked_for_and_recordings_once(tmp_path, capsys):
    (name,) = write_tones(tmp_path / "audio", [1.0])
    with tarfile.open(tmp_path / "audio" / "a.tar", "w") as tar:
        tar.add(tmp_path / "audio" / name, "x.wav")
    root = str(tmp_path / "audio")
    there = clip_of("a.tar!x.wav", root=root)
    parts = (Segment(name, 0.0, 0.5), Segment(name, 0.5), Segment("b.tar!x.wav"))
    joined = Clip(clip_id=clip_id("c", parts), corpus="c", split="train", root=root, segments=parts, seconds=1.1)
    manifest = write(tmp_path / "m", [there, joined], [example_of(there), example_of(joined)])
    code, out, error = check(manifest, capsys)
    assert code == 1 and "3 recordings looked for" in out and f"  {root}/b.tar!x.wav" in out
    assert "missing recordings: 1\n" in error


def test_tables_that_disagree_are_reported(tmp_path, capsys):
    clips = [clip_of(f"{number}.wav") for number in range(6)]
    examples = [example_of(clip) for clip in clips[:4]]
    manifest = write(tmp_path / "m", [*clips, clips[0]], [*examples, examples[1], example_of(clip_of("gone.wav"))])
    code, out, _ = check(manifest, capsys, "fraction=0")
    assert code == 1
    assert out.splitlines()[1:] == [
        "clips without an example: 2",
        f"  {clips[4].clip_id}",
        f"  {clips[5].clip_id}",
        "duplicated clips: 1",
        f"  {clips[0].clip_id}",
        "duplicated examples: 1",
        f"  {examples[1].example_id}",
        "examples without their clip: 1",
        f"  {example_of(clip_of('gone.wav')).example_id}",
    ]


def test_recordings_of_training_and_test_are_leaks(tmp_path, capsys):
    cuts = [
        ("talk.wav", 0.0, "c", "train-clean"),
        ("talk.wav", 9.0, "c", "test"),
        ("talk.wav", 5.0, "c", "dev"),
        ("same.wav", 0.0, "c", "train-clean"),
        ("same.wav", 9.0, "c", "train-other"),
        ("both.wav", 0.0, "c", "train-clean"),
        ("both.wav", 0.0, "d", "test"),
    ]
    clips = []
    for recording, start, corpus, split in cuts:
        segments = (Segment("other.wav" if start else "x.wav", start, 1.0), Segment(recording, start, 2.0))
        segments = segments[1:] if recording != "talk.wav" else segments
        clips.append(
            Clip(
                clip_id=clip_id(corpus, segments), corpus=corpus, split=split, root="/r", segments=segments, seconds=2.0
            )
        )
    clips.append(clip_of("one.wav"))
    examples = [*map(example_of, clips), example_of(clips[-1], split="test", task="aqa", question="What?")]
    code, out, _ = check(write(tmp_path / "m", clips, examples), capsys, "fraction=0")
    lines = out.splitlines()[1:]
    assert code == 1
    assert lines[:2] == ["examples in another split than their clip: 1", f"  {examples[-1].example_id}"]
    assert lines[2] == "recordings in several splits: 2"
    assert sorted(lines[3:]) == ["  c: other.wav (test, dev)", "  c: talk.wav (train, test, dev)"]


def test_examples_that_cannot_be_asked_or_answered_are_reported(tmp_path, capsys):
    clip = clip_of("a.wav")
    examples = [
        example_of(clip, answer=" \n"),
        example_of(clip, task="sqa", question="Who?"),
        example_of(clip, task="sqa"),
        example_of(clip, task="whistling", question="Which tune?"),
        example_of(clip, task="whistling", question=" "),
    ]
    code, out, _ = check(write(tmp_path / "m", [clip], examples), capsys, "fraction=0")
    assert code == 1
    assert out.splitlines()[1:] == [
        "examples of task 'sqa' without a question: 1",
        f"  {examples[2].example_id}",
        "examples of task 'whistling' without a question: 1",
        f"  {examples[4].example_id}",
        "examples with an empty answer: 1",
        f"  {examples[0].example_id}",
    ]


def test_faults_do_not_depend_on_the_groups_of_rows(tmp_path, capsys, monkeypatch):
    clips = [
        clip_of(f"{number % 9}.wav", corpus="ab"[number % 2], split=["train", "test"][number % 5 // 4])
        for number in range(30)
    ]
    manifest = write(tmp_path / "m", clips, [example_of(clip) for clip in clips[5:]])
    whole = check(manifest, capsys)
    assert whole[0] == 1 and "recordings in several splits" in whole[1] and "duplicated clips: 12" in whole[1]
    monkeypatch.setattr("pipelines.storage.tables.ROWS_PER_GROUP", 4)
    assert check(manifest, capsys) == whole


def test_malformed_ids_are_named(tmp_path, capsys):
    clip = clip_of("a.wav")
    manifest = write(tmp_path / "m", [clip.__class__(**{**vars(clip), "clip_id": "clip-1"})], [example_of(clip)])
    code, _, error = check(manifest, capsys)
    assert code == 2 and "'clip-1': must be 32 hex digits" in error


def test_samples_are_readable_and_the_same_for_a_seed(tones, capsys):
    def sample(*words):
        assert main(["manifest", "sample", f"manifest={tones}", *words]) == 0
        return capsys.readouterr().out

    capsys.readouterr()
    first = sample("n=3", "split=train")
    assert sample("n=3", "split=train") == first != sample("n=3", "split=train", "seed=1")
    assert first.count("table · train · audiocaption") == 3 and first.endswith("3 of 9 examples\n")
    assert "Describe what can be heard.  (the task's first)" in first
    assert re.search(r"recording  \S+/audio/tone-\d+\.wav\n  clip       [0-9a-f]{32}, 1\.\d\d s", first)
    assert sample("n=99").endswith("12 of 12 examples\n")


def test_sample_shows_times_and_own_questions(tmp_path, capsys):
    segments = (Segment("a.wav", 3.0, 1.5), Segment("b.wav", 2.0))
    clip = Clip(clip_id=clip_id("c", segments), corpus="c", split="test", root="/r", segments=segments, seconds=None)
    manifest = write(
        tmp_path / "m", [clip], [example_of(clip, task="sqa", question="Who?"), example_of(clip, task="sqa")]
    )
    assert main(["manifest", "sample", f"manifest={manifest}"]) == 0
    out = capsys.readouterr().out
    assert "  question   Who?\n" in out and "question   none: task 'sqa' asks" in out
    assert "/r/a.wav  3.00 to 4.50 s\n" in out and "/r/b.wav  from 2.00 s\n" in out and "length unknown" in out


def test_sample_of_what_is_not_there_is_refused(tones, capsys):
    assert main(["manifest", "sample", f"manifest={tones}", "task=asr"]) == 2
    assert "no example with corpus=, split=, task=asr" in capsys.readouterr().err


def test_rows_are_found_by_number(tones, monkeypatch):
    monkeypatch.setattr("pipelines.storage.tables.ROWS_PER_GROUP", 5)
    rows = read_rows(tones, "clips.parquet", ["clip_id", "segments"], [11, 0, 5, 4])
    found = [row["segments"][0]["recording"] for row in rows]
    assert found == ["tone-0.wav", "tone-4.wav", "tone-5.wav", "tone-11.wav"]


@pytest.mark.parametrize(("ending", "begin"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("html", b"\n<!doctype html>")])
def test_pictures_are_drawn_the_same_each_time(tones, tmp_path, ending, begin):
    for name in "ab":
        assert main(["manifest", "plot", f"manifest={tones}", f"out={tmp_path}/{name}.{ending}"]) == 0
    drawn = [(tmp_path / f"{name}.{ending}").read_bytes() for name in "ab"]
    assert drawn[0] == drawn[1] and drawn[0].lstrip(b"\n").startswith(begin.lstrip(b"\n"))


def test_names_of_a_manifest_are_escaped_on_its_page(tmp_path):
    clip = clip_of("a.wav", corpus="<i>c</i> $x$")
    manifest = write(tmp_path / "m", [clip], [example_of(clip, task="<script>$", question="?")])
    assert main(["manifest", "plot", f"manifest={manifest}", f"out={tmp_path}/x.html"]) == 0
    page = (tmp_path / "x.html").read_text()
    assert "&lt;script&gt;$" in page and "<script" not in page and "<i>c" not in page


def test_other_endings_of_a_picture_are_refused(tones, tmp_path, capsys):
    assert main(["manifest", "plot", f"manifest={tones}", f"out={tmp_path}/x.gif"]) == 2
    assert "must end in .png, .svg or .html" in capsys.readouterr().err


def test_lengths_outside_the_axis_are_counted_too(tmp_path):
    from pipelines.manifest.tools.plot import _lengths

    clips = [clip_of(f"{number}.wav", seconds=seconds) for number, seconds in enumerate([0.0, 29.9, 30.0, None])]
    counts = _lengths(write(tmp_path / "m", clips, [example_of(clips[0])]))["c"]
    assert (counts[0], counts[-1], counts.sum()) == (1, 2, 3)
    assert pa.types.is_floating(CLIP_SCHEMA.field("seconds").type)
