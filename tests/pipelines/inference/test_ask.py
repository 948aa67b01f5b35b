"""Covers pipelines.inference.config, pipelines.inference.listening.answerer."""

import json
import os
import pty
import re
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from pipelines.cache.reader import FeatureCache
from pipelines.cli import main
from pipelines.inference.ask import ask
from pipelines.inference.config import AskConfig, EvaluateConfig
from pipelines.inference.evaluate import evaluate
from pipelines.inference.listening.answerer import Answer
from tests import ROOT
from tests.toy import RATE_HZ, tone


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session", "without_java")
def test_asking_hears_what_evaluation_heard(corpus, run, capsys):
    given = {"run": run, "manifest": corpus[0], "cache": corpus[1], "workers": 1}
    evaluate(EvaluateConfig(**given, num_beams=1, max_new_tokens=5))
    line = pq.read_table(f"{run}/evaluation/test/answers.parquet").to_pylist()[0]
    cache = FeatureCache(corpus[1])
    position = int(cache.positions([line["clip_id"]])[0])
    assert cache.rows()["clip_id"][position].as_py() == line["clip_id"]
    recording = Path(corpus[0]).parent / "audio" / "tone-3.wav"
    keys = {"run": run, "audio": str(recording), "num_beams": 1, "max_new_tokens": 5}
    (answer,) = ask(AskConfig(question=line["question"], **keys))
    assert answer == Answer(
        str(recording), line["question"], line["answer"], heard_seconds=1.75, given_seconds=1.75, is_cut=answer.is_cut
    )
    assert capsys.readouterr().out.splitlines()[-1] == line["answer"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["audio=absent.wav"], "absent.wav: no such file"),
        (["run=absent"], "no run there"),
        (["whisper=absent"], "whisper=absent"),
        (["beats=none"], "streams.audio"),
        (["beats=README.md"], "README.md: not a readable checkpoint"),
        (["threads=0"], "threads=0: must be 1 or more"),
        (["question="], "question=… is needed: what is asked; on a terminal it may be left out"),
        (["audio=[a.wav"], "audio=[a.wav: must be a list of recordings"),
        (["audio=[]"], "audio=[]: no recording there"),
        (["audio=[README.md,absent.wav]"], "absent.wav: no such file"),
        (["audio=tests/pipelines/inference"], "audio=tests/pipelines/inference: no recording there (.wav, .flac"),
        *([] if torch.cuda.is_available() else [(["device=cuda"], "no GPU")]),
    ],
)
def test_asking_wrongly_gives_one_line_and_exit_code_2(corpus, unbroken, tmp_path, keys, message, capsys):
    recording = Path(corpus[0]).parent / "audio" / "tone-3.wav"
    assert main(["ask", f"run={unbroken}", f"audio={recording}", "question=What?", *keys]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def write_recordings(corpus, folder: Path) -> list[Path]:
    """Copy three tones, the second damaged, to a folder and a folder in it."""
    names = ["a.wav", "b.wav", "below/c, d.wav"]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(corpus[0]).parent / "audio" / f"tone-{number}.wav", folder / name)
    (folder / "b.wav").write_text("not audio")
    return [folder / name for name in names]


FEW = ["num_beams=1", "max_new_tokens=5"]


@pytest.mark.parametrize("given", ["a folder", "a list", "a file"])
def test_many_recordings_are_answered_with_their_names_and_what_cannot_be_heard_is_told(
    corpus, unbroken, tmp_path, given, capsys
):
    a, b, c = write_recordings(corpus, tmp_path / "sounds")
    (tmp_path / "list.txt").write_text(f"{a}\n\n{b}\n{c}\n")
    audio = {"a folder": a.parent, "a list": f"['{a}','{b}','{c}']", "a file": tmp_path / "list.txt"}[given]
    words = ["ask", f"run={unbroken}", "question=What?", *FEW]
    alone = []
    for recording in (a, c):
        assert main([*words, f"audio={recording}"]) == 0
        alone.append(capsys.readouterr().out.rstrip("\n"))
    assert main([*words, f"audio={audio}"]) == 1
    told = capsys.readouterr()
    assert told.out.splitlines() == [f"{a}: {alone[0]}", f"{c}: {alone[1]}"]
    assert f"{b}: " in told.err and told.err.endswith("salmonn: 1 of 3 recordings cannot be heard\n")
    assert main([*words, f"audio={audio}", "json=true", "batch_examples=1"]) == 1
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {
        **{"recording": str(a), "question": "What?", "answer": alone[0]},
        **{"heard_seconds": 1.0, "given_seconds": 1.0, "is_cut": first["is_cut"]},
    }
    assert second.keys() == {"recording", "question", "error"} and third["recording"] == str(c)


