"""Covers pipelines.manifest.ids."""

import csv
import json
import re
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from encoders.audio import AudioError, Segment
from encoders.sound.clips import load_clip
from pipelines import storage
from pipelines.cli import main
from pipelines.interface.config import load_config
from pipelines.manifest.corpora.annotations import AnnotationsConfig, prepare_annotations, read_annotations
from pipelines.manifest.corpora.librispeech import LibriSpeechConfig, prepare_librispeech
from pipelines.manifest.corpora.table import TableConfig, prepare_table
from pipelines.manifest.ids import clip_id
from pipelines.manifest.tables import count_clips, read_clips, read_examples
from tests.toy import tone, write_annotations, write_tones


def prepare_tones(tmp_path, entries, **keys):
    names = write_tones(tmp_path / "audio", [1.5, 2.0, 40.0])
    entries = [{"task": "asr", "text": "x", **entry, "path": names[entry["path"]]} for entry in entries]
    file = write_annotations(tmp_path / "a.json", entries)
    config = AnnotationsConfig(
        annotation=str(file), audio_root=str(tmp_path / "audio"), out=str(tmp_path / "manifest"), **keys
    )
    return prepare_annotations(config)[0], str(tmp_path / "manifest")


def test_examples_about_the_same_audio_share_one_clip(tmp_path):
    report, manifest = prepare_tones(
        tmp_path,
        [{"path": 0}, {"path": 0, "task": "aqa", "Q": "What is it?", "text": "a tone"}, {"path": 1}, {"path": 0}],
    )
    assert (report.clips, report.examples, report.duplicates) == (2, 3, 1)
    clips, examples = list(read_clips(manifest)), list(read_examples(manifest))
    assert [clip.seconds for clip in clips] == [1.5, 2.0]
    assert [example.clip_id for example in examples] == [clips[0].clip_id] * 2 + [clips[1].clip_id]
    assert [example.question for example in examples] == [None, "What is it?", None]
    assert report.hours == pytest.approx(3.5 / 3600)


def test_expanded_recordings_make_another_clip_with_the_silence_between(tmp_path):
    _, manifest = prepare_tones(tmp_path, [{"path": 0}, {"path": 0, "expand_wav": ["tone-1.wav"]}, {"path": 2}])
    clips = list(read_clips(manifest))
    assert [clip.seconds for clip in clips] == pytest.approx([1.5, 1.5 + 0.1 + 2.0, 30.0])
    assert clips[1].recordings == ["tone-0.wav", "tone-1.wav"]


def test_clip_id_does_not_depend_on_where_the_corpus_lies():
    same = [Segment("a/b.flac"), Segment("c.flac", 1.0, 2.0)]
    assert clip_id("corpus", same) == clip_id("corpus", list(same)) == "b0f5fa9a1e304e5429dff55ecf48f341"
    others = [
        clip_id("other", same),
        clip_id("corpus", same[:1]),
        clip_id("corpus", [Segment("a/b.flac", 0.5), same[1]]),
    ]
    assert len({clip_id("corpus", same), *others}) == 4
    assert not set("./") & set(clip_id("corpus", same))


def test_existing_manifest_is_kept_unless_appending(tmp_path):
    prepare_tones(tmp_path, [{"path": 0}])
    with pytest.raises(ValueError, match="append=true"):
        prepare_tones(tmp_path, [{"path": 1}])
    report, manifest = prepare_tones(tmp_path, [{"path": 0}, {"path": 1}], append=True)
    assert (report.clips, report.examples) == (1, 1)
    assert count_clips(manifest) == 2


def test_unreadable_recording_stays_in_the_manifest_without_a_length(tmp_path, capsys):
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "tone-9.wav").write_text("not audio")
    names = write_tones(tmp_path / "audio", [1.0])
    entries = [{"path": name, "text": "x", "task": "asr"} for name in [*names, "tone-9.wav", "absent.wav"]]
    file = write_annotations(tmp_path / "a.json", entries)
    config = AnnotationsConfig(annotation=str(file), audio_root=str(tmp_path / "audio"), out=str(tmp_path / "m"))
    (report,) = prepare_annotations(config)
    assert (report.unreadable, report.skipped) == (1, {"not there": 1})
    assert [clip.seconds for clip in read_clips(str(tmp_path / "m"))] == [1.0, None]
    out = capsys.readouterr().out
    assert "1 clip whose header cannot be read" in out and "skipped 1: not there" in out


