"""Sounds over 30 s: learnt, evaluated and asked about, at their own length.

Covers pipelines.training.preflight, pipelines.inference.listening.listener.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from encoders.audio import Segment
from encoders.sound.clips import load_clip
from pipelines.batches.batch import read_batch
from pipelines.batches.example_set import load_examples
from pipelines.batches.micro_batch import count_audio_tokens
from pipelines.cache.reader import FeatureCache
from pipelines.cli import main
from pipelines.errors import UserError
from pipelines.inference.listening.listener import Listener
from pipelines.manifest.corpora.table import TableConfig, prepare_table
from pipelines.runs.checkpoint import load_run
from pipelines.runs.spec import RunSpec
from pipelines.training.preflight import open_run
from tests.pipelines.builders import config_of, fill, losses, make_worker, train_here
from tests.toy import write_tones

SECONDS = [1.3, 4.0, 30.0, 75.0, 31.0, 64.2]
HEARD = 70.0
QUESTION = "What can be heard?"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("long")
    names = write_tones(folder / "audio", SECONDS)
    rows = [
        {"path": name, "text": "high low", "task": "audiocaption", "split": "test" if number > 3 else "train"}
        for number, name in enumerate(names)
    ]
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table, audio_root, out = str(folder / "table.jsonl"), str(folder / "audio"), str(folder / "m")
    prepare_table(TableConfig(table=table, audio_root=audio_root, out=out, max_clip_seconds=HEARD))
    return out


def cache_of(manifest, folder, **keys) -> str:
    fill(folder, manifest, make_worker(folder, **keys))
    return str(folder)


@pytest.fixture(scope="module")
def cache(manifest, tmp_path_factory) -> str:
    return cache_of(manifest, tmp_path_factory.mktemp("c") / "c", max_clip_seconds=HEARD, speech_frames="heard")


@pytest.fixture(scope="module")
def run(manifest, cache, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("run") / "run"
    train_here(config_of((manifest, cache), folder, heard_seconds=HEARD, hear="clip", steps=2, batch_examples=4))
    return str(folder)


def recording(manifest, number) -> str:
    return f"{manifest.removesuffix('/m')}/audio/tone-{number}.wav"


def test_a_run_learns_and_records_what_it_hears(run):
    assert all(np.isfinite(losses(run)))
    spec = RunSpec.read(run)
    assert (spec.frames, spec.hear, spec.recipe.max_clip_seconds) == (3_500, "clip", HEARD)


def test_a_long_clip_has_a_token_for_every_window_and_the_same_loss_in_any_batch(manifest, cache, run):
    loaded, features = load_run(run, device="cpu"), FeatureCache(cache)
    model, heard = loaded.model.eval(), loaded.spec.heard
    seconds = features.seconds
    tokens = count_audio_tokens(model, heard, seconds)
    frames = np.ceil(np.round(seconds * 50, 6))
    assert tokens == [1 + max(0, -(-(int(count) - 17) // 17)) for count in frames]  # 17 frames: a third of a second
    assert max(tokens) == 206
    examples = load_examples(manifest, features, splits=[], tasks=[], max_missing_fraction=0)
    places = [(0, number) for number in range(len(examples))]
    with torch.no_grad():
        batch = read_batch(examples, features, places, heard=heard, prompt_seed=None)
        together = model.loss(batch)
        apart = [model.loss(read_batch(examples, features, [place], heard=heard, prompt_seed=None)) for place in places]
    assert float(together.total) == pytest.approx(sum(float(one.total) for one in apart), rel=1e-5)


def test_ask_hears_what_the_cache_holds_and_says_how_much(manifest, cache, run):
    listener, features = Listener.from_run(run), FeatureCache(cache)
    for number, seconds in ((1, 4.0), (4, 31.0), (3, 75.0)):
        path = recording(manifest, number)
        answer = listener.answer(path, QUESTION, max_new_tokens=4)
        assert (answer.heard_seconds, answer.given_seconds) == (min(seconds, HEARD), seconds)
        streams = listener.features(path).streams
        position = int(np.flatnonzero(features.seconds == min(seconds, HEARD))[0])
        for name, frames in features.read(position).items():
            torch.testing.assert_close(streams[name], frames, atol=2e-2, rtol=0)


def test_ask_hears_more_or_less_where_it_is_asked_to(manifest, run, unbroken, capsys):
    words = ["ask", f"run={run}", f"audio={recording(manifest, 3)}", f"question={QUESTION}", "max_new_tokens=4"]
    for seconds, expected in ((75, 75.0), (40, 40.0), (0, HEARD)):
        assert main([*words, "json=true", f"heard_seconds={seconds}"]) == 0
        captured = capsys.readouterr()
        told = json.loads(captured.out)
        assert (told["heard_seconds"], told["given_seconds"]) == (expected, 75.0)
        assert "encode: 75/75 s of sound" in captured.err or "encode: 70/70 s of sound" in captured.err
    words[1] = f"run={unbroken}"
    assert main([*words, "heard_seconds=40"]) == 2
    assert f"heard_seconds=40: {unbroken} hears 2 s of every sound (hear=all)" in capsys.readouterr().err


def test_a_sound_that_the_llm_cannot_hold_is_refused_before_it_is_encoded(run, tmp_path, monkeypatch, capsys):
    (name,) = write_tones(tmp_path, [600.0])
    words = ["ask", f"run={run}", f"audio={tmp_path / name}", f"question={QUESTION}"]
    assert main([*words, "heard_seconds=600"]) == 2
    captured = capsys.readouterr().err
    assert (
        "the sound is too long: 600.0 s of it are 1765 tokens" in captured and "positions of the LLM's 1024" in captured
    )
    assert "encode" not in captured


def test_long_clips_need_a_run_and_a_cache_that_hear_them(manifest, cache, run, tmp_path):
    usual = cache_of(manifest, tmp_path / "usual")
    config = config_of((manifest, usual), tmp_path / "run", heard_seconds=HEARD, hear="clip")
    with pytest.raises(UserError, match=r"heard_seconds=70: .*usual holds 30 s of a clip at most"):
        open_run(config, pending=[])
    with pytest.raises(UserError, match=r"heard_seconds=70: hear=all hears 30 s"):
        replace(config, hear="")
    with pytest.raises(UserError, match="max_clip_seconds"):
        open_run(replace(config, heard_seconds=20.0, init_from=run), pending=[])
    train_here(config_of((manifest, cache), tmp_path / "short", heard_seconds=30.0, hear="clip", steps=1))
    listener = Listener.from_run(str(tmp_path / "short"))
    assert listener.heard_seconds == 30.0
    assert len(listener.batch([listener.features(recording(manifest, 3))], [QUESTION]).speech[0]) == 1_500


def test_an_official_checkpoint_says_that_its_model_hears_thirty_seconds(run, tmp_path, capsys):
    assert main(["export-official", f"run={run}", f"out={tmp_path}/a.pth"]) == 0
    told = "learnt clips at their own length (hear=clip, up to 70 s); the official code lets it hear 30 s of each"
    assert told in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_evaluate_answers_about_long_clips_and_refuses_another_cache(manifest, cache, run, tmp_path, capsys):
    words = ["evaluate", f"run={run}", f"manifest={manifest}", "splits=[test]", "max_new_tokens=4", "num_beams=1"]
    assert main([*words, f"cache={cache}", f"out={tmp_path}/e"]) == 0
    answers = json.loads((tmp_path / "e" / "scores.json").read_text())
    assert answers
    usual = cache_of(manifest, tmp_path / "usual")
    capsys.readouterr()
    assert main([*words, f"cache={usual}", f"out={tmp_path}/f"]) == 2
    error = capsys.readouterr().err
    assert "max_clip_seconds" in error and error.count("\n") == 1


def test_a_wave_is_cut_where_the_run_hears_no_more(manifest, run):
    listener = Listener.from_run(run)
    wave = listener.read(recording(manifest, 3))
    expected = load_clip([Segment(recording(manifest, 3))], max_clip_seconds=HEARD)
    assert torch.equal(wave.samples, expected) and wave.seconds == 75.0


def test_the_forecast_counts_the_tokens_of_long_clips(manifest, cache, run, tmp_path, capsys):
    sizes = ["qformer.hidden_width=32", "qformer.num_heads=2", "qformer.ffn_width=64", "calibration_seconds=0"]
    words = ["plan", "train", f"manifest={manifest}", f"cache={cache}", f"run={tmp_path}/p", "llm=tiny", "json=true"]
    assert main([*words, *sizes, "hear=clip", f"heard_seconds={HEARD}", "steps=2", "batch_examples=4"]) == 0
    forecast = json.loads(capsys.readouterr().out)
    features = FeatureCache(cache)
    examples = load_examples(manifest, features, splits=["train"], tasks=[], max_missing_fraction=0)
    loaded = load_run(run, device="cpu")
    seconds = features.seconds[examples.positions]
    tokens = count_audio_tokens(loaded.model, loaded.spec.heard, seconds)
    assert forecast["lengths"]["audio"] == pytest.approx(np.mean(tokens)) and max(tokens) == 206
