"""Tables as people have them: every row counted or refused by its line, every packaging of the same rows read.

Covers pipelines.manifest.corpora.embedded, pipelines.manifest.corpora.rows.
"""

import csv
import gzip
import io
import json
import re
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from encoders.audio import Segment
from encoders.sound.clips import load_clip
from pipelines import storage
from pipelines.cli import main
from pipelines.manifest.tables import read_clips, read_examples
from tests.pipelines.manifest.corpora.builders import write_sound
from tests.toy import write_tones

ROWS = [
    {"path": "tone-0.wav", "text": "one, two", "task": "asr", "split": "train", "question": ""},
    {"path": "tone-1.wav", "text": "three\nfour", "task": "aqa", "split": "test", "question": "Which?"},
]


def as_csv(delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ROWS[0], delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def as_arrow(write) -> bytes:
    sink, table = pa.BufferOutputStream(), pa.Table.from_pylist(ROWS)
    with write(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def as_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


MARK = "\ufeff".encode()
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
LIST = json.dumps(ROWS, indent=1).encode()
TABLES = {
    "comma.csv": as_csv(","),
    "mark.csv": MARK + as_csv(","),
    "windows.csv": as_csv(",").replace(b"\n", b"\r\n").replace(b"three\r\nfour", b"three\nfour"),
    "packed.csv.gz": gzip.compress(as_csv(",")),
    "tabs.tsv": as_csv("\t"),
    "packed.TSV.GZ": gzip.compress(as_csv("\t")),
    "lines.jsonl": LINES,
    "mark.jsonl": MARK + LINES,
    "blank.jsonl": b"\n" + LINES.replace(b"\n", b"\n\n"),
    "packed.jsonl.gz": gzip.compress(LINES),
    "lines.json": LINES,
    "list.json": LIST,
    "mark.json": MARK + LIST,
    "packed.json.gz": gzip.compress(MARK + b" \n" + LIST),
    "columns.parquet": as_parquet(pa.Table.from_pylist(ROWS)),
    "bytes.parquet": as_parquet(
        pa.Table.from_pylist(ROWS).set_column(1, "text", pa.array([row["text"].encode() for row in ROWS]))
    ),
    "dictionary.parquet": as_parquet(
        pa.Table.from_pylist(ROWS).set_column(3, "split", pa.array(["train", "test"]).dictionary_encode())
    ),
    "stream.arrow": as_arrow(pa.ipc.new_stream),
    "file.arrow": as_arrow(pa.ipc.new_file),
}


def prepare(folder, name: str, data: bytes, *words: str) -> int:
    (folder / name).write_bytes(data)
    return main(["prepare", "table", f"table={folder}/{name}", f"out={folder}/m", *words])


def found(folder) -> list[tuple[str, str, str | None, str]]:
    return [(e.split, e.task, e.question, e.answer) for e in read_examples(str(folder / "m"))]


@pytest.mark.parametrize("name", TABLES)
def test_the_same_rows_in_any_packaging_give_the_same_examples(tmp_path, name):
    write_tones(tmp_path, [1.0, 1.0])
    assert prepare(tmp_path, name, TABLES[name]) == 0
    assert found(tmp_path) == [("train", "asr", None, "one, two"), ("test", "aqa", "Which?", "three\nfour")]


FAULTY = [
    ("t.csv", "path,text\na.wav,hello, world\n", "t.csv:2: has 3 cells, not 2 (path, text); a cell that holds ','"),
    ("t.csv", "path,text,split\na.wav,hello\n", "t.csv:2: has 2 cells, not 3 (path, text, split)"),
    ("t.csv", 'path,text\na.wav,"one\ntwo"\nb.wav\n', "t.csv:4: has 1 cells"),
    ("t.tsv", "path\ttext\na.wav\thello\tworld\n", "t.tsv:2: has 3 cells"),
    ("t.csv", 'path,text\na.wav,x\nb.wav,"open\nc.wav,y\n', "t.csv:3: a double quote opens and never closes"),
    ("t.csv", 'path,text\nb.wav,"open\nc.wav,"y"\n', "t.csv:2: not CSV"),
    ("t.csv", 'path,text\na.wav,"' + "long " * 300_000, "t.csv:2: a double quote opens and never closes"),
    ("t.csv", "path,text,text\na.wav,x,y\n", "t.csv:1: two columns have one name"),
    ("t.csv", b"path,text\na.wav,x\nb.wav,caf\xe9\n", "t.csv:3: not UTF-8"),
    ("t.csv", "path,text\na.wav,x\n".encode("utf-16"), "t.csv:1: not UTF-8"),
    ("t.csv", "path,text\na.wav, \n", "t.csv:2: text is empty"),
    ("t.csv", "path,text\na.wav,x\0y\n", "holds a NUL"),
    ("t.csv", "path,text,task\na.wav,x,asr\na.wav,x,asrr\n", "t.csv:3: "),
    ("t.csv.gz", gzip.compress(b"path,text\na.wav,x\n" * 50)[:-9], "t.csv.gz: cut short or damaged after line"),
    ("t.csv.gz", b"path,text\na.wav,x\n", "t.csv.gz: cut short or damaged after line 0"),
    ("t.jsonl", '{"path": "a.wav", "text": "x"}\n["a.wav", "x"]\n', "t.jsonl:2: found list, not a JSON object"),
    ("t.jsonl", '{"path": "a.wav", "text": true}\n', "t.jsonl:1: text True must be a text, not bool"),
    ("t.jsonl", '{"path": "a.wav", "text": 1.5}\n', "t.jsonl:1: text 1.5 must be a text, not float"),
    ("t.jsonl", '{"path": "a.wav", "text": {"a": 1}}\n', "must be a text, not dict"),
    ("t.jsonl", json.dumps({"path": "a.wav", "text": ["long"] * 999}), "…"),
    ("t.json", '[{"path": "a.wav", "text": "x"}, 7]', "t.json: [1]: is int, not an object"),
    ("t.json", '[{"path": "a.wav", "text": "x"}, {"path"', "t.json: [1]: not JSON in UTF-8, or cut short"),
    ("t.arrow", b"nonsense", "t.arrow: not an Arrow file"),
    ("t.parquet", as_parquet(pa.table({"path": ["a.wav"], "text": [b"\xff"]})), "holds bytes that are not UTF-8"),
    ("t.parquet", as_parquet(pa.table({"path": ["a.wav"], "text": [{"bytes": b"x"}]})), "row 1: text {"),
    ("t.xlsx", b"", "must end in .csv, .tsv, .json"),
]


@pytest.mark.parametrize(
    ("name", "content", "message"), FAULTY, ids=[f"{n}-{fault[2]}" for n, fault in enumerate(FAULTY)]
)
def test_a_faulty_row_is_refused_by_its_place(tmp_path, name, content, message, capsys):
    write_tones(tmp_path, [1.0])
    (tmp_path / "tone-0.wav").rename(tmp_path / "a.wav")
    assert prepare(tmp_path, name, content if isinstance(content, bytes) else content.encode()) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error and len(error) < 500
    assert not (tmp_path / "m" / "clips.parquet").exists()


def sound_rows(folder, seconds) -> list[dict]:
    names = write_tones(folder, seconds)
    return [
        {"audio": {"bytes": (folder / name).read_bytes(), "path": name}, "text": f"tone {number}", "task": "asr"}
        for number, name in enumerate(names)
    ]


@pytest.mark.parametrize("packaging", ["file", "folder", "arrow"])
def test_sound_inside_a_table_is_heard(tmp_path, monkeypatch, packaging):
    monkeypatch.setattr("pipelines.manifest.corpora.embedded.ROWS_PER_TAR", 2)
    rows = sound_rows(tmp_path / "audio", [1.0, 1.25, 1.5, 1.75, 2.0])
    data = tmp_path / "data"
    data.mkdir()
    parts = [rows[:3], rows[3:]] if packaging == "folder" else [rows]
    for number, part in enumerate(parts):
        table = pa.Table.from_pylist(part)
        if packaging == "arrow":
            with pa.ipc.new_stream(data / "train-0.arrow", table.schema) as writer:
                writer.write_table(table)
        else:
            pq.write_table(table, data / f"train-{number}.parquet")
    table = data if packaging == "folder" else next(data.iterdir())
    words = ["prepare", "table", f"table={table}", "audio_column=audio"]
    for out in ("m", "again"):
        assert main([*words, f"out={tmp_path}/{out}"]) == 0
    clips = list(read_clips(f"{tmp_path}/m"))
    assert [clip.seconds for clip in clips] == [1.0, 1.25, 1.5, 1.75, 2.0]
    assert [e.answer for e in read_examples(f"{tmp_path}/m")] == [f"tone {number}" for number in range(5)]
    for number, clip in enumerate(clips):
        wave = load_clip(clip.located(), open_file=storage.open_file)
        assert torch.equal(wave, load_clip([Segment(str(tmp_path / "audio" / f"tone-{number}.wav"))]))
    tars = [sorted((tmp_path / out / "recordings").iterdir()) for out in ("m", "again")]
    assert len(tars[0]) == 3 and [a.read_bytes() for a in tars[0]] == [b.read_bytes() for b in tars[1]]


@pytest.mark.parametrize("value", [None, {"bytes": None, "path": "a.wav"}, {"bytes": b"", "path": None}])
def test_a_row_without_its_sound_is_named(tmp_path, capsys, value):
    rows = [*sound_rows(tmp_path / "audio", [1.0]), {"audio": value, "text": "x", "task": "asr"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert main(["prepare", "table", f"table={tmp_path}/t.parquet", "audio_column=audio", f"out={tmp_path}/m"]) == 2
    assert re.search(r"t\.parquet: row 2: audio holds (no bytes|a path alone), no sound", capsys.readouterr().err)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("fault", ["text_column=nothing", "corpus=no/name"])
def test_a_failed_prepare_takes_back_the_tars_that_it_made_and_no_others(tmp_path, monkeypatch, capsys, fault):
    monkeypatch.setattr("pipelines.manifest.corpora.embedded.ROWS_PER_TAR", 2)
    pq.write_table(pa.Table.from_pylist(sound_rows(tmp_path / "audio", [1.0, 1.25, 1.5])), tmp_path / "t.parquet")
    words = ["prepare", "table", f"table={tmp_path}/t.parquet", "audio_column=audio", f"out={tmp_path}/m"]
    assert main([*words, fault]) == 2
    assert not (tmp_path / "m").exists()
    (tmp_path / "sound").mkdir()
    (tmp_path / "sound" / "t-000000.tar").write_bytes(b"of an earlier prepare")
    assert main([*words, fault, f"audio_out={tmp_path}/sound"]) == 2
    assert [path.name for path in (tmp_path / "sound").iterdir()] == ["t-000000.tar"]


@pytest.mark.parametrize("name", ["nothing", "nothing.csv", "nothing.parquet", "nothing.tar"])
def test_a_table_that_is_not_there_is_said_to_be_missing(tmp_path, capsys, name):
    assert main(["prepare", "table", f"table={tmp_path}/{name}", f"out={tmp_path}/m"]) == 2
    assert capsys.readouterr().err.strip().endswith(f"{name}: no such file")
    (tmp_path / "nothing").write_text("path,text\n")
    assert main(["prepare", "table", f"table={tmp_path}/nothing", f"out={tmp_path}/m"]) == 2
    assert "nothing: the name must end in .csv" in capsys.readouterr().err


def test_samples_of_webdataset_tars_are_read_in_place(tmp_path, capsys):
    names = write_tones(tmp_path / "audio", [1.0, 1.25, 1.5])
    (tmp_path / "shards").mkdir()
    for shard, part in (("a", names[:2]), ("b", names[2:])):
        with tarfile.open(tmp_path / "shards" / f"{shard}.tar", "w") as tar:
            for name in part:
                key = name.removesuffix(".wav")
                cells = json.dumps({"text": f"{key} caf\u00e9", "task": "audiocaption", "split": "test"}).encode()
                for ending, data in ((".json", cells), (".wav", (tmp_path / "audio" / name).read_bytes())):
                    member = tarfile.TarInfo(f"part/{key}{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    assert main(["prepare", "table", f"table={tmp_path}/shards", f"out={tmp_path}/m"]) == 0
    assert found(tmp_path) == [("test", "audiocaption", None, f"tone-{n} caf\u00e9") for n in range(3)]
    clips = list(read_clips(f"{tmp_path}/m"))
    assert [clip.seconds for clip in clips] == [1.0, 1.25, 1.5]
    assert [clip.recordings[0] for clip in clips] == [f"{s}.tar!part/tone-{n}.wav" for s, n in ("a0", "a1", "b2")]
    (tmp_path / "shards" / "c.tar").write_bytes(b"nonsense" * 100)
    assert main(["prepare", "table", f"table={tmp_path}/shards", f"out={tmp_path}/m2"]) == 2
    assert "c.tar: not a tar, or damaged" in capsys.readouterr().err


def test_quotes_may_be_text_and_any_character_may_separate(tmp_path):
    write_tones(tmp_path, [1.0])
    assert prepare(tmp_path, "t.csv", b'path|text\ntone-0.wav|say "a\n', "delimiter=|", "quotes=false") == 0
    assert found(tmp_path)[0][3] == 'say "a'
    (tmp_path / "m" / "examples.parquet").unlink()
    assert prepare(tmp_path, "t.csv", b"path\ttext\ntone-0.wav\ta, b\n", r"delimiter=\t") == 0
    assert found(tmp_path)[0][3] == "a, b"


def test_whole_numbers_and_named_classes_are_what_they_mean(tmp_path):
    write_tones(tmp_path, [1.0, 1.0])
    paths = ["tone-0.wav", "tone-1.wav"]
    assert prepare(tmp_path, "t.jsonl", b'{"path": "tone-0.wav", "text": 7}\n') == 0
    assert found(tmp_path)[0][3] == "7"
    features = {"path": {"_type": "Value"}, "text": {"_type": "ClassLabel", "names": ["sad", "happy"]}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"path": paths, "text": [1, 0]}).replace_schema_metadata(about)
    assert prepare(tmp_path, "t.parquet", as_parquet(table), f"out={tmp_path}/m2") == 0
    assert [e.answer for e in read_examples(f"{tmp_path}/m2")] == ["happy", "sad"]


@pytest.mark.parametrize("words", [[], ["audio_root=/"], ["audio_root={folder}"], ["audio_root={folder}/audio"]])
def test_absolute_paths_are_read(tmp_path, words):
    write_tones(tmp_path / "audio", [1.0, 1.5])
    rows = "".join(f"{tmp_path}/audio/tone-{number}.wav,x\n" for number in range(2))
    words = [word.format(folder=tmp_path) for word in words]
    assert prepare(tmp_path, "t.csv", f"path,text\n{rows}".encode(), *words) == 0
    clips = list(read_clips(str(tmp_path / "m")))
    assert [clip.seconds for clip in clips] == [1.0, 1.5]
    assert [clip.located()[0].recording for clip in clips] == [f"{tmp_path}/audio/tone-{n}.wav" for n in range(2)]


def test_an_absolute_path_elsewhere_is_named(tmp_path, capsys):
    write_tones(tmp_path, [1.0])
    rows = f"path,text\ntone-0.wav,x\n{tmp_path}/tone-0.wav,y\n/elsewhere/b.wav,z\n"
    assert prepare(tmp_path, "t.csv", rows.encode()) == 2
    assert f"t.csv:4: recording /elsewhere/b.wav does not lie below audio_root={tmp_path}" in capsys.readouterr().err


def test_one_clip_in_two_splits_is_kept_in_both_and_check_names_it(tmp_path, capsys):
    write_tones(tmp_path, [1.0, 1.0])
    rows = "path,text,split\ntone-0.wav,x,train\ntone-0.wav,x,test\ntone-0.wav,x,train\ntone-1.wav,y,train\n"
    assert prepare(tmp_path, "t.csv", rows.encode()) == 0
    assert "1 repeated example left out" in capsys.readouterr().out
    assert [example[0] for example in found(tmp_path)] == ["train", "test", "train"]
    assert main(["manifest", "check", f"manifest={tmp_path}/m"]) == 1
    assert "examples in another split than their clip: 1" in capsys.readouterr().out


def test_texts_are_in_one_form(tmp_path):
    write_tones(tmp_path, [1.0])
    rows = "path,text,task,question\ntone-0.wav,cafe\u0301,aqa,Ou\u0300?\ntone-0.wav,caf\u00e9,aqa,O\u00f9?\n"
    assert prepare(tmp_path, "t.csv", rows.encode()) == 0
    assert found(tmp_path) == [("train", "aqa", "O\u00f9?", "caf\u00e9")]


def test_texts_of_gigaspeech_become_marks_and_segments_without_speech_are_left_out(tmp_path, capsys):
    rows = "a.wav,GO <COMMA> AS IT'S TOLD <QUESTIONMARK>\nb.wav,<NOISE>\n"
    (tmp_path / "t.csv").write_text(f"path,text\n{rows}")
    write_sound(tmp_path / "a.wav")
    words = ["prepare", "table", f"table={tmp_path}/t.csv", f"out={tmp_path}/m"]
    assert main([*words, "text_form=gigaspeech"]) == 0
    assert [e.answer for e in read_examples(f"{tmp_path}/m")] == ["go, as it's told?"]
    assert "skipped 1: segment without speech" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("header", "keys", "spans"),
    [
        ("start_seconds,end_time", ["end_column=end_time"], [(0.25, 0.5), (0.0, 0.75), (0.5, None)]),
        ("start_ms,end_ms", ["start_column=start_ms", "end_column=end_ms"], [(0.25, 0.5), (0.0, 0.75), (0.5, None)]),
        ("begin,duration_seconds", ["start_column=begin"], [(0.25, 0.75), (0.0, 0.75), (0.5, None)]),
    ],
)
def test_columns_say_where_segments_start_and_end(tmp_path, header, keys, spans):
    write_sound(tmp_path / "a.wav", 2.0)
    scale = 1000 if "_ms" in header else 1
    times = [(0.25, 0.75), ("", 0.75), (0.5, "")]
    rows = [",".join(str(time and time * scale) for time in pair) for pair in times]
    (tmp_path / "t.csv").write_text(f"path,text,{header}\n" + "".join(f"a.wav,x,{row}\n" for row in rows))
    assert main(["prepare", "table", f"table={tmp_path}/t.csv", f"out={tmp_path}/m", *keys]) == 0
    segments = [clip.segments[0] for clip in read_clips(f"{tmp_path}/m")]
    assert [(segment.start_seconds, segment.duration_seconds) for segment in segments] == spans


def test_a_row_without_a_time_is_heard_to_its_end(tmp_path):
    write_sound(tmp_path / "a.wav", 2.0)
    rows = [{"path": "a.wav", "text": "x", "start_ms": start, "end_ms": None} for start in (None, 500)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    words = [f"table={tmp_path}/t.parquet", f"out={tmp_path}/m", "start_column=start_ms", "end_column=end_ms"]
    assert main(["prepare", "table", *words]) == 0
    assert [clip.seconds for clip in read_clips(f"{tmp_path}/m")] == [2.0, 1.5]


@pytest.mark.parametrize(
    ("row", "keys", "message"),
    [
        ("2,1", ["start_column=start_ms", "end_column=end_ms"], "t.csv:2: end_ms '1' does not come after the start"),
        ("x,1", ["start_column=start_ms"], "t.csv:2: start_ms 'x' must be a number of milliseconds, 0 or more"),
        ("0,1", ["start_column=begin"], "t.csv:2: begin is missing; found 'path', 'text', 'start_ms', 'end_ms'"),
        ("0,1", ["end_column=end"], "t.csv:2: end is missing; found"),
    ],
)
def test_times_that_are_none_are_named(tmp_path, capsys, row, keys, message):
    (tmp_path / "t.csv").write_text(f"path,text,start_ms,end_ms\na.wav,x,{row}\n")
    assert main(["prepare", "table", f"table={tmp_path}/t.csv", f"out={tmp_path}/m", *keys]) == 2
    assert message in capsys.readouterr().err
