"""Every packaging that docs/packagings.md promises, as a miniature that is read without a key that names recordings."""

import importlib
import json
import re
from collections.abc import Callable, Iterator

import pytest
import soundfile

from encoders.audio import Segment
from pipelines.cli import main
from pipelines.manifest.corpora.audiocaps import AudioCapsConfig, read_audiocaps
from pipelines.manifest.corpora.gigaspeech import GigaSpeechConfig, read_gigaspeech
from pipelines.manifest.corpora.recordings import with_times
from pipelines.manifest.corpora.voxceleb import VoxCelebConfig, read_voxceleb
from pipelines.manifest.tables import read_clips
from tests import ROOT
from tests.pipelines.manifest.corpora.builders import write_csv
from tests.toy import tone

TABLE_ROW = re.compile(r"^\| (\w+) \| `(.+)` \| (.+) \|$", re.MULTILINE)


def audiocaps(root):
    rows = [["91139", "r1nicOVtvkQ", "130", "Water pours"], ["58146", "-GBjjwyaqE", "20", "Clangs"]]
    header = ["audiocap_id", "youtube_id", "start_time", "caption"]
    for split in ("train", "val", "test"):
        write_csv(root / f"{split}.csv", header, *rows)
        for row in rows:
            yield {**with_times(dict(zip(header, row, strict=True)), "start_time", seconds=10.0), "split": split}


def clotho(root):
    captions = [f"caption_{number}" for number in range(1, 6)]
    for split in ("development", "validation", "evaluation"):
        write_csv(root / f"clotho_captions_{split}.csv", ["file_name", *captions], ["a b.wav", *"vwxyz"])
        yield {"split": split, "file_name": "a b.wav"}


def covost(root):
    write_csv(root / "validated.tsv", ["path\tsentence"], ["common_voice_en_1.mp3\tHello."])
    write_csv(
        root / "covost_v2.en_zh-CN.tsv", ["path\ttranslation\tsplit"], ["common_voice_en_1.mp3\t\u4f60\u597d\ttrain"]
    )
    yield {"path": "common_voice_en_1.mp3", "stem": "common_voice_en_1"}


def esc(root):
    write_csv(root / "esc50.csv", ["filename", "fold", "category", "esc10"], ["1-1-A-0.wav", "1", "dog", "TRUE"])
    yield {"filename": "1-1-A-0.wav"}


def gigaspeech(root):
    stem = "audio/podcast/P0000/POD0000000001"
    times = [("POD0000000001_S0000001", 0.5, 1.5), ("POD0000000001_S0000002", 2.0, 3.25)]
    segments = [
        {"sid": sid, "begin_time": begin, "end_time": end, "text_tn": "YES <PERIOD>", "subsets": ["{M}"]}
        for sid, begin, end in times
    ]
    content = {"audios": [{"path": f"{stem}.opus", "segments": segments}]}
    (root / "GigaSpeech.json").write_text(json.dumps(content))
    for sid, _, _ in times:
        yield {"path": f"{stem}.opus", "stem": stem, "sid": sid}


def iemocap(root):
    for session in range(1, 6):
        dialog = f"Ses0{session}F_impro01"
        labels = root / f"Session{session}/dialog/EmoEvaluation/{dialog}.txt"
        labels.parent.mkdir(parents=True)
        labels.write_text(f"[1.0 - 2.0]\t{dialog}_F000\tneu\t[2.5, 2.5, 2.5]\n")
        yield {"session": str(session), "dialog": dialog, "turn": f"{dialog}_F000"}


def librimix(root):
    for split, subset in (("train-clean-100", "train-100"), ("test-clean", "test")):
        speech = root.parent / f"LibriSpeech/{split}/1/2/1-2.trans.txt"
        speech.parent.mkdir(parents=True)
        speech.write_text("1-2-0000 HELLO THERE\n1-2-0001 YES\n")
        table = root / f"wav16k/max/metadata/mixture_{subset}_mix_clean.csv"
        name = "1-2-0000_1-2-0001"
        header = ["mixture_ID", "mixture_path", "length"]
        write_csv(table, header, [name, f"/elsewhere/{name}.wav", "56000"])
        yield {"rate": "16k", "subset": subset, "mixture": "mix_clean", "name": f"{name}.wav"}


def librispeech(root):
    (root / "SPEAKERS.TXT").write_text("84 | F | dev-clean | 8 | Somebody\n")
    for split in ("dev-clean", "test-other"):
        transcripts = root / split / "84/121123/84-121123.trans.txt"
        transcripts.parent.mkdir(parents=True)
        transcripts.write_text("84-121123-0000 GO\n")
        yield {"split": split, "speaker": "84", "chapter": "121123", "utterance": "84-121123-0000"}


