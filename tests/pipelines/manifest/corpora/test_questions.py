"""ESC-50, SLURP, annotation files and tables: corpora of questions and labels.

Covers pipelines.manifest.corpora.annotations, pipelines.manifest.corpora.esc, pipelines.manifest.corpora.slurp,
pipelines.manifest.corpora.table.
"""

import json
from collections import Counter
from pathlib import Path

import pytest

from encoders.audio import Segment
from pipelines.cli import main
from pipelines.inference.scoring.tasks import TASKS
from pipelines.manifest.corpora.annotations import OFFICIAL_TASKS, AnnotationsConfig, read_annotations
from pipelines.manifest.corpora.esc import EscConfig, prepare_esc, read_esc
from pipelines.manifest.corpora.slurp import SlurpConfig, prepare_slurp, read_slurp
from pipelines.manifest.corpora.table import TableConfig, _rows, prepare_table, read_table
from pipelines.manifest.tables import read_clips, read_examples
from tests import SHARED
from tests.pipelines.manifest.corpora.builders import recordings, texts, write_csv, write_sound
from tests.toy import write_annotations

DATA = SHARED / "data"

ESC50 = ["filename", "fold", "target", "category", "esc10", "src_file", "take"]


def write_esc50(root):
    rows = [
        ["1-100032-A-0.wav", "1", "0", "dog", "True", "100032", "A"],
        ["2-100648-A-43.wav", "2", "43", "car_horn", "False", "100648", "A"],
        ["5-156999-C-19.wav", "5", "19", "thunderstorm", "False", "156999", "C"],
    ]
    write_csv(root / "meta" / "esc50.csv", ESC50, *rows)
    for row in rows:
        write_sound(root / "audio" / row[0])
    return root


def test_esc50_asks_for_the_category_and_holds_a_fold_out(tmp_path):
    root = write_esc50(tmp_path / "e")
    report = prepare_esc(EscConfig(root=str(root), out=str(tmp_path / "m"), question="Which?"))
    assert (report.clips, report.unreadable) == (3, 0)
    assert texts(tmp_path / "m") == [
        ("train", "aqa", "dog"),
        ("train", "aqa", "car horn"),
        ("test", "aqa", "thunderstorm"),
    ]
    assert {example.question for example in read_examples(str(tmp_path / "m"))} == {"Which?"}
    for written in ("True", "TRUE"):  # spreadsheets change its case
        table = root / "meta/esc50.csv"
        table.write_text(table.read_text().replace("True", written))
        ten = read_esc(EscConfig(root=str(root), out="m", esc10=True, test_fold=1))
        assert [(e.segments, e.split) for e in ten] == [((Segment("audio/1-100032-A-0.wav"),), "test")]


