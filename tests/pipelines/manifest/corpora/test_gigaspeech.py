"""Covers pipelines.manifest.corpora.text_files."""

import json

import pytest
import soundfile

from encoders.sound.clips import load_clip
from pipelines import storage
from pipelines.cli import main
from pipelines.manifest.corpora import text_files as files
from pipelines.manifest.corpora.gigaspeech import GigaSpeechConfig, prepare_gigaspeech, read_gigaspeech
from pipelines.manifest.tables import read_clips, read_examples
from tests.toy import tone

POD, YOU = "audio/podcast/P0000/POD0000000001.opus", "audio/youtube/P0001/YOU0000000315.opus"


def segment(begin, end, text, *subsets):
    tags = [f"{{{subset}}}" for subset in subsets]
    sid = f"S{int(begin):07d}"
    return {"sid": sid, "speaker": "N/A", "begin_time": begin, "end_time": end, "text_tn": text, "subsets": tags}


def audio(path, subsets, segments):
    tags = [f"{{{subset}}}" for subset in subsets]
    head = {"title": 'The "audios": [', "path": path, "aid": path[-18:-5], "format": "opus", "sample_rate": 16000}
    return {**head, "duration": 9.0, "channels": 1, "category": "Arts", "subsets": tags, "segments": segments}


AUDIOS = [
    audio(
        POD,
        ["XL", "L", "M"],
        [
            segment(1.1, 2.63, "AS IT'S TOLD <COMMA> ISN'T IT <QUESTIONMARK>", "XL", "L", "M"),
            segment(3.0, 4.5, "ONLY THE LARGEST HAVE THIS <PERIOD>", "XL"),
            segment(5.0, 6.0, "<COMMA> MORE <EXCLAMATIONPOINT>", "XL", "L", "M", "S", "XS"),
        ],
    ),
    audio(YOU, ["TEST"], [segment(0.0, 1.5, "<MUSIC>", "TEST"), segment(1.5, 3.25, "YES <PERIOD>", "TEST")]),
]


def write_gigaspeech(root, audios=AUDIOS, **head):
    root.mkdir(exist_ok=True)
    content = {"dataset": "GigaSpeech", "language": "EN", "version": "v1.0.0", **head, "audios": audios}
    (root / "GigaSpeech.json").write_text(json.dumps(content, indent=2))
    (root / "audio").mkdir(exist_ok=True)
    return root


def read(root, **keys):
    entries = read_gigaspeech(GigaSpeechConfig(root=str(root), out="unused", **keys))
    return [(e.split, e.answer) if hasattr(e, "answer") else e.detail for e in entries]


def test_segments_of_long_opus_files_become_clips(tmp_path):
    root = write_gigaspeech(tmp_path / "GigaSpeech")
    for number, path in enumerate((POD, YOU)):
        (root / path).parent.mkdir(parents=True)
        soundfile.write(root / path, tone(9.0, seed=number), 16_000, format="OGG", subtype="OPUS")
    report = prepare_gigaspeech(GigaSpeechConfig(root=str(root), out=str(tmp_path / "m")))
    assert (report.clips, report.examples, report.unreadable) == (3, 3, 0)
    assert dict(report.skipped) == {"segment without speech": 1}
    assert [(e.split, e.task, e.answer) for e in read_examples(str(tmp_path / "m"))] == [
        ("train", "asr", "as it's told, isn't it?"),
        ("train", "asr", "more!"),
        ("test", "asr", "yes."),
    ]
    clips = list(read_clips(str(tmp_path / "m")))
    assert [(c.segments[0].start_seconds, c.segments[0].duration_seconds) for c in clips] == [
        (1.1, 1.53),
        (5.0, 1.0),
        (1.5, 1.75),
    ]
    assert len(load_clip(clips[0].located(), open_file=storage.open_file)) == round(1.53 * 16_000)


def test_subsets_are_nested_and_splits_chosen(tmp_path):
    root = write_gigaspeech(tmp_path)
    train = {
        size: [e[1] for e in read(root, subset=size, splits=["train"], punctuation=False)]
        for size in ("XS", "S", "M", "L", "XL")
    }
    assert train["XS"] == train["S"] == ["more"]
    assert train["M"] == train["L"] == ["as it's told isn't it", "more"]
    assert train["XL"] == ["as it's told isn't it", "only the largest have this", "more"]
    assert read(root, splits=["test"]) == ["0 s: <MUSIC>", ("test", "yes.")]


def test_only_the_list_of_the_outermost_object_counts(tmp_path):
    about = {"about": {"audios": [{"aid": "other"}]}, "text": '"audios": [', "more": ["x" * 3000]}
    file = tmp_path / "GigaSpeech.json"
    file.write_text("\ufeff" + json.dumps({**about, "audios": AUDIOS, "last": 1}))
    assert [item for _, item in files.read_json_items(str(file), "audios")] == AUDIOS
    file.write_text(json.dumps({**about, "audios": []}))
    assert list(files.read_json_items(str(file), "audios")) == []
    file.write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"GigaSpeech\.json: has no list under 'audios'"):
        list(files.read_json_items(str(file), "audios"))


def test_what_is_damaged_is_found_where_it_is(tmp_path):
    file = write_gigaspeech(tmp_path, AUDIOS * 200) / "GigaSpeech.json"
    file.write_bytes(file.read_bytes().replace(b"1.1,", b"1.1,,", 1))
    with pytest.raises(ValueError, match=r"GigaSpeech\.json: audios\[0\]: not JSON"):
        list(files.read_json_items(str(file), "audios"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no GigaSpeech.json; expected the folder that holds GigaSpeech.json and the recordings"),
        ('{"audios": 3}', "GigaSpeech.json: has no list under 'audios'"),
        ('{"audios": [{"path": "a.opus"}]}', "audios[0]: needs a text 'path' and a list 'segments'"),
        ('{"audios": [{"path": "a", "segments": []}, 3]}', "audios[1]: is int, not an object"),
        ('{"audios": [{"path": "a", "segments": [{}]}]}', "audios[0]: segments[0]: 'subsets' is missing"),
        (
            '{"audios": [{"path": "a", "segments": [{"subsets": ["{M}"], "begin_time": "x"}]}]}',
            "segments[0]: could not",
        ),
        (json.dumps({"audios": [audio(POD, [], [segment(3, 2, "A", "M")])]}), "segments[0]: audio/podcast/P0000"),
        (json.dumps({"audios": AUDIOS})[:-20], "GigaSpeech.json: audios[1]: not JSON in UTF-8, or cut short"),
        (json.dumps({"audios": AUDIOS})[:-2], "GigaSpeech.json: audios[2]: not JSON in UTF-8, or cut short"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, capsys, content, message):
    root = write_gigaspeech(tmp_path)
    if content is None:
        (root / "GigaSpeech.json").unlink()
    else:
        (root / "GigaSpeech.json").write_text(content)
    assert main(["prepare", "gigaspeech", f"root={root}", f"out={tmp_path}/m"]) == 2
    assert message in capsys.readouterr().err