def musiccaps(root):
    header = ["ytid", "start_s", "end_s", "caption", "is_audioset_eval"]
    write_csv(root / "musiccaps-public.csv", header, ["-0SdAVK79lg", "30", "40", "A guitar.", "True"])
    yield with_times(dict(zip(header, ["-0SdAVK79lg", "30", "40", "", ""], strict=True)), "start_s", "end_s")


def slurp(root):
    for split, folder in (("train", "slurp_real"), ("train_synthetic", "slurp_synth")):
        lines = root / f"dataset/slurp/{split}.jsonl"
        lines.parent.mkdir(parents=True, exist_ok=True)
        about = {"sentence_annotation": "wake me at [time : eight]", "recordings": [{"file": f"audio-{split}.flac"}]}
        lines.write_text(json.dumps(about) + "\n")
        yield {"split": split, "folder": folder, "file": f"audio-{split}.flac"}


def voxceleb(root):
    (root / "veri_test2.txt").write_text("1 id1/a/00001.wav id1/b/00002.wav\n0 id1/a/00001.wav id2/c/00001.wav\n")
    for speaker, video, number in (("id1", "a", "00001"), ("id1", "b", "00002"), ("id2", "c", "00001")):
        yield {"speaker": speaker, "video": video, "number": number}


def wavcaps(root):
    files = {"SoundBible": "sb_final.json", "AudioSet_SL": "as_final.json"}
    for source, name in files.items():
        data = [{"id": "Y1.wav", "caption": "Wind blows.", "duration": 3.5}]
        (root / "json_files" / source).mkdir(parents=True)
        (root / "json_files" / source / name).write_text(json.dumps({"data": data}))
        yield {"source": source, "id": "Y1"}


MINIATURES: dict[str, tuple[Callable[..., Iterator[dict[str, object]]], list[str]]] = {
    "audiocaps": (audiocaps, []),
    "clotho": (clotho, []),
    "covost": (covost, []),
    "esc": (esc, ["esc10=true"]),
    "gigaspeech": (gigaspeech, []),
    "iemocap": (iemocap, []),
    "librimix": (librimix, ["librispeech={}/../LibriSpeech", "subsets=[train-100,test]"]),
    "librispeech": (librispeech, []),
    "musiccaps": (musiccaps, []),
    "slurp": (slurp, ["splits=[train,train_synthetic]"]),
    "voxceleb": (voxceleb, ["train_pairs=0"]),
    "wavcaps": (wavcaps, ["sources=[SoundBible,AudioSet_SL]"]),
}
"""Reader -> what writes a corpus's metadata and yields the fields of its recordings' names, and the keys it needs."""


def promised():
    """Return (corpus, template, who) of each row of the page."""
    return TABLE_ROW.findall((ROOT / "docs/packagings.md").read_text())


def packagings(corpus):
    return importlib.import_module(f"pipelines.manifest.corpora.{corpus}").PACKAGINGS


def write(tmp_path, corpus, template):
    """Write a miniature; return the words that prepare it and the recordings' names."""
    root = tmp_path / "corpus"
    root.mkdir()
    make, keys = MINIATURES[corpus]
    names = []
    for number, fields in enumerate(make(root)):
        path = root / template.format(**fields)
        names.append(template.format(**fields))
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tone(3.5, seed=number), 16_000, format={".opus": "OGG"}.get(path.suffix))
    words = ["prepare", corpus, f"root={root}", f"out={tmp_path}/m", *(key.format(root) for key in keys)]
    return words, names


def recordings(tmp_path):
    return {name for clip in read_clips(f"{tmp_path}/m") for name in clip.recordings}


def test_the_page_lists_the_packagings_of_every_reader_and_no_others():
    listed = promised()
    assert listed == [(corpus, *row) for corpus in MINIATURES for row in packagings(corpus).items()]
    readers = {
        path.stem for path in (ROOT / "pipelines/manifest/corpora").glob("*.py") if "PACKAGINGS = " in path.read_text()
    }
    assert readers == set(MINIATURES)


@pytest.mark.parametrize(("corpus", "template"), [row[:2] for row in promised()])
def test_a_promised_packaging_is_read_as_it_is(tmp_path, capsys, corpus, template):
    words, names = write(tmp_path, corpus, template)
    assert main([*words, "missing=fail"]) == 0, capsys.readouterr().err
    assert recordings(tmp_path) == set(names)
    assert "skipped" not in capsys.readouterr().out


@pytest.mark.parametrize("corpus", MINIATURES)
def test_a_template_names_recordings_that_lie_elsewhere(tmp_path, capsys, corpus):
    template = "else where/" + next(iter(packagings(corpus)))
    words, names = write(tmp_path, corpus, template)
    assert main([*words, f"recording={template}", "missing=fail"]) == 0, capsys.readouterr().err
    assert recordings(tmp_path) == set(names)


