"""Covers pipelines.manifest.corpus, pipelines.manifest.lengths, pipelines.manifest.lengths_on_ray,
pipelines.manifest.writer.
"""

import dataclasses
import os
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from encoders.audio import Segment
from pipelines.manifest import prepare
from pipelines.manifest.corpus import CorpusExample, PrepareConfig, Skipped
from pipelines.manifest.prepare import write_manifest
from pipelines.manifest.tables import read_clips, read_examples
from pipelines.manifest.writer import ManifestWriter
from tests.toy import write_tones


def examples_of(numbers, *, tasks=("asr", "emotion_recognition"), split="train", stated=True):
    return [
        CorpusExample(
            (Segment(f"tone-{number}.wav", 0.0, 1.0 + number if stated else None),), split, task, f"{task} {number}"
        )
        for number in numbers
        for task in tasks
    ]


def write(folder, examples, *, root="/corpus", corpus="c", **keys):
    """Write a manifest; recordings need not be there unless a root is given."""
    keys = {"missing": "keep" if root == "/corpus" else "skip"} | keys
    return write_manifest(examples, corpus=corpus, root=str(root), config=PrepareConfig(out=str(folder), **keys))


def content(folder):
    return list(read_clips(str(folder))), list(read_examples(str(folder)))


def tables(folder):
    return [(folder / name).read_bytes() for name in ("clips.parquet", "examples.parquet")]


def test_same_corpus_gives_the_same_bytes(tmp_path):
    for name in "ab":
        write(tmp_path / name, examples_of(range(50)))
    assert tables(tmp_path / "a") == tables(tmp_path / "b")


def test_rows_do_not_depend_on_batches_and_groups(tmp_path, monkeypatch):
    examples = examples_of([0, 1, 2, 1, 3, 0, 4, 5, 6, 4, 7])
    write(tmp_path / "one", examples)
    monkeypatch.setattr("pipelines.manifest.prepare.BATCH_EXAMPLES", 3)
    monkeypatch.setattr("pipelines.storage.tables.ROWS_PER_GROUP", 4)
    report = write(tmp_path / "many", examples)
    assert (report.clips, report.examples, report.duplicates) == (8, 16, 6)
    assert content(tmp_path / "many") == content(tmp_path / "one")
    assert pq.ParquetFile(tmp_path / "many" / "clips.parquet").num_row_groups == 2


def test_appending_adds_what_is_new_behind_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.storage.tables.ROWS_PER_GROUP", 4)
    write(tmp_path / "m", examples_of(range(6)))
    report = write(tmp_path / "m", examples_of([9, 2, 5, 7], tasks=("asr", "gender_recognition")), append=True)
    assert (report.clips, report.examples, report.duplicates) == (2, 6, 2)
    write(tmp_path / "whole", [*examples_of(range(6)), *examples_of([9, 2, 5, 7], tasks=("asr", "gender_recognition"))])
    assert content(tmp_path / "m") == content(tmp_path / "whole")
    again = write(tmp_path / "m", examples_of([9]), append=True, corpus="other")
    assert (again.clips, again.examples, again.duplicates) == (1, 2, 0)


def test_a_clip_belongs_to_the_split_of_its_first_example(tmp_path):
    write(
        tmp_path / "m",
        [*examples_of([0], split="test"), *examples_of([0], split="train", tasks=["gender_recognition"])],
    )
    assert [clip.split for clip in content(tmp_path / "m")[0]] == ["test"]


