"""Covers pipelines.inference.listening.waves, pipelines.inference.listening.recordings."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from encoders.audio import AudioError, Segment
from encoders.sound.clips import load_clip
from pipelines.cache import FeatureCache
from pipelines.errors import USER_ERRORS, UserError
from pipelines.inference import Listener
from pipelines.inference.listening.waves import read_parts, read_wave, wave_of_array
from tests import ROOT
from tests.pipelines.builders import config_of, train_here
from tests.toy import RATE_HZ, tone

QUESTION = "What can be heard?"


@pytest.fixture(scope="module")
def listener(unbroken) -> Listener:
    return Listener.from_run(str(unbroken), device="cpu")


@pytest.fixture(scope="module")
def recording(corpus) -> Path:
    return Path(corpus[0]).parent / "audio" / "tone-3.wav"


def test_a_path_an_array_features_and_a_cached_clip_are_the_same_sound(listener, recording, corpus):
    samples, rate = soundfile.read(recording, dtype="float32")
    manifest = {clip: Path(name).name for clip, name in recordings_of(corpus)}
    (clip_id,) = (clip for clip, name in manifest.items() if name == recording.name)
    sounds = [str(recording), recording, (samples, rate), (np.stack([samples, 0 * samples], 1), rate)]
    sounds += [listener.features(recording), FeatureCache.open(corpus[1])[clip_id]]
    answers = [listener.answer(sound, QUESTION) for sound in sounds]
    assert len(set(answers)) == 1 and answers[0].text
    assert (answers[0].heard_seconds, answers[0].given_seconds) == (1.75, 1.75)
    assert listener.answers([(sound, QUESTION) for sound in sounds]) == answers


def recordings_of(corpus):
    from pipelines.manifest.tables import read_clips

    return [(clip.clip_id, clip.recordings[0]) for clip in read_clips(corpus[0])]


def test_several_questions_about_one_sound_encode_it_once(listener, recording, monkeypatch):
    heard = []
    hear = listener._hear
    monkeypatch.setitem(vars(listener), "_hear", lambda waves, on_clips: (heard.extend(waves), hear(waves))[1])
    path = str(recording)
    one, two = listener.answers([(path, QUESTION), (path, "Who?")])
    assert len(heard) == 1 and one.text != two.text
    features = listener.features(path)
    assert [listener.answer(features, question).text for question in (QUESTION, "Who?")] == [one.text, two.text]
    assert len(heard) == 2
    assert listener.answers([]) == []


def test_a_sound_has_the_same_bits_whatever_is_heard_beside_it(listener):
    chance = np.random.default_rng(0)
    lengths = chance.integers(RATE_HZ, 8 * RATE_HZ, 24)
    sounds = [(chance.normal(0, 0.1, length).astype(np.float32), RATE_HZ) for length in lengths]
    together = listener.features_of(sounds)
    for sound, found in zip(sounds, together, strict=True):
        for name, frames in listener.features(sound).streams.items():
            assert torch.equal(frames, found.streams[name])


@pytest.mark.parametrize("num_beams", [1, 4])
def test_pieces_join_to_the_answer(listener, recording, num_beams):
    for question in (QUESTION, "Who?", "Is it high or low?"):
        pieces = list(listener.stream(recording, question, num_beams=num_beams))
        assert "".join(pieces) == listener.answer(recording, question, num_beams=num_beams).text
        assert len(pieces) > 1 and all(pieces)


def test_runs_over_one_llm_answer_in_turns_as_each_does_alone(listener, unbroken, corpus, recording, tmp_path):
    other = tmp_path / "other"
    train_here(config_of(corpus, other, seed=5))
    alone = [Listener.from_run(str(run), device="cpu").answer(recording, QUESTION) for run in (unbroken, other)]
    first, second = Listener.from_runs([str(unbroken), str(other)], device="cpu")
    assert first.model.llm is second.model.llm and first.encoder_run == second.encoder_run
    for _ in range(2):
        assert [first.answer(recording, QUESTION), second.answer(recording, QUESTION)] == alone
    streams = [first.stream(recording, QUESTION), second.stream(recording, QUESTION)]
    texts = ["", ""]
    while any(pieces := [next(stream, "") for stream in streams]):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    assert texts == [answer.text for answer in alone] and texts[0] != texts[1]


def test_runs_over_different_llms_are_refused(corpus, unbroken, tmp_path, tiny_llm_elsewhere):
    other = tmp_path / "other"
    train_here(config_of(corpus, other, llm=tiny_llm_elsewhere, steps=2))
    with pytest.raises(UserError, match=r"is another LLM than .*unbroken learnt with"):
        Listener.from_runs([str(unbroken), str(other)], device="cpu")


@pytest.fixture
def tiny_llm_elsewhere(tmp_path) -> str:
    from llm.tiny import write_tiny_llm

    write_tiny_llm(["another"], tmp_path / "llm", seed=3)
    return str(tmp_path / "llm")


def test_what_is_no_sound_and_what_does_not_fit_is_named(listener, recording):
    with pytest.raises(AudioError, match=r"README\.md"):
        listener.answer(str(ROOT / "README.md"), QUESTION)
    with pytest.raises(AudioError, match="the array: rate: 100 Hz"):
        listener.answer((np.zeros(1000), 100), QUESTION)
    with pytest.raises(AudioError, match="the array: samples: not a finite number"):
        listener.answer((np.full(16_000, np.nan), 16_000), QUESTION)
    for array in (np.zeros((2, 2, 2)), np.zeros(0)):
        with pytest.raises(UserError, match=r"the array has shape .* must be \[samples\] or \[samples, channels\]"):
            listener.answer((array, 16_000), QUESTION)
    with pytest.raises(UserError, match="audio of type bytes: a path"):
        listener.answer(b"", QUESTION)
    with pytest.raises(UserError, match="the question is too long"):
        listener.answer(recording, "Who? " * 2000)
    for question in ("", " "):
        with pytest.raises(UserError, match="the question is empty"):
            listener.answer(recording, question)
    for wrong in ({"num_beams": 0}, {"max_new_tokens": 0}):
        with pytest.raises(USER_ERRORS, match=f"{next(iter(wrong))}=0: must be 1 or more"):
            listener.answer(recording, QUESTION, **wrong)
    features = listener.features(recording)
    features.streams.pop("audio")
    with pytest.raises(UserError, match=r"hears streams of .* and these features have"):
        listener.answer(features, QUESTION)


def test_a_wave_is_the_same_from_a_file_from_its_bytes_and_from_an_array(tmp_path):
    samples = tone(2.0)
    soundfile.write(tmp_path / "a.wav", samples, 44_100, subtype="FLOAT")
    waves = [read_wave(str(tmp_path / "a.wav"), channel="first"), wave_of_array(samples, 44_100, channel="first")]
    waves.append(read_parts([(tmp_path / "a.wav").read_bytes()], channel="first"))
    expected = load_clip([Segment(str(tmp_path / "a.wav"))])
    for wave in waves:
        assert torch.equal(wave.samples, expected) and wave.seconds == len(samples) / 44_100


def test_a_long_sound_is_heard_in_part_and_its_whole_length_is_known(listener, tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(33.0), RATE_HZ)
    wave = read_wave(str(tmp_path / "a.flac"), channel="first")
    assert wave.seconds == 33.0 and len(wave.samples) == 30 * RATE_HZ
    answer = listener.answer(tmp_path / "a.flac", QUESTION)
    assert (answer.heard_seconds, answer.given_seconds) == (2.0, 33.0)
    content = (tmp_path / "a.flac").read_bytes()
    with pytest.raises(UserError, match=r"lasts 66\.1 s, more than the 60 s"):
        read_parts([content, content], channel="first", most_seconds=60.0)


def test_the_page_about_python_runs_as_it_stands(unbroken, corpus, recording, tmp_path, monkeypatch, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "sounds").mkdir()
    (tmp_path / "data" / "run").symlink_to(unbroken)
    (tmp_path / "data" / "cache").symlink_to(corpus[1])
    (tmp_path / "sounds" / "dog.wav").symlink_to(recording)
    (tmp_path / "README.md").write_text("no sound")
    monkeypatch.chdir(tmp_path)
    names = {}
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/python.md").read_text(), re.MULTILINE | re.DOTALL)
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    listener = names["listener"]
    assert names["second"] == listener.answer("sounds/dog.wav", "How many dogs are there?")
    assert names["together"][0] == names["first"] == names["answer"]
    assert names["text"] == listener.answer(names["clip"], QUESTION, num_beams=1).text
    shown = capsys.readouterr().out
    assert names["answer"].text in shown and "README.md: " in shown