def test_wrong_audio_root_is_refused(tmp_path):
    file = write_annotations(tmp_path / "a.json", [{"path": "x.wav", "text": "x", "task": "asr"}])
    config = AnnotationsConfig(annotation=str(file), audio_root=str(tmp_path), out=str(tmp_path / "m"))
    with pytest.raises(ValueError, match=r"none of the first 1 recordings.*x\.wav"):
        prepare_annotations(config)
    assert not list(tmp_path.glob("m/*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ('{"annotation": [{', "not JSON"),
        ("[]", "no list under 'annotation'"),
        (json.dumps({"annotation": []}), "no examples"),
        (
            json.dumps({"annotation": [{"path": "a.wav", "text": "x", "task": 1}]}),
            r"annotation\[0\]: 'task' must be a text",
        ),
        (json.dumps({"annotation": [{"path": "a.wav", "text": "x", "task": "asr_de"}]}), r"annotation\[0\]: .*asr_de"),
        (
            json.dumps({"annotation": [{"path": "a.wav", "text": "x", "task": "QA", "Q": "Why?"}]}),
            r"questions=sqa\|aqa",
        ),
        (json.dumps({"annotation": [{"path": "../a.wav", "text": "x", "task": "asr"}]}), "does not lead to a file"),
    ],
)
def test_faulty_annotations_are_named(tmp_path, content, message, capsys):
    (tmp_path / "a.json").write_text(content)
    words = ["prepare", "annotations", f"annotation={tmp_path}/a.json", f"audio_root={tmp_path}", f"out={tmp_path}/m"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error)


def test_paths_of_another_machine_are_taken_below_the_audio_root(tmp_path):
    file = write_annotations(
        tmp_path / "a.json",
        [{"path": path, "text": "x", "task": "asr"} for path in ("/mnt/x/a.wav", f"{tmp_path}/audio/b.wav", "c.wav")],
    )
    config = load_config(
        AnnotationsConfig, [f"annotation={file}", f"audio_root={tmp_path}/audio", "out=m", "path_prefix=/mnt/x/"]
    )
    assert [example.segments[0].recording for example in read_annotations(config)] == ["a.wav", "b.wav", "c.wav"]


def test_a_file_of_several_corpora_becomes_one_manifest(tmp_path, capsys):
    for corpus in ("speech", "sounds"):
        write_tones(tmp_path / corpus, [1.0, 1.5])
    entries = [
        {"path": "/LibriSpeech/tone-0.wav", "text": "a word"},
        {"path": "/LibriSpeech/tone-1.wav", "text": "yes", "task": "QA", "Q": "Is it?"},
        {"path": "/AudioCaps/tone-0.wav", "text": "rain", "task": "audiocaption_v2"},
        {"path": "/AudioCaps/tone-0.wav", "text": "wet", "task": "QA", "Q": "How is it?"},
        {"path": "/Other/tone-0.wav", "text": "x", "task": "count_word"},
    ]
    file = write_annotations(tmp_path / "a.json", entries)
    (tmp_path / "places.yaml").write_text(
        f"""places:
  - {{prefix: /LibriSpeech/, corpus: librispeech, root: {tmp_path}/speech, questions: sqa}}
  - {{prefix: /AudioCaps/, corpus: audiocaps, root: {tmp_path}/sounds, questions: aqa}}
"""
    )
    words = ["prepare", "annotations", f"{tmp_path}/places.yaml", f"annotation={file}", f"out={tmp_path}/m"]
    assert main(words) == 2
    assert "annotation[4]: path '/Other/tone-0.wav' begins with no prefix of places" in capsys.readouterr().err
    assert main([*words, "only_paths=[/LibriSpeech/,/AudioCaps/]"]) == 0
    found = [(e.corpus, e.task, e.question, e.answer) for e in read_examples(str(tmp_path / "m"))]
    assert found == [
        ("librispeech", "asr", None, "a word"),
        ("librispeech", "sqa", "Is it?", "yes"),
        ("audiocaps", "audiocaption", None, "rain"),
        ("audiocaps", "aqa", "How is it?", "wet"),
    ]
    roots = {clip.corpus: clip.root for clip in read_clips(str(tmp_path / "m"))}
    assert roots == {"librispeech": f"{tmp_path}/speech", "audiocaps": f"{tmp_path}/sounds"}
    words = ["prepare", "annotations", f"annotation={file}", f"audio_root={tmp_path}/sounds", f"out={tmp_path}/m2"]
    assert main([*words, "path_prefix=/AudioCaps/", "only_tasks=[audiocaption_v2]"]) == 0
    assert [e.answer for e in read_examples(str(tmp_path / "m2"))] == ["rain"]
    assert main(words[:-1]) == 2 and main([*words, f"{tmp_path}/places.yaml"]) == 2
    assert "either audio_root=… or places=[…]" in capsys.readouterr().err


