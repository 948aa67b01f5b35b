from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.clip_encoder import ClipEncoder, load_clip_encoder
from encoders.tiny import tiny_beats, tiny_whisper


def waves(*seconds: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(round(16_000 * length), generator=generator) for length in seconds]


def test_streams_come_in_the_order_given_whatever_the_batches() -> None:
    encoder = ClipEncoder(tiny_whisper(), tiny_beats())
    clips = waves(1, 3.2, 1.7, 2)
    seconds = {"mel": 100.0}
    streams = encoder.encode(clips, batch_size=3, seconds=seconds)
    assert [list(clip) for clip in streams] == [["speech", "audio"]] * 4
    for clip, wave in zip(streams, clips, strict=True):
        assert clip["speech"].shape == (1500, encoder.widths["speech"])
        torch.testing.assert_close(clip["audio"], tiny_beats().encode([wave])[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(clip["speech"], tiny_whisper().encode([wave])[0], atol=1e-5, rtol=0)
    assert list(seconds) == ["mel", "whisper", "fbank", "beats"]
    assert seconds["mel"] > 100
    assert seconds["beats"] > 0


@pytest.mark.parametrize("beats", [None, tiny_beats()])
def test_clips_are_counted_as_their_streams_are_encoded(beats) -> None:
    counts: list[float] = []
    ClipEncoder(tiny_whisper(), beats).encode(waves(1, 3.2, 1.7, 2), on_clips=counts.append)
    assert sum(counts) == 4 and len(counts) > 1


def test_a_clip_gives_the_same_features_in_twenty_random_batches() -> None:
    encoder = ClipEncoder(tiny_whisper(), tiny_beats())
    generator = np.random.Generator(np.random.PCG64(0))
    clips = waves(*generator.uniform(1, 12, size=12))
    alone = {name: [encoder.encode([clip])[0][name] for clip in clips] for name in encoder.widths}
    spread = {name: torch.cat(frames).std().item() for name, frames in alone.items()}
    worst = dict.fromkeys(alone, 0.0)
    for _ in range(20):
        chosen = generator.choice(len(clips), size=generator.integers(2, 6), replace=False)
        batch = [clips[number] for number in chosen]
        together = {
            "speech": encoder.speech.encode(batch, batch_size=len(batch)),
            "audio": tiny_beats().encode(batch, batch_size=len(batch)),
        }
        for name, frames in together.items():
            for number, clip in zip(chosen, frames, strict=True):
                worst[name] = max(worst[name], (clip - alone[name][number]).abs().max().item() / spread[name])
    assert max(worst.values()) < 1e-4, worst


def test_batches_waste_little_and_hold_no_more_than_asked() -> None:
    encoder = ClipEncoder(tiny_whisper(), None)
    lengths = [48, 496, 240, 232, 56, 1496, 48, 48, 48]
    assert list(encoder._batches(lengths, 4)) == [[5], [1], [2, 3], [4], [0, 6, 7, 8]]
    encoder.device = torch.device("cuda")
    assert list(encoder._batches([1500, 1400, 700, 1500], 2)) == [[0, 3], [1], [2]]


def test_encoding_again_gives_the_same_bits() -> None:
    encoder = load_clip_encoder(whisper="tiny", beats="tiny")
    clips = waves(1.3, 1, 1.3)
    for first, again in zip(encoder.encode(clips, batch_size=2), encoder.encode(clips, batch_size=2), strict=True):
        assert torch.equal(first["speech"], again["speech"])
        assert torch.equal(first["audio"], again["audio"])


def test_without_beats_there_is_one_stream() -> None:
    encoder = load_clip_encoder(whisper="tiny", beats="none")
    assert encoder.widths == {"speech": 128}
    assert encoder.digests == {"speech": tiny_whisper().digest}
    assert list(encoder.encode(waves(1))[0]) == ["speech"]
    assert encoder.encode([]) == []


def test_paths_that_do_not_exist_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"whisper=.*none: no such folder; expected a Whisper folder"):
        load_clip_encoder(whisper=str(tmp_path / "none"), beats="tiny")
    with pytest.raises(ValueError, match=r"beats=.*none\.pt: no such file; expected a BEATs checkpoint"):
        load_clip_encoder(whisper="tiny", beats=str(tmp_path / "none.pt"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_gives_the_frames_of_the_cpu() -> None:
    clips = waves(1, 3.2, 1.7)
    on_cpu = load_clip_encoder(whisper="tiny", beats="tiny").encode(clips)
    on_gpu = load_clip_encoder(whisper="tiny", beats="tiny", device="cuda").encode(clips)
    for expected, clip in zip(on_cpu, on_gpu, strict=True):
        for stream, frames in clip.items():
            assert frames.device.type == "cuda"
            torch.testing.assert_close(frames.cpu(), expected[stream], atol=2e-3, rtol=0)
