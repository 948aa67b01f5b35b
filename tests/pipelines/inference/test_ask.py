"""Covers pipelines.inference.config."""

import json
from pathlib import Path

import pytest
import torch

from pipelines.cache.reader import FeatureCache
from pipelines.cli import main
from pipelines.inference.ask import ask
from pipelines.inference.config import AskConfig, EvaluateConfig
from pipelines.inference.evaluate import evaluate


def test_asking_hears_what_evaluation_heard(corpus, unbroken, tmp_path, capsys):
    config = EvaluateConfig(
        run=str(unbroken), manifest=corpus[0], cache=corpus[1], out=str(tmp_path), num_beams=1, max_new_tokens=5
    )
    evaluate(config)
    line = json.loads((tmp_path / "predictions.jsonl").read_text().splitlines()[0])
    cache = FeatureCache(corpus[1])
    position = int(cache.positions([line["clip_id"]])[0])
    assert cache.index["clip_id"][position].as_py() == line["clip_id"]
    recording = Path(corpus[0]).parent / "audio" / "tone-3.wav"
    keys = {"run": str(unbroken), "audio": str(recording), "num_beams": 1, "max_new_tokens": 5}
    assert ask(AskConfig(question=line["question"], **keys)) == line["answer"]
    assert line["answer"] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["audio=absent.wav"], "absent.wav: no such file"),
        (["run=absent"], "no run there"),
        (["whisper=absent"], "whisper=absent"),
        (["beats=none"], "streams.audio"),
        (["beats=README.md"], "README.md: not a readable checkpoint"),
        (["threads=0"], "threads=0: must be 1 or more"),
        *([] if torch.cuda.is_available() else [(["device=cuda"], "no GPU")]),
    ],
)
def test_asking_wrongly_gives_one_line_and_exit_code_2(corpus, unbroken, tmp_path, keys, message, capsys):
    recording = Path(corpus[0]).parent / "audio" / "tone-3.wav"
    assert main(["ask", f"run={unbroken}", f"audio={recording}", "question=What?", *keys]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_asking_about_an_unreadable_recording_says_why(unbroken, tmp_path, capsys):
    (tmp_path / "x.wav").write_text("not audio")
    assert main(["ask", f"run={unbroken}", f"audio={tmp_path}/x.wav", "question=What?"]) == 2
    assert "x.wav: " in capsys.readouterr().err