def test_what_is_left_out_is_counted_and_listed(tmp_path, capsys):
    names = write_tones(tmp_path / "audio", [1.0, 1.5])
    (tmp_path / "audio" / "tone-9.wav").write_text("not audio")
    examples = examples_of([0, 1, 9, 5], tasks=["asr"], stated=False)
    entries = [Skipped("long.wav", "longer than 180 s", "200 s"), *examples, Skipped("b.wav", "no text")]
    late = CorpusExample((Segment(names[0], 1.0),), "train", "asr", "nothing left")
    report = write(tmp_path / "m", [*entries, late], root=tmp_path / "audio")
    skipped = {"longer than 180 s": 1, "no text": 1, "not there": 1}
    assert (report.clips, report.unreadable, report.skipped) == (4, 2, skipped)
    rows = pq.read_table(tmp_path / "m" / "skipped-001-c.parquet").to_pylist()
    assert [row["recording"] for row in rows] == ["long.wav", "b.wav", "tone-9.wav", "tone-5.wav", "tone-0.wav"]
    assert "tone-9.wav" in rows[2]["detail"] and "no such file" in rows[3]["detail"]
    assert "lies after its end" in rows[4]["detail"] and rows[0]["detail"] == "200 s"
    out = capsys.readouterr().out
    assert "2 clips whose header cannot be read" in out and "skipped 1: longer than 180 s" in out
    assert "skipped-001-c.parquet lists them" in out


def test_splits_are_named_so_that_a_misspelt_one_is_seen(tmp_path, capsys):
    entries = [example for split in ("tets", "train", "test", "train") for example in examples_of([0], split=split)]
    for number, entry in enumerate(entries):
        entries[number] = dataclasses.replace(entry, segments=(Segment(f"{number}.wav", 1.0),))
    write(tmp_path / "m", entries, missing="keep")
    assert "  by split: train 4, tets 2, test 2\n" in capsys.readouterr().out


def test_nothing_left_out_leaves_no_list(tmp_path):
    write_tones(tmp_path / "audio", [1.0])
    write(tmp_path / "m", examples_of([0]), root=tmp_path / "audio")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "clips.parquet",
        "examples.parquet",
        "prepare-001-c.json",
        "prepare-001-c.yaml",
    ]


def test_corpus_without_examples_is_refused_and_changes_nothing(tmp_path):
    write(tmp_path / "m", examples_of([0]))
    before = tables(tmp_path / "m")
    with pytest.raises(ValueError, match=r"corpus other.*no examples were found"):
        write(tmp_path / "m", [Skipped("a", "no text")], append=True, corpus="other")
    assert tables(tmp_path / "m") == before and not list((tmp_path / "m").glob("*other*"))


def test_manifest_that_is_being_written_is_refused_and_keeps_its_rows(tmp_path):
    write(tmp_path / "m", examples_of([0]))
    with ManifestWriter(str(tmp_path / "m"), append=True) as writer:
        with pytest.raises(ValueError, match=rf"process {os.getpid()} on "):
            write(tmp_path / "m", examples_of([1]), append=True)
        writer.add_clip(content(tmp_path / "m")[0][0])
    assert write(tmp_path / "m", examples_of([1]), append=True).clips == 1
    assert len(content(tmp_path / "m")[0]) == 3


def test_a_prepare_that_failed_leaves_neither_lock_nor_files(tmp_path):
    def broken():
        yield from examples_of(range(5))
        raise ValueError("metadata:6: damaged")

    with pytest.raises(ValueError, match="damaged"):
        write(tmp_path / "m", broken())
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("append", [False, True])
def test_killed_between_its_two_tables_the_same_command_finishes_the_work(tmp_path, monkeypatch, append):
    if append:
        write(tmp_path / "m", examples_of([0]))
        write(tmp_path / "whole", examples_of([0]))
    write(tmp_path / "whole", examples_of([1, 2]), append=append)
    replace = Path.replace

    def killed(source, target):
        if target.name == "examples.parquet":
            raise KeyboardInterrupt
        return replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "m", examples_of([1, 2]), append=append)
    clips = {clip.clip_id for clip in read_clips(str(tmp_path / "m"))}
    assert len(clips) == 2 + append
    if append:
        assert {example.clip_id for example in read_examples(str(tmp_path / "m"))} < clips
    write(tmp_path / "m", examples_of([1, 2]), append=append)
    assert content(tmp_path / "m") == content(tmp_path / "whole")


