import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.audio import SAMPLE_RATE_HZ, AudioError, Segment
from encoders.sound.clips import load_clip
from encoders.sound.sound_file import probe_seconds
from tests.encoders.sound.builders import encode, recorded, rejected, sweep, without_first_frame


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_mp3_without_a_xing_header_is_heard_to_its_end(tmp_path: Path, mode: str) -> None:
    wave = sweep(8)
    wave[16_000:] *= 0.001  # the first frames are large, so that a guess from them is far too short
    whole = encode(wave, SAMPLE_RATE_HZ, "mp3", bitrate_mode=mode)
    tag = b"ID3\3\0\0\0\0\x4e\x10" + bytes(10_000)  # libsndfile takes it for sound
    path = tmp_path / "a.mp3"
    path.write_bytes(whole)
    expected = load_clip([Segment(str(path))])
    path.write_bytes(tag + without_first_frame(whole))
    assert 8 <= probe_seconds(str(path)) < 8.2  # with what the encoder appends
    heard = load_clip([Segment(str(path))])
    assert len(heard) == round(probe_seconds(str(path)) * SAMPLE_RATE_HZ)
    # The delay that a Xing header states is cut off, and libsndfile's 529 samples more.
    delay = 576 + 529
    torch.testing.assert_close(heard[delay : delay + len(expected)], expected, atol=2e-7, rtol=0)
    all_heard = load_clip([Segment(str(path), 6.5, 1.0)])
    torch.testing.assert_close(all_heard, heard[104_000:120_000], atol=2e-7, rtol=0)
    path.write_bytes(tag + without_first_frame(whole)[:-1])
    assert "no whole MPEG layer III frame" in rejected(str(path)).reason


@pytest.mark.parametrize("zeros", [1, 70_000])
@pytest.mark.parametrize("has_xing", [True, False])
def test_mp3_behind_zeros_is_heard(tmp_path: Path, zeros: int, has_xing: bool) -> None:
    data = recorded("mp3") if has_xing else without_first_frame(recorded("mp3"))
    path = tmp_path / "a.mp3"
    path.write_bytes(data)
    clip, seconds = load_clip([Segment(str(path))]), probe_seconds(str(path))
    tag = b"ID3\3\0\0\0\0\0\x64" + bytes(100)
    for front in (bytes(zeros), tag + bytes(zeros), bytes(zeros) + tag):
        path.write_bytes(front + data)
        assert torch.equal(load_clip([Segment(str(path))]), clip)
        assert probe_seconds(str(path)) == seconds


APE = b"APETAGEX" + struct.pack("<IIII", 2_000, 52, 1, 0x8000_0000) + bytes(8)
TAGS = {
    "ID3v1": b"TAG" + bytes(125),
    "ID3v2": b"ID3\3\0\0\0\0\0\x64" + bytes(100),
    "APEv2": b"APETAGEX"
    + struct.pack("<IIII", 2_000, 52, 1, 0xA000_0000)
    + bytes(8)
    + b"\4\0\0\0\0\0\0\0Title\0abcd  "
    + APE,
    "APEv1": b"\4\0\0\0\0\0\0\0Title\0abcd  " + APE,
    "Lyrics3": b"LYRICSBEGIN" + b"IND0000211" + b"000021LYRICS200",
    "zeros": bytes(1_000),
    "zeros and a tag": bytes(100) + b"TAG" + bytes(125),
    "two tags": b"LYRICSBEGIN" + b"abcLYRICSEND" + b"TAG" + bytes(125),
}


@pytest.mark.parametrize("has_xing", [True, False])
@pytest.mark.parametrize("name", TAGS)
def test_tag_behind_an_mp3_is_not_heard_and_hides_no_second_one(tmp_path: Path, name: str, has_xing: bool) -> None:
    path = tmp_path / "a.mp3"
    mp3 = recorded("mp3") if has_xing else without_first_frame(recorded("mp3"))
    path.write_bytes(mp3)
    clip = load_clip([Segment(str(path))])
    path.write_bytes(mp3 + TAGS[name])
    assert torch.equal(load_clip([Segment(str(path))]), clip)
    path.write_bytes(mp3 + TAGS[name] + recorded("mp3"))
    assert rejected(str(path), start=0.5, seconds=0.5).stage == "length"
    with pytest.raises(AudioError, match="length: "):
        probe_seconds(str(path))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate_hz", [16_000, 22_050])
def test_joined_mp3s_are_rejected_unless_they_are_one_without_a_header(
    tmp_path: Path, rate_hz: int, channels: int
) -> None:
    path = tmp_path / "a.mp3"
    first, second = recorded("mp3"), encode(np.stack([sweep(2)] * channels, axis=1), rate_hz, "mp3")
    for data in (first + second, without_first_frame(first) + without_first_frame(second)):
        path.write_bytes(data)
        if (data.startswith(first)) or (rate_hz, channels) != (SAMPLE_RATE_HZ, 1):
            reason = rejected(str(path), start=0.5, seconds=0.5).reason
            turn = f"turns from 16000 Hz mono to {rate_hz} Hz {('', 'mono', 'stereo')[channels]} after 2."
            assert reason.startswith(turn if (rate_hz, channels) != (SAMPLE_RATE_HZ, 1) else "several files in one")
            with pytest.raises(AudioError, match="length: "):
                probe_seconds(str(path))
        else:
            assert len(load_clip([Segment(str(path))])) == round(probe_seconds(str(path)) * SAMPLE_RATE_HZ) > 64_000


def test_mp3_whose_header_cuts_off_all_it_holds_has_no_length(tmp_path: Path) -> None:
    data = bytearray(encode(sweep(0.1), SAMPLE_RATE_HZ, "mp3"))
    cuts = data.index(b"LAME") + 21  # 12 bits each: samples at the start, samples at the end
    data[cuts : cuts + 3] = (576 << 12 | 4_000).to_bytes(3)
    path = tmp_path / "a.mp3"
    path.write_bytes(data)
    assert rejected(str(path)).reason == "its header cuts off more samples at its ends than it holds"
    with pytest.raises(AudioError, match="length: its header cuts off"):
        probe_seconds(str(path))


def test_mp3_of_a_tag_and_less_than_a_frame_is_refused_for_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    path.write_bytes(b"ID3\3\0\0\0\0\0\x64" + bytes(100) + encode(sweep(1), SAMPLE_RATE_HZ, "mp3")[:50])
    assert rejected(str(path)).reason == "it begins like an MP3 and holds no whole frame"
