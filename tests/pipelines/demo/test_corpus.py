"""Covers pipelines.demo.config, pipelines.demo.demo, pipelines.demo.events, pipelines.demo.figures,
pipelines.demo.phrases, pipelines.demo.report, pipelines.demo.sound_events, pipelines.demo.speech_synthesis.
"""

import hashlib
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile as sf

from pipelines.demo.config import DemoSizes
from pipelines.demo.corpus import DemoCorpus, write_demo_corpus
from pipelines.demo.events import EVENT_QUESTION, plan_clips
from pipelines.demo.phrases import SLOT_QUESTIONS, plan_phrases
from pipelines.demo.report import held_out_scores, page_address, scores_with_silence
from pipelines.demo.sound_events import SOUND_EVENTS, synthesise_event
from pipelines.demo.speech_synthesis import ACCENTS, SPEECH_RATE_HZ, Voice, open_synthesiser, resample, trim_silence
from pipelines.inference.scoring.answers import Score, TaskScores

SIZES = DemoSizes(
    train_utterances=24,
    test_utterances=16,
    train_speakers=4,
    test_speakers=3,
    train_clips=48,
    test_clips=16,
    joined_examples=4,
)
WOMAN = Voice("1", "en-us", "F", formant_scale=1.15, low_hz=150, high_hz=220, words_per_minute=120)
MAN = Voice("2", "en", "M", formant_scale=1.0, low_hz=80, high_hz=120, words_per_minute=120)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> DemoCorpus:
    return write_demo_corpus(tmp_path_factory.mktemp("demo"), seed=5, sizes=SIZES)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def transcripts(corpus: DemoCorpus, subset: str) -> dict[Path, str]:
    """Recording -> text, as the chapters' transcripts say."""
    found = {}
    for path in (corpus.librispeech_dir / subset).glob("*/*/*.trans.txt"):
        for line in path.read_text().splitlines():
            utterance_id, _, text = line.partition(" ")
            found[path.parent / f"{utterance_id}.flac"] = text
    return found


def annotation(path: Path) -> list[dict[str, str | list[str]]]:
    return list(json.loads(path.read_text())["annotation"])


def speakers(corpus: DemoCorpus) -> list[list[str]]:
    lines = (corpus.librispeech_dir / "SPEAKERS.TXT").read_text().splitlines()
    return [[cell.strip() for cell in line.split("|")] for line in lines if not line.startswith(";")]


def test_same_seed_gives_the_same_bytes(corpus: DemoCorpus, tmp_path: Path) -> None:
    write_demo_corpus(tmp_path, seed=5, sizes=SIZES)
    assert digests(tmp_path) == digests(corpus.librispeech_dir.parent)


def test_another_seed_gives_other_recordings(corpus: DemoCorpus, tmp_path: Path) -> None:
    other = digests(write_demo_corpus(tmp_path, seed=6, sizes=SIZES).librispeech_dir.parent)
    same = [name for name, digest in digests(corpus.librispeech_dir.parent).items() if other.get(name) == digest]
    assert not [name for name in same if name.endswith((".flac", ".wav"))]


