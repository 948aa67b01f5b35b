"""Covers pipelines.manifest.corpora.phones."""

import pytest
import soundfile

from pipelines.cli import main
from pipelines.manifest.corpora.librispeech import LibriSpeechConfig, prepare_librispeech, read_librispeech
from pipelines.manifest.corpus import Skipped
from pipelines.manifest.tables import read_clips, read_examples
from tests import SHARED
from tests.toy import tone

REAL = SHARED / "data/librispeech/LibriSpeech"

SPEAKERS = """\
; Some pipe(|) separated metadata about all LibriVox readers
;
;ID  |SEX| SUBSET           |MINUTES| NAME
60   | M | train-clean-100  | 20.18 | |CBW|Simon
84   | F | dev-clean        | 8.02  | Christie Nowak
"""
TRANSCRIPTS = {
    "dev-clean/84/121123": ["GO DO YOU HEAR", "BUT IN LESS THAN FIVE MINUTES", "THE STAIRCASE GROANED"],
    "train-clean-100/60/121082": ["GO IN"],
}
LEXICON = "DO\tD UW1\nGO  G OW1\nGO  G OW2 X\nHEAR\tHH IY1 R\nIN\t0.98\t0.1\tIH0 N\nYOU\tY UW1\n"


def write_librispeech(root, *, audio=False):
    for folder, texts in TRANSCRIPTS.items():
        (root / folder).mkdir(parents=True)
        chapter = "-".join(folder.split("/")[1:])
        names = [f"{chapter}-{number:04d}" for number in range(len(texts))]
        lines = [f"{name} {text}\n" for name, text in zip(names, texts, strict=True)]
        (root / folder / f"{chapter}.trans.txt").write_text("".join(lines))
        for name in names if audio else []:
            soundfile.write(root / folder / f"{name}.flac", tone(1.2), 16_000)
    (root / "SPEAKERS.TXT").write_text(SPEAKERS)
    return root


def write_textgrid(path, phones, *, words_first=True):
    """Write a TextGrid as the aligner does: a tier of words, then one of phones; newer ones name the speaker too."""
    items = []
    tiers = [("words", ["", "hello"]), ("phones", phones)] if words_first else [("84 - phones", phones), ("84", ["hi"])]
    for number, (name, labels) in enumerate(tiers, start=1):
        intervals = "".join(
            f"        intervals [{place}]:\n            xmin = {place - 1}\n            xmax = {place}\n"
            f'            text = "{label}"\n'
            for place, label in enumerate(labels, start=1)
        )
        items.append(
            f'    item [{number}]:\n        class = "IntervalTier"\n        name = "{name}"\n        xmin = 0\n'
            f"        xmax = {len(labels)}\n        intervals: size = {len(labels)}\n{intervals}"
        )
    head = 'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = 9\ntiers? <exists>\nsize = 2\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{head}item []:\n{''.join(items)}")


def read(root, **keys):
    return list(read_librispeech(LibriSpeechConfig(root=str(root), out="unused", **keys)))


def test_every_utterance_gives_transcript_and_gender(tmp_path):
    root = write_librispeech(tmp_path / "LibriSpeech", audio=True)
    config = LibriSpeechConfig(root=str(root), out=str(tmp_path / "m"), tasks=["asr", "gender_recognition"])
    report = prepare_librispeech(config)
    assert (report.clips, report.examples, report.unreadable) == (4, 8, 0)
    found = [(e.split, e.task, e.answer) for e in read_examples(str(tmp_path / "m"))]
    assert found[:2] == [("dev-clean", "asr", "go do you hear"), ("dev-clean", "gender_recognition", "female")]
    assert found[-1] == ("train-clean-100", "gender_recognition", "male")
    assert [c.recordings for c in read_clips(str(tmp_path / "m"))][-1] == [
        "train-clean-100/60/121082/60-121082-0000.flac"
    ]