def test_segments_that_are_cut_are_heard_whole_and_others_in_part(tmp_path):
    list(gigaspeech(tmp_path))
    config = GigaSpeechConfig(root=str(tmp_path), out="m")
    assert next(read_gigaspeech(config)).segments == (Segment("audio/podcast/P0000/POD0000000001.opus", 0.5, 1.0),)
    for template, name in (("xs/{sid}.wav", "xs/POD0000000001_S0000001.wav"), ("{start_ms:06}.wav", "000500.wav")):
        cut = GigaSpeechConfig(root=str(tmp_path), out="m", recording=template)
        assert next(read_gigaspeech(cut)).segments == (Segment(name),)


def test_a_packaging_is_recognised_though_the_first_recordings_are_gone(tmp_path):
    rows = [[str(number), f"video{number}", "20", "A caption"] for number in range(40)]
    write_csv(tmp_path / "train.csv", ["audiocap_id", "youtube_id", "start_time", "caption"], *rows)
    (tmp_path / "train").mkdir()
    soundfile.write(tmp_path / "train/39.ogg", tone(1.0), 16_000)
    config = AudioCapsConfig(root=str(tmp_path), out="m", splits=["train"])
    assert [e.segments[0].recording for e in read_audiocaps(config)] == [f"train/{number}.ogg" for number in range(40)]


def test_times_that_are_no_numbers_leave_a_row_as_it_is():
    assert with_times({"start_s": "1.5", "end_s": "11.25"}, "start_s", "end_s") == {
        **{"start_s": "1.5", "end_s": "11.25"},
        **{"start_ms": 1500, "end_ms": 11250, "end_time": "11.25"},
    }
    for start in ("", "x", "inf", None):
        assert with_times({"t": start}, "t", seconds=10.0) == {"t": start}


def test_dev_and_test_of_voxceleb_may_lie_apart_and_trials_have_a_folder_in_front(tmp_path):
    for folder, speaker in (("vox1_dev_wav/wav", "id1"), ("vox1_test_wav/wav", "id2")):
        (tmp_path / folder / speaker / "a").mkdir(parents=True)
        soundfile.write(tmp_path / folder / speaker / "a/00001.wav", tone(1.0), 16_000)
    (tmp_path / "trials.txt").write_text("0 wav/id1/a/00001.wav /data/vox1/wav/id2/a/00001.wav\n")
    config = VoxCelebConfig(root=str(tmp_path), out="m", trials="trials.txt", train_pairs=0)
    (pair,) = read_voxceleb(config)
    names = [segment.recording for segment in pair.segments]
    assert names == ["vox1_dev_wav/wav/id1/a/00001.wav", "vox1_test_wav/wav/id2/a/00001.wav"]


@pytest.mark.parametrize(
    ("corpus", "gone", "keys", "message"),
    [
        (
            "audiocaps",
            "val.csv",
            [],
            "no val.csv; expected the captions of all splits=[…]; or give captions=…; splits=[tra",
        ),
        ("clotho", "clotho_captions_evaluation.csv", [], "; splits=[development,validation] are there"),
        ("covost", "covost_v2.en_zh-CN.tsv", ["tasks=[en2de]"], "covost_v2.en_de.tsv: no such file"),
        ("covost", "x", ["tasks=[en2de]"], "covost_v2.en_de.tsv: no such file; tasks=[en2zh] can be made"),
        ("gigaspeech", "x", ["splits=[dev,test]"], "no segment is tagged {DEV}, {TEST}; there are {M}"),
        ("librimix", "x", ["subsets=[train-100,dev]"], "; subsets=[train-100,test] are there"),
        ("librispeech", "x", ["splits=[dev-other]"], "no split 'dev-other'; found dev-clean, test-other"),
        ("slurp", "dataset/slurp/train.jsonl", [], "; splits=[train_synthetic] is there"),
        ("wavcaps", "x", ["sources=[FreeSound]"], "; sources=[SoundBible,AudioSet_SL] are there"),
        ("voxceleb", "x", ["recording={speaker}.wav"], "recording={speaker}.wav: must be a folder, {speaker}/{video}/"),
    ],
)
def test_what_is_there_is_proposed_where_what_is_asked_for_is_not(tmp_path, capsys, corpus, gone, keys, message):
    words, _ = write(tmp_path, corpus, next(iter(packagings(corpus))))
    (tmp_path / "corpus" / gone).unlink(missing_ok=True)
    assert main([*words, *keys]) == 2
    assert message in capsys.readouterr().err