def test_interrupted_corpus_is_completed(corpus: DemoCorpus, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_demo_corpus(tmp_path, seed=5, sizes=SIZES, on_progress=stop)
    write_demo_corpus(tmp_path, seed=5, sizes=SIZES)
    assert digests(tmp_path) == digests(corpus.librispeech_dir.parent)


def test_folder_of_something_else_is_refused(corpus: DemoCorpus, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        write_demo_corpus(tmp_path, seed=5, sizes=SIZES)
    with pytest.raises(ValueError, match="seed 6"):
        write_demo_corpus(corpus.librispeech_dir.parent, seed=6, sizes=SIZES)


def test_progress_counts_every_recording(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    sizes = DemoSizes(
        train_utterances=2, test_utterances=2, train_speakers=2, test_speakers=2, train_clips=12, test_clips=1
    )
    write_demo_corpus(tmp_path, seed=0, sizes=sizes, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 17) for done in range(1, 18)]


def test_impossible_size_is_named() -> None:
    with pytest.raises(ValueError, match="test_speakers 1 must be at least 2"):
        DemoSizes(test_speakers=1)


def test_speech_lies_as_in_librispeech(corpus: DemoCorpus) -> None:
    for subset, count in ((corpus.train_subset, 24), (corpus.test_subset, 16)):
        texts = transcripts(corpus, subset)
        assert set(texts) == set((corpus.librispeech_dir / subset).rglob("*.flac"))
        assert len(texts) == count
        for path, text in texts.items():
            speaker, chapter, number = path.stem.split("-")
            assert (path.parent.name, path.parent.parent.name) == (chapter, speaker)
            assert len(number) == 4
            assert all(word in slot for word, slot in zip(text.split(), corpus.word_slots, strict=True))


def test_no_test_speaker_is_heard_in_training_and_both_genders_speak_in_both(corpus: DemoCorpus) -> None:
    rows = speakers(corpus)
    by_subset = {subset: {row[0]: row[1] for row in rows if row[2] == subset} for subset in ("train-demo", "test-demo")}
    assert not set(by_subset["train-demo"]) & set(by_subset["test-demo"])
    for subset, genders in by_subset.items():
        assert set(genders) == {path.name for path in (corpus.librispeech_dir / subset).iterdir()}
        assert set(genders.values()) == {"F", "M"}


def test_speakers_file_has_the_minutes(corpus: DemoCorpus) -> None:
    for name, _, subset, minutes, _ in speakers(corpus):
        paths = (corpus.librispeech_dir / subset / name).rglob("*.flac")
        assert float(minutes) == pytest.approx(sum(sf.info(path).duration for path in paths) / 60, abs=0.006)


def test_held_out_phrases_are_balanced_over_the_words(corpus: DemoCorpus) -> None:
    words = Counter(word for text in transcripts(corpus, corpus.test_subset).values() for word in text.split())
    assert set(words.values()) == {2}
    assert len(words) == 16


def test_a_speaker_says_many_different_phrases() -> None:
    phrases = plan_phrases("train-demo", 400, range(16), seed=0)
    assert len({phrase.text for phrase in phrases}) == 64
    for name in {phrase.voice.name for phrase in phrases}:
        assert len({phrase.text for phrase in phrases if phrase.voice.name == name}) > 15


def test_recorded_phrases_are_clean_and_about_a_second_long(corpus: DemoCorpus) -> None:
    for path in [*transcripts(corpus, corpus.train_subset), *transcripts(corpus, corpus.test_subset)]:
        if path == corpus.damaged_recording:
            continue
        samples, rate_hz = sf.read(path)
        assert (rate_hz, samples.ndim) == (SPEECH_RATE_HZ, 1)
        assert 0.6 < len(samples) / rate_hz < 1.8
        assert 0.15 < np.abs(samples).max() < 0.9
        assert np.std(samples) > 0.01


def test_damaged_recording_looks_whole_but_cannot_be_decoded(corpus: DemoCorpus) -> None:
    assert corpus.damaged_recording in transcripts(corpus, corpus.train_subset)
    assert sf.info(corpus.damaged_recording).duration > 0.6
    with pytest.raises(sf.LibsndfileError):
        sf.read(corpus.damaged_recording)


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_annotated_recording_is_there(corpus: DemoCorpus, split: str) -> None:
    path = {"train": corpus.train_annotation_path, "test": corpus.test_annotation_path}[split]
    named = {str(name) for example in annotation(path) for name in [example["path"], *example.get("expand_wav", [])]}
    present = {f"audio/{wav.name}" for wav in (corpus.events_dir / "audio").glob(f"{split}-*.wav")}
    assert named == present
    assert len(named) == {"train": 48, "test": 16}[split]


def test_events_are_balanced_and_captioned(corpus: DemoCorpus) -> None:
    captions = [ex["text"] for ex in annotation(corpus.test_annotation_path) if ex["task"] == "audiocaption"]
    assert Counter(captions) == dict.fromkeys(corpus.event_captions, 2)


def test_questions_have_true_answers(corpus: DemoCorpus) -> None:
    questions = [example for example in annotation(corpus.train_annotation_path) if example["task"] == "aqa"]
    for example in questions:
        assert example["text"] == Path(str(example["path"])).stem.rsplit("-", 1)[1]
    assert Counter(example["Q"] for example in questions) == {EVENT_QUESTION: 48}


def test_words_are_asked_for_in_turn(corpus: DemoCorpus) -> None:
    transcripts = dict(
        line.split(" ", 1)
        for path in corpus.librispeech_dir.rglob("*.trans.txt")
        for line in path.read_text().splitlines()
    )
    questions = annotation(corpus.test_questions_path)
    for example in questions:
        words = transcripts[Path(str(example["path"])).stem].lower().split()
        assert example["text"] == words[SLOT_QUESTIONS.index(str(example["Q"]))]
    assert set(Counter(example["Q"] for example in questions)) == set(SLOT_QUESTIONS)


def test_joined_captions_name_both_events_in_order(corpus: DemoCorpus) -> None:
    joined = [example for example in annotation(corpus.train_annotation_path) if "expand_wav" in example]
    assert len(joined) == 4
    for example in joined:
        names = [Path(name).stem.rsplit("-", 1)[1] for name in (str(example["path"]), *example["expand_wav"])]
        assert example["text"] == " and then ".join(SOUND_EVENTS[name].caption for name in names)
    assert not [example for example in annotation(corpus.test_annotation_path) if "expand_wav" in example]


def test_event_recordings_are_sound_in_several_rates_and_channels(corpus: DemoCorpus) -> None:
    formats = Counter()
    for path in (corpus.events_dir / "audio").glob("*.wav"):
        samples, rate_hz = sf.read(path, always_2d=True)
        formats[rate_hz, samples.shape[1]] += 1
        assert 1.0 < len(samples) / rate_hz <= 2.0
        assert 0.15 < np.abs(samples).max() < 0.9
        assert (np.std(samples, axis=0) > 0.003).all()
    assert {rate_hz for rate_hz, _ in formats} == {16_000, 22_050, 44_100}
    assert {channels for _, channels in formats} == {1, 2}


def test_rate_and_channels_tell_nothing_of_the_event() -> None:
    clips = plan_clips("train", 264)
    assert len(Counter((clip.event.name, clip.rate_hz) for clip in clips)) == 24
    assert len(Counter((clip.event.name, clip.num_channels) for clip in clips)) == 16


def test_there_are_twelve_stories_of_more_than_fifty_words(corpus: DemoCorpus) -> None:
    stories = annotation(corpus.stories_path)
    assert len({str(story["text"]) for story in stories}) == len({str(story["path"]) for story in stories}) == 12
    for story in stories:
        name = Path(str(story["path"])).stem.rsplit("-", 1)[1]
        assert (corpus.events_dir / str(story["path"])).is_file()
        assert Path(str(story["path"])).name.startswith("train-")
        assert story["task"] == "audio_story"
        assert len(str(story["text"]).split()) > 50
        assert f"the {name}" in str(story["text"]).lower()
        assert SOUND_EVENTS[name].caption.replace(" is ", " was ") in str(story["text"])
        assert "{" not in str(story["text"])


def test_events_are_told_apart_by_their_spectrum_at_any_rate() -> None:
    def describe(name: str, seed: int, rate_hz: int) -> np.ndarray:
        """Mean and spread over time of the loudness in eight bands, in nepers."""
        samples = synthesise_event(SOUND_EVENTS[name], np.random.default_rng(seed), seconds=1.5, rate_hz=rate_hz)
        frames = samples[: 50 * (len(samples) // 50)].reshape(50, -1)
        power = np.abs(np.fft.rfft(frames)) ** 2
        edges = np.searchsorted(
            np.fft.rfftfreq(frames.shape[1], 1 / rate_hz), (0, 125, 250, 500, 1000, 2000, 4000, 7000)
        )
        loudness = np.log(np.add.reduceat(power, edges, axis=1)[:, :-1] / power.sum(axis=1).max())
        return np.concatenate((loudness.mean(axis=0), loudness.std(axis=0)))

    prototypes = {name: np.mean([describe(name, seed, 16_000) for seed in range(8)], axis=0) for name in SOUND_EVENTS}
    heard = [
        (name, describe(name, seed, rate_hz))
        for name in SOUND_EVENTS
        for seed in (8, 9)
        for rate_hz in (22_050, 44_100)
    ]
    right = [
        name == min(prototypes, key=lambda other, x=x: float(np.linalg.norm(prototypes[other] - x)))
        for name, x in heard
    ]
    assert np.mean(right) > 0.9


def test_the_same_event_never_sounds_the_same() -> None:
    for event in SOUND_EVENTS.values():
        first, second = (
            synthesise_event(event, np.random.default_rng(seed), seconds=1, rate_hz=16_000) for seed in (0, 1)
        )
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.5


def test_speech_depends_on_nothing_said_before() -> None:
    with open_synthesiser([WOMAN, MAN]) as synthesiser:
        first = synthesiser.speak("green tree", WOMAN)
        synthesiser.speak("purple desk", MAN, speed=1.3, pitch=90)
        assert np.array_equal(first, synthesiser.speak("green tree", WOMAN))
    with open_synthesiser([MAN, WOMAN]) as synthesiser:
        assert np.array_equal(first, synthesiser.speak("green tree", WOMAN))


@pytest.mark.parametrize("accent", ACCENTS)
def test_every_accent_speaks_at_the_pitch_of_its_voice(accent: str) -> None:
    voice = Voice("3", accent, "M", formant_scale=1.0, low_hz=80, high_hz=120, words_per_minute=120)
    with open_synthesiser([voice]) as synthesiser:
        samples = synthesiser.speak("moon", voice)
    correlation = np.correlate(samples, samples, mode="full")[len(samples) - 1 :]
    lags = np.arange(SPEECH_RATE_HZ // 400, SPEECH_RATE_HZ // 50)
    pitch_hz = SPEECH_RATE_HZ / lags[np.argmax(correlation[lags])]
    assert 70 < pitch_hz < 140


def test_faster_speech_is_shorter() -> None:
    with open_synthesiser([MAN]) as synthesiser:
        assert len(synthesiser.speak("red boat", MAN, speed=1.5)) < 0.8 * len(synthesiser.speak("red boat", MAN))


def test_voice_that_was_not_given_or_has_no_such_accent_is_refused() -> None:
    martian = Voice("4", "en-mars", "M", formant_scale=1.0, low_hz=80, high_hz=120, words_per_minute=120)
    with open_synthesiser([MAN, martian]) as synthesiser:
        with pytest.raises(ValueError, match="not opened"):
            synthesiser.speak("red boat", WOMAN)
        with pytest.raises(ValueError, match="en-mars"):
            synthesiser.speak("red boat", martian)
        with pytest.raises(ValueError, match="no sound"):
            synthesiser.speak("", MAN)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ValueError, match="espeakng-loader"), open_synthesiser([MAN]):
        pass


def test_resampling_keeps_tones_and_length() -> None:
    times = np.arange(22_050) / 22_050
    window = np.hanning(22_050)
    for pitch_hz in (100, 1000, 7000):
        expected_times = np.arange(16_000) / 16_000
        expected = np.sin(2 * np.pi * pitch_hz * expected_times) * np.interp(expected_times, times, window)
        assert np.abs(resample(np.sin(2 * np.pi * pitch_hz * times) * window, 22_050, 16_000) - expected).max() < 1e-4
    assert np.abs(resample(np.sin(2 * np.pi * 9500 * times) * window, 22_050, 16_000)).max() < 1e-4


def test_silence_is_trimmed() -> None:
    assert trim_silence(np.array([0.0, 0.001, -0.5, 0.0, 1.0, 0.009])).tolist() == [-0.5, 0.0, 1.0]
    assert trim_silence(np.zeros(4)).size == trim_silence(np.zeros(0)).size == 0


def accuracy_of(task, value) -> TaskScores:
    score = Score(name="accuracy", value=value, signature="", items=1)
    return TaskScores(task=task, test_set="made test", clips=1, examples=1, references=1, scores=(score,))


def test_scores_stand_beside_silence_and_chance(corpus, tmp_path):
    parts = [
        {"own": asdict(accuracy_of("aqa", 0.75)), "silence": asdict(accuracy_of("aqa", 0.25)), "other": None},
        {"own": asdict(accuracy_of("sqa", 0.5)), "silence": None, "other": None},
    ]
    (tmp_path / "scores.json").write_text(json.dumps({"tasks": parts}))
    scores = [accuracy_of("aqa", 0.75), accuracy_of("sqa", 0.5)]
    events, words = held_out_scores(scores, corpus, scores_with_silence(str(tmp_path)))
    assert (events.score, events.silence, events.chance) == (0.75, 0.25, 1 / len(corpus.event_names))
    assert (words.score, words.silence) == (0.5, None)


def test_the_demo_links_to_the_page_of_its_evaluation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluation = "demo/runs/stage3/evaluation/test+test-demo"
    address = page_address("demo/", evaluation)
    assert ":" not in address and unquote(address) == "runs/stage3/evaluation/test+test-demo/page/index.html"