def test_esc10_lies_in_a_folder_per_category(tmp_path):
    for name in ("001 - Dog bark/1-100032-A.ogg", "001 - Dog bark/5-9-B.ogg", "010 - Fire crackling/2-8-A.ogg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [(e.segments[0].recording, e.split, e.answer) for e in read_esc(EscConfig(root=str(tmp_path), out="m"))]
    assert found == [
        ("001 - Dog bark/1-100032-A.ogg", "train", "dog bark"),
        ("001 - Dog bark/5-9-B.ogg", "test", "dog bark"),
        ("010 - Fire crackling/2-8-A.ogg", "train", "fire crackling"),
    ]


def test_esc50_at_a_wrong_root_says_what_is_missing(tmp_path, capsys):
    assert main(["prepare", "esc", f"root={tmp_path}", f"out={tmp_path}/m"]) == 2
    assert "neither meta/esc50.csv nor folders such as '001 - Dog bark'" in capsys.readouterr().err
    write_csv(tmp_path / "meta" / "esc50.csv", ["filename", "fold"], ["a.wav", "1"])
    with pytest.raises(ValueError, match=r"esc50\.csv: no column 'category'"):
        list(read_esc(EscConfig(root=str(tmp_path), out="m")))


@pytest.mark.weights
@pytest.mark.parametrize(("name", "clips", "minutes"), [("esc10", 80, 6.7), ("esc50", 5, 0.4)])
def test_real_esc_recordings_become_a_manifest(tmp_path, name, clips, minutes):
    report = prepare_esc(EscConfig(root=str(DATA / name), out=str(tmp_path / "m"), test_fold=2))
    assert (report.clips, report.examples, report.unreadable) == (clips, clips, 0)
    assert report.hours * 60 == pytest.approx(minutes, abs=0.05)
    labels = [json.loads(line) for line in (DATA / "labels.jsonl").read_text().splitlines()]
    expected = {entry["path"]: entry for entry in labels if entry["path"].startswith(f"{name}/")}
    for recording, (split, _, answer) in zip(recordings(tmp_path / "m"), texts(tmp_path / "m"), strict=True):
        entry = expected[f"{name}/{recording}"]
        assert answer == entry["label"].replace("_", " ").lower()
        assert split == ("test" if entry["fold"] == 2 else "train")


def sentence(number, annotation, *files, status="correct"):
    return {
        "slurp_id": number,
        "sentence": "any",
        "sentence_annotation": annotation,
        "recordings": [{"file": file, "wer": 0.0, "ent_wer": None, "status": status} for file in files],
        "entities": [],
    }


def write_slurp(root):
    lines = {
        "train": [sentence(1, "wake me up at [time : eight] o'clock", "audio-1-headset.flac", "audio-1.flac")],
        "devel": [
            sentence(2, "one [currency_name : us dollar] in [currency_name : yen] [date : today]", "audio-2.flac"),
            sentence(3, "how many unread emails do i have", "audio-3.flac"),
        ],
        "test": [sentence(4, "play [song_name : yesterday]", "audio--4.flac", status="incorrect")],
    }
    (root / "dataset" / "slurp").mkdir(parents=True)
    for split, sentences in lines.items():
        (root / "dataset" / "slurp" / f"{split}.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in sentences)
        )
        for line in sentences:
            for reader in line["recordings"]:
                write_sound(root / "audio" / "slurp_real" / reader["file"])
    return root


def test_slurp_asks_for_every_kind_of_slot(tmp_path):
    report = prepare_slurp(SlurpConfig(root=str(write_slurp(tmp_path / "s")), out=str(tmp_path / "m")))
    assert (report.clips, report.examples, report.skipped) == (3, 4, {"marked incorrect": 1})
    assert [(e.split, e.question, e.answer) for e in read_examples(str(tmp_path / "m"))] == [
        ("train", "What is the time in the speech?", "eight"),
        ("train", "What is the time in the speech?", "eight"),
        ("dev", "What is the currency name in the speech?", "us dollar, yen"),
        ("dev", "What is the date in the speech?", "today"),
    ]
    assert recordings(tmp_path / "m")[0] == "audio/slurp_real/audio-1-headset.flac"


def test_slurp_names_what_is_wrong(tmp_path):
    root = write_slurp(tmp_path)
    for line, what in (("{", "JSONDecodeError"), ("[]", "TypeError"), ('{"sentence_annotation": "a"}', "recordings")):
        (root / "dataset" / "slurp" / "test.jsonl").write_text(f"\n{line}\n")
        with pytest.raises(ValueError, match=rf"test\.jsonl:2: not a sentence with its annotation.*{what}"):
            list(read_slurp(SlurpConfig(root=str(root), out="m", splits=["test"])))
    (root / "dataset" / "slurp" / "devel.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"no dataset/slurp/devel\.jsonl; expected the repository's folder"):
        prepare_slurp(SlurpConfig(root=str(root), out=str(tmp_path / "m")))


def read_entries(tmp_path, *entries, **keys):
    file = write_annotations(tmp_path / "a.json", [{"path": "a.wav", "text": "x", **entry} for entry in entries])
    return list(read_annotations(AnnotationsConfig(annotation=str(file), audio_root=str(tmp_path), out="m", **keys)))


def test_official_task_names_become_ours(tmp_path):
    assert set(OFFICIAL_TASKS.values()) < set(TASKS) and not set(OFFICIAL_TASKS) & set(TASKS)
    found = read_entries(tmp_path, {"task": "audio_story_telling"}, {"task": "translation_ec"}, {"task": "keywords"})
    assert [example.task for example in found] == ["audio_story", "en2zh", "keywords"]
    found = read_entries(tmp_path, {"task": "QA", "Q": "Which key?"}, task="mqa")
    assert [(example.task, example.question) for example in found] == [("mqa", "Which key?")]


def test_official_slots_are_asked_for_in_words(tmp_path):
    found = read_entries(
        tmp_path, {"task": "slot_filling", "Q": "song name"}, {"task": "slot_filling", "Q": "At what time?"}
    )
    assert [example.question for example in found] == ["What is the song name in the speech?", "At what time?"]


def test_table_without_a_header_and_with_plain_quotes(tmp_path):
    (tmp_path / "metadata.csv").write_text('LJ001-0001|"So called" printing|printing\nLJ001-0002|in being "|in being\n')
    keys = {"delimiter": "|", "columns": ["id", "text", "normalised"], "quotes": False, "recording": "wavs/{id}.wav"}
    config = TableConfig(table=str(tmp_path / "metadata.csv"), out="m", **keys)
    assert [(e.segments[0].recording, e.answer) for e in read_table(config, str(tmp_path), _rows(config))] == [
        ("wavs/LJ001-0001.wav", '"So called" printing'),
        ("wavs/LJ001-0002.wav", 'in being "'),
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["recording={name}.wav"], "t.csv:2: no column 'name', which recording={name}.wav names; found 'path', 'text'"),
        (["recording={path"], "recording={path: not a template of columns"),
        (["text_column=caption"], "t.csv:2: caption is missing; found 'path', 'text'"),
        (["delimiter=||"], "delimiter='||': must be one character"),
    ],
)
def test_table_keys_that_do_not_fit_are_named(tmp_path, keys, message, capsys):
    (tmp_path / "t.csv").write_text("path,text\na.wav,x\n")
    assert main(["prepare", "table", f"table={tmp_path}/t.csv", f"out={tmp_path}/m", *keys]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.weights
def test_real_ljspeech_recordings_become_a_manifest(tmp_path):
    root = DATA / "ljspeech" / "LJSpeech-1.1"
    keys = {"columns": ["id", "text", "normalised"], "text_column": "normalised", "recording": "wavs/{id}.wav"}
    config = TableConfig(table=str(root / "metadata.csv"), out=str(tmp_path), delimiter="|", quotes=False, **keys)
    report = prepare_table(config)
    assert (report.clips, report.examples, report.unreadable) == (17, 17, 0)
    assert report.hours * 60 == pytest.approx(1.9, abs=0.05)
    labels = [json.loads(line) for line in (DATA / "labels.jsonl").read_text().splitlines()]
    expected = {Path(entry["path"]).name: entry["text"] for entry in labels if "ljspeech" in entry["path"]}
    answers = [example.answer for example in read_examples(str(tmp_path))]
    names = [Path(clip.recordings[0]).name for clip in read_clips(str(tmp_path))]
    assert Counter(map(str.lower, answers)) == Counter(expected[name].lower() for name in names)