def write_librispeech(root):
    for split, speaker, chapter in [("train-x", "11", "1"), ("test-x", "22", "7")]:
        folder = root / split / speaker / chapter
        folder.mkdir(parents=True)
        lines = []
        for number in range(2):
            name = f"{speaker}-{chapter}-{number:04d}"
            soundfile.write(folder / f"{name}.flac", tone(1.2), 16_000)
            lines.append(f"{name} HELLO WORLD {number}")
        (folder / f"{speaker}-{chapter}.trans.txt").write_text("\n".join(lines) + "\n")
    (root / "SPEAKERS.TXT").write_text("; comment\n11 | F | train-x | 2.0 | A | B\n22   | M | test-x | 2.0 | C\n")
    return root


def test_librispeech_layout_gives_transcripts_and_genders(tmp_path):
    root = write_librispeech(tmp_path / "LibriSpeech")
    config = LibriSpeechConfig(root=str(root), out=str(tmp_path / "m"), tasks=["asr", "gender_recognition"])
    report = prepare_librispeech(config)
    assert (report.clips, report.examples) == (4, 8)
    examples = list(read_examples(str(tmp_path / "m")))
    assert [(e.split, e.task, e.answer) for e in examples[:2]] == [
        ("test-x", "asr", "hello world 0"),
        ("test-x", "gender_recognition", "male"),
    ]
    assert [clip.recordings[0] for clip in read_clips(str(tmp_path / "m"))] == [
        "test-x/22/7/22-7-0000.flac",
        "test-x/22/7/22-7-0001.flac",
        "train-x/11/1/11-1-0000.flac",
        "train-x/11/1/11-1-0001.flac",
    ]


def test_librispeech_split_that_is_not_there_is_named(tmp_path):
    root = write_librispeech(tmp_path / "LibriSpeech")
    with pytest.raises(ValueError, match="no split 'dev'; found test-x, train-x"):
        prepare_librispeech(LibriSpeechConfig(root=str(root), out=str(tmp_path / "m"), splits=["dev"]))
    with pytest.raises(FileNotFoundError, match=r"root=.*absent: no such folder"):
        prepare_librispeech(LibriSpeechConfig(root=str(tmp_path / "absent"), out=str(tmp_path / "m")))


ROWS = [
    {"path": "tone-0.wav", "text": "one, two", "task": "asr", "split": "train", "question": ""},
    {"path": "tone-1.wav", "text": "three\nfour", "task": "aqa", "split": "test", "question": "Which?"},
]


def write_table_file(path):
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ROWS[0])
            writer.writeheader()
            writer.writerows(ROWS)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_tables_of_each_kind_give_the_same_manifest(tmp_path, ending):
    write_tones(tmp_path, [1.0, 1.0])
    write_table_file(tmp_path / f"t.{ending}")
    prepare_table(TableConfig(table=str(tmp_path / f"t.{ending}"), out=str(tmp_path / "m")))
    found = [(e.split, e.task, e.question, e.answer) for e in read_examples(str(tmp_path / "m"))]
    assert found == [("train", "asr", None, "one, two"), ("test", "aqa", "Which?", "three\nfour")]


def test_table_segments_cut_recordings(tmp_path):
    write_tones(tmp_path, [3.0])
    (tmp_path / "t.csv").write_text(
        "path,text,start_seconds,duration_seconds\ntone-0.wav,a,0.5,1.25\ntone-0.wav,b,2,\n"
    )
    prepare_table(TableConfig(table=str(tmp_path / "t.csv"), out=str(tmp_path / "m")))
    clips = list(read_clips(str(tmp_path / "m")))
    assert [clip.segments[0] for clip in clips] == [Segment("tone-0.wav", 0.5, 1.25), Segment("tone-0.wav", 2.0)]
    assert [clip.seconds for clip in clips] == [1.25, 1.0]