def test_phones_of_a_lexicon_are_the_first_ones_without_stress_and_unknown_words_skip(tmp_path):
    root = write_librispeech(tmp_path / "LibriSpeech")
    (tmp_path / "lexicon.txt").write_text(LEXICON)
    entries = read(root, tasks=["phone_recognition"], lexicon=str(tmp_path / "lexicon.txt"))
    assert [e.answer for e in entries if not isinstance(e, Skipped)] == ["G OW D UW Y UW HH IY R", "G OW IH N"]
    assert [e.recording[-9:-5] for e in entries if isinstance(e, Skipped)] == ["0001", "0002"]


def test_phones_of_textgrids_leave_silence_out_and_skip_what_was_not_aligned(tmp_path):
    root = write_librispeech(tmp_path / "LibriSpeech")
    folder = root / "dev-clean/84/121123"
    write_textgrid(folder / "84-121123-0000.TextGrid", ["sil", "G", "OW1", "sp", "D", "UW1", ""])
    write_textgrid(folder / "84-121123-0001.TextGrid", ["sil", "B", "spn", "sil"])
    write_textgrid(root / "train-clean-100/60/121082/60-121082-0000.TextGrid", ["G", "OW1"], words_first=False)
    entries = read(root, tasks=["phone_recognition"], alignments=str(root))
    assert [e.answer for e in entries if not isinstance(e, Skipped)] == ["G OW D UW", "G OW"]
    assert len([e for e in entries if isinstance(e, Skipped)]) == 2


@pytest.mark.parametrize(
    ("file", "content", "keys", "message"),
    [
        ("SPEAKERS.TXT", None, [], "no SPEAKERS.TXT; expected the folder LibriSpeech"),
        ("SPEAKERS.TXT", "84 | X |\n", ["tasks=gender_recognition"], "SPEAKERS.TXT:1: '84 | X |' does not give"),
        ("SPEAKERS.TXT", "60 | M |\n", ["tasks=gender_recognition"], "does not name the speaker of dev-clean/84"),
        ("dev-clean/84/121123/84-121123.trans.txt", "84-121123-0000 A\n84-121123-0001\n", [], "trans.txt:2: '84-121"),
        ("lexicon", "A AH0\nB\n", ["tasks=phone_recognition", "lexicon={}/lexicon"], "lexicon:2: 'B' has no phones"),
        ("x/y", "", ["tasks=phone_recognition", "alignments={}/x"], "no folder of a split; expected <split>/"),
        ("x", "", ["tasks=phone_recognition"], "needs either alignments=… or lexicon=…"),
        ("x", "", ["tasks=en2zh"], "'en2zh' cannot be made from LibriSpeech"),
        ("x", "", ["splits=test-clean"], "no split 'test-clean'; found dev-clean, train-clean-100"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, capsys, file, content, keys, message):
    root = write_librispeech(tmp_path / "LibriSpeech")
    (root / file).parent.mkdir(exist_ok=True)
    if content is None:
        (root / file).unlink()
    else:
        (root / file).write_text(content)
    words = ["prepare", "librispeech", f"root={root}", f"out={tmp_path}/m", *[key.format(root) for key in keys]]
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("m/*.parquet"))


@pytest.mark.weights
def test_real_recordings_become_a_manifest(tmp_path):
    config = LibriSpeechConfig(root=str(REAL), out=str(tmp_path), tasks=["asr", "gender_recognition"])
    report = prepare_librispeech(config)
    assert (report.clips, report.examples, report.unreadable) == (50, 100, 0)
    assert report.hours * 60 == pytest.approx(7.0, abs=0.05)
    clips = list(read_clips(str(tmp_path)))
    assert len({clip.recordings[0].split("/")[1] for clip in clips}) == 5
    (text,) = [e.answer for e in read_examples(str(tmp_path)) if e.clip_id == clips[0].clip_id and e.task == "asr"]
    assert (REAL / "test-other/1688/142285/1688-142285.trans.txt").read_text().split("\n")[0] == (
        f"1688-142285-0000 {text.upper()}"
    )
