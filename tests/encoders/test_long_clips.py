"""Clips over 30 s: where they are cut, what the pieces give, and that no sound is lost between two."""

from itertools import pairwise

import numpy as np
import pytest
import soundfile as sf
import torch
from torchaudio.functional import resample

from encoders.audio import CLIP_SAMPLES, SAMPLE_RATE_HZ, AudioError, Segment
from encoders.clip_encoder import ClipEncoder
from encoders.errors import EncoderError
from encoders.features import STEP_SAMPLES, Heard, audio_frames, heard_frames, piece_borders, speech_frames
from encoders.sound.clips import load_clip
from encoders.tiny import tiny_beats, tiny_whisper


def noise(seconds: float, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(round(SAMPLE_RATE_HZ * seconds), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("samples", "pieces"),
    [
        (16_000, 1),
        (CLIP_SAMPLES, 1),
        (CLIP_SAMPLES + 1, 2),
        (60 * 16_000, 3),
        (75 * 16_000, 3),
        (24 * 3_600 * 16_000, 2_904),
    ],
)
def test_pieces_are_equal_but_for_a_step_and_never_over_30_s(samples: int, pieces: int) -> None:
    borders = piece_borders(samples)
    assert len(borders) == pieces and borders[0] == 0
    assert not any(border % STEP_SAMPLES for border in borders)
    lengths = np.diff([*borders, samples])
    assert lengths.max() - lengths.min() < 2 * STEP_SAMPLES
    if pieces > 1:
        assert lengths.max() + STEP_SAMPLES <= CLIP_SAMPLES


def test_a_long_clip_has_the_frames_of_its_pieces_joined() -> None:
    encoder = ClipEncoder(tiny_whisper(), tiny_beats())
    wave = noise(75)
    counts: list[float] = []
    (clip, short) = encoder.encode([wave, wave[:40_000]], on_clips=counts.append)
    borders = [*piece_borders(len(wave)), len(wave)]
    speech, audio = [], []
    for start, end in pairwise(borders):
        speech.append(tiny_whisper().encode([wave[start:end]])[0][: -(-(end - start) // 320)])
        with_next = wave[start : end + STEP_SAMPLES]
        audio.append(tiny_beats().encode([with_next])[0][: (end - start) // 320])
    torch.testing.assert_close(clip["speech"], torch.cat(speech), atol=1e-5, rtol=0)
    torch.testing.assert_close(clip["audio"], torch.cat(audio), atol=1e-5, rtol=0)
    assert sum(counts) == pytest.approx(2)
    seconds = np.array([75.0])
    assert len(clip["speech"]) == heard_frames(seconds)[0] == speech_frames(seconds, "all")[0] == 3_750
    assert len(clip["audio"]) == audio_frames(seconds)[0] == 3_744
    for name, frames in encoder.encode([wave[:40_000]])[0].items():
        torch.testing.assert_close(short[name], frames, atol=1e-5, rtol=0)


@pytest.mark.parametrize("samples", [CLIP_SAMPLES + 1, 33 * 16_000 + 77, 61 * 16_000 + 2_559])
def test_frames_are_as_many_as_is_planned(samples: int) -> None:
    (clip,) = ClipEncoder(tiny_whisper(), tiny_beats()).encode([noise(samples / SAMPLE_RATE_HZ)[:samples]])
    seconds = np.array([samples / SAMPLE_RATE_HZ])
    assert len(clip["speech"]) == speech_frames(seconds, "all")[0] == -(-samples // 320)
    assert len(clip["audio"]) == audio_frames(seconds)[0]


def test_a_click_at_a_border_is_in_both_streams() -> None:
    """Silence but for 10 ms that end where a piece ends: without the step behind it no patch of BEATs would hold it."""
    encoder = ClipEncoder(tiny_whisper(), tiny_beats())
    silence = torch.zeros(40 * SAMPLE_RATE_HZ)
    border = piece_borders(len(silence))[1]
    quiet = encoder.encode([silence])[0]
    for start in (border - 160, border - 80, border):
        clicked = silence.clone()
        clicked[start : start + 160] = noise(0.01)
        frames = encoder.encode([clicked])[0]
        for stream, of_silence in quiet.items():
            changed = (frames[stream] - of_silence).abs().amax(dim=1)
            place = start // 320
            assert changed[place - 8 : place + 8].max() > 0.1 * changed.max() > 0, (stream, start)


def test_an_encoder_that_gives_too_few_frames_for_a_piece_is_refused() -> None:
    class Sparse:
        digest, width = "0" * 16, 4

        def prepare(self, waves):
            return list(waves)

        def count_frames(self, prepared):
            return len(prepared) // 320

        def encode_prepared(self, prepared):
            return [torch.zeros(len(wave) // 320 - 9, 4) for wave in prepared]

    encoder = ClipEncoder(tiny_whisper(), Sparse())
    encoder.encode([noise(30)])
    with pytest.raises(EncoderError, match=r"gave \d+ frames of \d+ samples; a piece of a clip over 30 s needs 10"):
        encoder.encode([noise(40)])


@pytest.mark.parametrize("rate_hz", [16_000, 44_100, 8_000])
def test_a_long_recording_is_read_in_blocks_as_if_it_were_read_at_once(tmp_path, rate_hz: int) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (round(75.3 * rate_hz), 2)).astype(np.float32)
    path = tmp_path / "a.wav"
    sf.write(path, samples, rate_hz, subtype="FLOAT")
    whole = resample(torch.from_numpy(samples[:, 1].copy()), rate_hz, SAMPLE_RATE_HZ)
    clip = load_clip([Segment(str(path))], channel="1", max_clip_seconds=180)
    torch.testing.assert_close(clip, whole, atol=1e-6, rtol=0)
    cut = load_clip([Segment(str(path))], channel="1", max_clip_seconds=61.5)
    torch.testing.assert_close(cut, clip[: round(61.5 * SAMPLE_RATE_HZ)], atol=1e-6, rtol=0)
    joined = load_clip([Segment(str(path), 0, 40.0), Segment(str(path), 1, 50.0)], channel="1", max_clip_seconds=80)
    assert len(joined) == 80 * SAMPLE_RATE_HZ
    assert not joined[40 * SAMPLE_RATE_HZ : 40 * SAMPLE_RATE_HZ + 1_600].any()
    torch.testing.assert_close(joined[: 39 * SAMPLE_RATE_HZ], whole[: 39 * SAMPLE_RATE_HZ], atol=1e-6, rtol=0)


@pytest.mark.parametrize("seconds", [0.4, 20.0, 30.0])
def test_a_clip_of_30_s_or_less_is_the_same_whatever_the_longest_is(tmp_path, seconds: float) -> None:
    path = tmp_path / "a.wav"
    sf.write(path, noise(seconds).numpy(), 22_050)
    segments = [Segment(str(path))]
    assert torch.equal(load_clip(segments), load_clip(segments, max_clip_seconds=600))


def test_a_sample_that_is_no_number_is_named_in_any_block(tmp_path) -> None:
    samples = noise(70).numpy()
    samples[round(65.5 * SAMPLE_RATE_HZ)] = np.nan
    path = tmp_path / "a.wav"
    sf.write(path, samples, SAMPLE_RATE_HZ, subtype="FLOAT")
    assert len(load_clip([Segment(str(path))])) == CLIP_SAMPLES  # is cut before it
    with pytest.raises(AudioError, match=r"not a finite number at 65\.5 s"):
        load_clip([Segment(str(path))], max_clip_seconds=180)


def test_a_model_hears_of_a_long_clip_what_it_learnt_to() -> None:
    seconds = np.array([1.0, 30.0, 75.0, 200.0])
    assert Heard(1_500).frames_of(seconds).tolist() == [1_500] * 4
    assert Heard(1_500, "clip").frames_of(seconds).tolist() == [50, 1_500, 1_500, 1_500]
    assert Heard(9_000, "clip").frames_of(seconds).tolist() == [50, 1_500, 3_750, 9_000]