def test_recordings_may_lie_in_tars(tmp_path, capsys):
    names = write_tones(tmp_path / "plain", [1.5, 2.0])
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "a.tar", "w") as tar:
        for name in names:
            tar.add(tmp_path / "plain" / name, f"deep/{name}")
    rows = [f"tars/a.tar!deep/{name},x" for name in [*names, "absent.wav"]]
    (tmp_path / "t.csv").write_text("\n".join(["path,text", *rows]))
    prepare_table(TableConfig(table=str(tmp_path / "t.csv"), out=str(tmp_path / "m"), missing="keep"))
    assert "1: not there; kept" in capsys.readouterr().out
    clips = list(read_clips(str(tmp_path / "m")))
    assert [clip.seconds for clip in clips] == [1.5, 2.0, None]
    assert clips[0].clip_id == clip_id("table", [Segment("tars/a.tar!deep/tone-0.wav")])
    for clip, name in zip(clips[:2], names, strict=True):
        assert clip.located() == [Segment(f"{tmp_path}/tars/a.tar!deep/{name}")]
        wave = load_clip(clip.located(), open_file=storage.open_file)
        assert torch.equal(wave, load_clip([Segment(f"{tmp_path}/plain/{name}")]))
    with pytest.raises(AudioError, match=r"tars/a\.tar!deep/absent\.wav: open: no such member"):
        load_clip(clips[2].located(), open_file=storage.open_file)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.csv",
            "file,text\na.wav,x\n",
            "t.csv:2: no column 'path', which recording={path} names; found 'file', 'text'",
        ),
        ("t.csv", "path,text\n", "t.csv: no examples: it holds no row"),
        ("t.csv", "", "t.csv: no examples: it holds no row"),
        ("t.csv", "path,text\n../a.wav,x\n", "must be a path below its root"),
        ("t.jsonl", '{"path": "a.wav", "text": null}\n', "t.jsonl:1: text is missing"),
        ("t.jsonl", '{"path": "a.wav", "text": "x", "question": ["q"]}\n', "question ['q'] must be a text"),
        ("t.jsonl", '{"path": "a.wav", "text": "x", "start_seconds": [1]}\n', "start_seconds [1] must be"),
        ("t.csv", "path,text,start_seconds\na.wav,x,-1\n", "start_seconds '-1' must be"),
        ("t.jsonl", '{"path": 1\n', "t.jsonl:1: not a JSON object"),
        ("t.txt", "", "must end in .csv, .tsv, .json"),
        ("t.parquet", "nonsense", "not a Parquet file"),
    ],
)
def test_faulty_tables_give_one_line_and_exit_code_2(tmp_path, name, content, message, capsys):
    (tmp_path / name).write_text(content)
    assert main(["prepare", "table", f"table={tmp_path / name}", f"out={tmp_path}/m"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    assert not (tmp_path / "m" / "clips.parquet").exists()


def test_corpus_names_are_plain(tmp_path, capsys):
    write_tones(tmp_path, [1.0])
    (tmp_path / "t.csv").write_text("path,text\ntone-0.wav,x\n")
    words = ["prepare", "table", f"table={tmp_path}/t.csv", f"out={tmp_path}/m"]
    assert main([*words, "corpus=../../x"]) == 2
    assert "corpus=../../x" in capsys.readouterr().err
    assert main(words) == 0
    assert (tmp_path / "m" / "prepare-001-table.yaml").exists()


def test_output_that_is_a_file_is_named(tmp_path, capsys):
    write_tones(tmp_path, [1.0])
    (tmp_path / "t.csv").write_text("path,text\ntone-0.wav,x\n")
    assert main(["prepare", "table", f"table={tmp_path}/t.csv", f"out={tmp_path}/t.csv"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_missing_table_and_missing_manifest_are_named(tmp_path, capsys):
    assert main(["prepare", "table", f"table={tmp_path}/absent.csv", f"out={tmp_path}/m"]) == 2
    assert "absent.csv: no such file" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="no manifest there"):
        list(read_clips(str(tmp_path)))