def test_a_list_that_names_what_is_not_there_is_named_too(unbroken, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("hello\n")
    assert main(["ask", f"run={unbroken}", f"audio={tmp_path}/notes.txt", "question=What?"]) == 2
    assert re.search(r"notes\.txt: .*hello: no such file", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["a.csv", "b.jsonl.gz", "C.PARQUET"])
def test_a_table_is_refused_with_what_takes_one(unbroken, tmp_path, name, capsys):
    (tmp_path / name).write_text("audio,answer\n")
    assert main(["ask", f"run={unbroken}", f"audio={tmp_path / name}", "question=What?"]) == 2
    assert f"{name}: a table, of which no recording can be heard; audio=LIST.txt" in capsys.readouterr().err


def test_questions_are_read_from_a_terminal_while_the_model_stays_loaded(corpus, unbroken, tmp_path, capsys):
    a, _, c = write_recordings(corpus, tmp_path / "sounds")
    expected = []
    for question in ("What?", "Who?"):
        assert main(["ask", f"run={unbroken}", f"audio=['{a}','{c}']", f"question={question}", *FEW]) == 0
        expected += capsys.readouterr().out.splitlines()
    words = ["ask", f"run={unbroken}", f"audio=['{a}','{c}']", *FEW]
    program = f"import os; os.chdir({str(ROOT)!r}); from pipelines.cli import main; raise SystemExit(main({words!r}))"
    shown, typed = bytearray(), [b"What?\n", b"\nWho?\n", b"\x04"]

    def read(descriptor: int) -> bytes:
        shown.extend(data := os.read(descriptor, 1024))
        asked = shown.count(b"question: ")
        if asked in (1, 2, 4) and typed and len(typed) == {1: 3, 2: 2, 4: 1}[asked]:
            os.write(descriptor, typed.pop(0))
        return data

    assert pty.spawn([sys.executable, "-c", program], read) == 0
    lines = shown.decode().replace("question: ", "").splitlines()
    assert [line for line in lines if line.startswith(str(tmp_path))] == expected


def test_a_recording_that_is_heard_in_part_is_never_cut_in_silence(unbroken, tmp_path, capsys):
    soundfile.write(tmp_path / "long.wav", tone(5.0), RATE_HZ)
    words = ["ask", f"run={unbroken}", f"audio={tmp_path}/long.wav", "question=What?", *FEW]
    assert main(words) == 0
    assert f"{tmp_path}/long.wav: heard are the first 2 s of 5.0 s\n" in capsys.readouterr().err
    assert main([*words, "json=true"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["heard_seconds"], told["given_seconds"]) == (2.0, 5.0)


def test_an_answer_that_may_be_no_longer_is_told_to_be_cut(unbroken, corpus, capsys):
    recording = Path(corpus[0]).parent / "audio" / "tone-0.wav"
    words = ["ask", f"run={unbroken}", f"audio={recording}", "question=What?", "num_beams=1", "json=true"]
    cut = []
    for most in (1, 200):
        assert main([*words, f"max_new_tokens={most}"]) == 0
        cut.append(json.loads(capsys.readouterr().out)["is_cut"])
    assert cut[0] and not cut[1]


def test_asking_about_an_unreadable_recording_says_why(unbroken, tmp_path, capsys):
    (tmp_path / "x.wav").write_text("not audio")
    assert main(["ask", f"run={unbroken}", f"audio={tmp_path}/x.wav", "question=What?"]) == 2
    assert "x.wav: " in capsys.readouterr().err


def test_a_run_does_not_choose_which_code_runs(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "planted.py").write_text("raise SystemExit(99)")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = Path(run) / "run.json"
    content = json.loads(spec.read_text())
    content["encoders"]["audio"] = "planted:load"
    spec.write_text(json.dumps(content))
    soundfile.write(tmp_path / "a.wav", tone(1.0, hertz=200.0, seed=0), RATE_HZ)
    assert main(["ask", f"run={run}", f"audio={tmp_path}/a.wav", "question=What?"]) == 2
    shown = capsys.readouterr().err
    assert f"{run}: names planted:load as its encoder, which is code to be run; beats=planted:load allows it" in shown
