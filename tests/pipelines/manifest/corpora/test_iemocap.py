import soundfile

from pipelines.cli import main
from pipelines.manifest.corpora.iemocap import IemocapConfig, prepare_iemocap
from pipelines.manifest.tables import read_clips, read_examples
from tests.toy import tone

TURNS = {"F000": "neu", "F001": "exc", "F002": "hap", "M000": "ang", "M001": "sad", "M002": "fru", "M003": "xxx"}


def write_iemocap(root):
    for session in range(1, 6):
        labels = root / f"Session{session}/dialog/EmoEvaluation"
        dialog = f"Ses0{session}{'MF'[session % 2]}_script01_1b"
        wavs = root / f"Session{session}/sentences/wav" / dialog
        (labels / "Categorical").mkdir(parents=True)
        wavs.mkdir(parents=True)
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n"]
        for place, (turn, emotion) in enumerate(TURNS.items()):
            lines.append(
                f"\n[{place}.2901 - {place + 1}.2357]\t{dialog}_{turn}\t{emotion}\t[2.5000, 2.5000, 2.5000]\n"
                "C-E2:\tNeutral;\t()\nC-F1:\tNeutral;\t(curious)\nA-E3:\tval 3; act 2; dom  2;\t()\n"
            )
            soundfile.write(wavs / f"{dialog}_{turn}.wav", tone(1.0), 16_000)
        (labels / f"{dialog}.txt").write_text("".join(lines))
        (labels / f"._{dialog}.txt").write_bytes(b"\x00\x05\x16\x07Mac OS X\xff")
        (labels / "Categorical" / f"{dialog}_e1_cat.txt").write_text(f"{dialog}_F000 :Anger; ()\n")
    return root


def test_four_emotions_are_kept_and_session_five_held_out(tmp_path):
    root = write_iemocap(tmp_path / "IEMOCAP_full_release")
    report = prepare_iemocap(IemocapConfig(root=str(root), out=str(tmp_path / "m")))
    assert (report.clips, report.examples, report.unreadable) == (25, 25, 0)
    assert dict(report.skipped) == {"not one of the four emotions": 10}
    examples = list(read_examples(str(tmp_path / "m")))
    assert [e.answer for e in examples[:5]] == ["neutral", "happy", "happy", "angry", "sad"]
    assert [e.split for e in examples] == ["train"] * 20 + ["test"] * 5
    assert {e.task for e in examples} == {"emotion_recognition"}
    assert next(read_clips(str(tmp_path / "m"))).recordings == [
        "Session1/sentences/wav/Ses01F_script01_1b/Ses01F_script01_1b_F000.wav"
    ]


def test_another_session_can_be_held_out(tmp_path):
    root = write_iemocap(tmp_path / "IEMOCAP_full_release")
    prepare_iemocap(IemocapConfig(root=str(root), out=str(tmp_path / "m"), test_session=2))
    clips = list(read_clips(str(tmp_path / "m")))
    assert {c.recordings[0][:8] for c in clips if c.split == "test"} == {"Session2"}
    assert len({c.recordings[0][:8] for c in clips if c.split == "train"}) == 4


def test_what_is_wrong_is_named(tmp_path, capsys):
    root = write_iemocap(tmp_path / "release")
    words = ["prepare", "iemocap", f"out={tmp_path}/m"]
    assert main([*words, f"root={root}/Session1"]) == 2
    assert "no Session1/dialog/EmoEvaluation; expected IEMOCAP_full_release" in capsys.readouterr().err
    assert main([*words, f"root={root}", "test_session=6"]) == 2
    assert "test_session=6: must be between 1 and 5" in capsys.readouterr().err
    labels = root / "Session3/dialog/EmoEvaluation/Ses03F_script01_1b.txt"
    labels.write_text("% header\n\n[6.2901 - 8.2357]\tSes03F_script01_1b_F000\n")
    assert main([*words, f"root={root}"]) == 2
    assert "Ses03F_script01_1b.txt:3: '[6.2901 - 8.2357]\\tSes03F" in capsys.readouterr().err