@pytest.mark.ray
def test_headers_read_on_ray_give_the_same_bytes(tmp_path, ray_session, monkeypatch):
    write_tones(tmp_path / "audio", [1.0 + 0.1 * number for number in range(12)])
    (tmp_path / "audio" / "tone-7.wav").write_text("not audio")
    examples = examples_of([*range(14), 3, 5], tasks=["asr"], stated=False)
    monkeypatch.setattr("pipelines.manifest.prepare.BATCH_EXAMPLES", 4)
    here = write(tmp_path / "here", examples, root=tmp_path / "audio")
    monkeypatch.setattr("pipelines.manifest.prepare.HEADERS_READ_HERE", 4)
    there = write(tmp_path / "there", examples, root=tmp_path / "audio")
    assert here == there and (here.unreadable, here.skipped) == (1, {"not there": 2})
    assert tables(tmp_path / "here") == tables(tmp_path / "there")


@pytest.mark.ray
@pytest.mark.parametrize("deaths", [1, 100])
def test_headers_of_a_worker_that_dies_are_read_again_and_given_up_in_the_end(
    tmp_path, ray_session, monkeypatch, deaths
):
    look_at, marks = prepare.look_at, tmp_path / "marks"
    marks.mkdir()

    def deadly(clips, max_clip_seconds):
        if clips[0].recordings == ["tone-4.wav"] and len(list(marks.iterdir())) < deaths:
            (marks / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return look_at(clips, max_clip_seconds)

    write_tones(tmp_path / "audio", [1.0] * 8)
    monkeypatch.setattr("pipelines.manifest.prepare.BATCH_EXAMPLES", 4)
    monkeypatch.setattr("pipelines.manifest.prepare.HEADERS_READ_HERE", 0)
    monkeypatch.setattr("pipelines.manifest.lengths_on_ray.PROBE_RETRIES", 1)
    monkeypatch.setattr("pipelines.manifest.lengths_on_ray.look_at", deadly)
    report = write(tmp_path / "m", examples_of(range(8), tasks=["asr"], stated=False), root=tmp_path / "audio")
    assert (report.clips, report.unreadable) == (8, 0 if deaths == 1 else 4)
    assert [clip.seconds for clip in content(tmp_path / "m")[0]] == [1.0] * 4 + [1.0 if deaths == 1 else None] * 4


def test_sound_after_thirty_seconds_is_counted(tmp_path, capsys):
    write_tones(tmp_path / "audio", [1.0, 36.0])
    report = write(tmp_path / "m", examples_of([0, 1], tasks=["asr"], stated=False), root=tmp_path / "audio")
    assert (report.cut, report.unheard_hours) == (1, pytest.approx(6 / 3600))
    assert "1 clip longer than 30 s: 0.002 h are not heard" in capsys.readouterr().out


@pytest.mark.parametrize("stated", [True, False])
def test_what_is_not_there_or_empty_is_left_out_kept_or_fatal(tmp_path, stated):
    names = write_tones(tmp_path / "audio", [1.0, 2.0, 3.0])
    (tmp_path / "audio" / names[1]).unlink()
    (tmp_path / "audio" / names[2]).write_bytes(b"")
    examples = [
        *examples_of([0, 1, 2], stated=stated),
        *examples_of([1, 2], tasks=["gender_recognition"], stated=stated),
    ]
    report = write(tmp_path / "skip", examples, root=tmp_path / "audio")
    assert (report.clips, report.examples, report.skipped) == (1, 2, {"not there": 1, "empty": 1})
    report = write(tmp_path / "keep", examples, root=tmp_path / "audio", missing="keep")
    assert (report.clips, report.examples) == (3, 8)
    assert [clip.seconds for clip in content(tmp_path / "keep")[0]] == [1.0, *([2.0, 3.0] if stated else [None] * 2)]
    with pytest.raises(ValueError, match=r"tone-1\.wav: no such file \(not there\), and missing=fail"):
        write(tmp_path / "fail", examples, root=tmp_path / "audio", missing="fail")
    write_tones(tmp_path / "audio", [1.0, 2.0, 3.0])  # the download is complete: what was left out comes in
    report = write(tmp_path / "skip", examples, root=tmp_path / "audio", append=True)
    assert (report.clips, report.examples) == (2, 6)
