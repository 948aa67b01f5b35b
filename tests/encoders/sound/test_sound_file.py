"""Covers encoders.sound.containers, encoders.sound.extent."""

import hashlib
import io
import json
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from pyarrow.fs import LocalFileSystem
from torchaudio.functional import resample

from encoders.audio import (
    CLIP_SAMPLES,
    JOIN_SILENCE_SAMPLES,
    MIN_CLIP_SAMPLES,
    SAMPLE_RATE_HZ,
    AbsentError,
    AudioError,
    Segment,
    clip_seconds,
)
from encoders.sound.clips import _decode, load_clip
from encoders.sound.sound_file import measure_seconds, open_sound, probe_format, probe_seconds
from tests import SHARED
from tests.encoders.sound.builders import KINDS, encode, recorded, rejected, sweep, wav, write


def decode(path: str) -> torch.Tensor:
    return torch.from_numpy(soundfile.read(path, dtype="float32", always_2d=True)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_clip_is_the_decoded_recording(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"a.{kind}", sweep(2))
    clip = load_clip([Segment(path)])
    assert clip.dtype == torch.float32
    torch.testing.assert_close(clip, decode(path)[:, 0], atol=1e-6, rtol=0)
    assert probe_seconds(path) == 2.0


@pytest.mark.parametrize("kind", KINDS)
def test_segment_is_a_slice_of_the_full_decode(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"a.{kind}", sweep(20))
    clip = load_clip([Segment(path, 12.34, 3.5)])
    start = round(12.34 * SAMPLE_RATE_HZ)
    torch.testing.assert_close(clip, decode(path)[start : start + 56_000, 0], atol=1e-6, rtol=0)


def all_segments_differ_at_most(data: bytes, *, by: float, step: float = 0.1) -> None:
    """Check segments of 0.1 s from everywhere in a recording against the full decode."""
    whole, rate_hz = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    for start in np.arange(step, len(whole) / rate_hz - 0.1, step):
        segment = Segment("a", float(start), 0.1)
        with open_sound("a", lambda _: io.BytesIO(data)) as (sound, file, extent):
            frames = np.concatenate([*_decode(sound, file, extent, segment, rate_hz)])
        at = round(start * rate_hz)
        np.testing.assert_allclose(frames, whole[at : at + len(frames)], atol=by, rtol=0, err_msg=f"{start} s")


@pytest.mark.parametrize(("mode", "rate_hz"), [("VARIABLE", 16_000), ("VARIABLE", 44_100), ("CONSTANT", 22_050)])
def test_mp3_segment_whose_first_frame_lies_in_those_before_it_is_a_slice(mode: str, rate_hz: int) -> None:
    wave = sweep(8)
    wave[16_000:64_000] *= 0.02  # quiet frames leave room for the loud ones after them
    data = encode(wave, rate_hz, "mp3", bitrate_mode=mode, compression_level=0.99)
    all_segments_differ_at_most(data, by=2e-7)


def test_vorbis_segment_in_the_last_page_is_a_slice() -> None:
    all_segments_differ_at_most(encode(sweep(20.03), SAMPLE_RATE_HZ, "ogg"), by=0)


@pytest.mark.parametrize("moved", [-300, 100_000])
def test_vorbis_segment_of_a_recording_cut_without_decoding_is_a_slice(moved: int) -> None:
    data = with_granules_moved(encode(sweep(8.02), SAMPLE_RATE_HZ, "ogg"), moved)
    all_segments_differ_at_most(data, by=0)
    doubts: list[AudioError] = []
    load_clip([Segment("a")], open_file=lambda _: io.BytesIO(data), on_doubt=doubts.append)
    assert len(doubts) == (moved < 0)


@pytest.mark.parametrize("subtype", ["GSM610", "IMA_ADPCM", "MS_ADPCM", "ULAW", "G721_32", "NMS_ADPCM_32"])
def test_wav_segment_is_a_slice_whether_its_codec_can_seek_or_not(subtype: str) -> None:
    soundfile.write(buffer := io.BytesIO(), sweep(3), SAMPLE_RATE_HZ, format="WAV", subtype=subtype)
    all_segments_differ_at_most(buffer.getvalue(), by=0)


@pytest.mark.parametrize("kind", KINDS)
def test_storage_other_than_local_files_gives_the_same_samples(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"a.{kind}", sweep(3))
    segments = [Segment(path), Segment(path, 1.5, 1)]
    clip = load_clip(segments, open_file=LocalFileSystem().open_input_file)
    assert torch.equal(clip, load_clip(segments))
    assert probe_seconds(path, open_file=LocalFileSystem().open_input_file) == 3.0
    with pytest.raises(AudioError, match="open: no such file"):
        load_clip([Segment(f"{path}x")], open_file=LocalFileSystem().open_input_file)


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled_and_only_what_is_needed_is_decoded(tmp_path: Path, rate_hz: int) -> None:
    path = write(tmp_path / "a.wav", sweep(32, rate_hz), rate_hz)
    whole = resample(decode(path)[:, 0], rate_hz, SAMPLE_RATE_HZ)[:CLIP_SAMPLES]
    torch.testing.assert_close(load_clip([Segment(path)]), whole, atol=1e-6, rtol=0)


def test_channels_first_or_mean(tmp_path: Path) -> None:
    both = np.stack([sweep(1), 0.5 * sweep(1)[::-1]], axis=1)
    path = write(tmp_path / "a.wav", both)
    stereo = decode(path)
    assert torch.equal(load_clip([Segment(path)]), stereo[:, 0])
    torch.testing.assert_close(load_clip([Segment(path)], channel="mean"), stereo.mean(1))


def test_segments_are_joined_with_silence_padded_to_one_second_and_cut_at_thirty(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", sweep(40))
    wave = decode(path)[:, 0]
    short = load_clip([Segment(path, 1, 0.25), Segment(path, 5, 0.25)])
    assert len(short) == MIN_CLIP_SAMPLES
    assert torch.equal(short[:4000], wave[16_000:20_000])
    assert not short[4000 : 4000 + JOIN_SILENCE_SAMPLES].any()
    assert torch.equal(short[5600:9600], wave[80_000:84_000])
    assert not short[9600:].any()
    long = load_clip([Segment(path, 0, 20), Segment(path, 20, 15), Segment("never opened")])
    assert len(long) == CLIP_SAMPLES
    assert torch.equal(long[321_600:], wave[320_000 : 320_000 + CLIP_SAMPLES - 321_600])
    assert long.untyped_storage().nbytes() == long.numel() * 4
    assert clip_seconds([0.25, 0.25]) == 1.0
    assert clip_seconds([2.0, 3.0]) == pytest.approx(5.1)
    assert clip_seconds([20.0, 15.0]) == 30.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_is_rejected_wherever_it_is_cut(tmp_path: Path, kind: str) -> None:
    path = Path(write(tmp_path / f"a.{kind}", sweep(3)))
    data = path.read_bytes()
    for part in (0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1 - 1 / len(data)):
        path.write_bytes(data[: int(part * len(data))])
        assert rejected(str(path)).stage in ("length", "decode")


@pytest.mark.parametrize("kind", ["flac", "ogg", "opus", "mp3"])
def test_a_file_with_a_hole_is_rejected(tmp_path: Path, kind: str) -> None:
    path = Path(write(tmp_path / f"a.{kind}", sweep(4)))
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    data[half : half + 1000] = b"\xaa" * 1000
    path.write_bytes(data)
    assert rejected(str(path)).stage in ("length", "decode")


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_files_appended_to_each_other_are_rejected(tmp_path: Path, first: str, second: str) -> None:
    paths = [Path(write(tmp_path / f"{place}.{kind}", sweep(1.5))) for place, kind in enumerate((first, second))]
    paths[0].write_bytes(paths[0].read_bytes() + paths[1].read_bytes())
    assert rejected(str(paths[0])).stage in ("length", "decode")


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return a copy with one place damaged: bits flipped, a cut, bytes put in, taken out or zeroed."""
    copy, place = bytearray(data), rng.randrange(len(data))
    kind = rng.choice(["flip", "flips", "cut", "insert", "remove", "zero"])
    if kind in ("flip", "flips"):
        for _ in range(1 if kind == "flip" else 8):
            copy[place] ^= 1 << rng.randrange(8)
            place = rng.randrange(len(data))
    elif kind == "cut":
        del copy[place:]
    elif kind == "insert":
        copy[place:place] = rng.randbytes(rng.randint(8, 400))
    elif kind == "remove":
        del copy[place : place + rng.randint(1, 400)]
    else:
        copy[place : place + 400] = bytes(len(copy[place : place + 400]))
    return bytes(copy)


@pytest.mark.parametrize("kind", KINDS)
def test_random_damage_is_rejected_or_leaves_the_clip_its_length(tmp_path: Path, kind: str) -> None:
    path = Path(write(tmp_path / f"a.{kind}", sweep(2)))
    data, clip = path.read_bytes(), load_clip([Segment(str(path))])
    rng, rejects = random.Random(f"damage to {kind}"), 0
    for _ in range(80):
        path.write_bytes(damaged(data, rng))
        try:
            heard = load_clip([Segment(str(path))])
        except AudioError:
            rejects += 1
            continue
        assert heard.shape == clip.shape
        if kind not in ("wav", "mp3"):  # the others have checksums
            torch.testing.assert_close(heard, clip, atol=1e-6, rtol=0)
    assert rejects >= 20


@pytest.mark.parametrize(("kind", "header"), [("wav", range(44)), ("flac", range(42)), ("ogg", range(58))])
def test_no_flipped_bit_of_a_header_changes_what_is_heard(tmp_path: Path, kind: str, header: range) -> None:
    path = Path(write(tmp_path / f"a.{kind}", sweep(1.5)))
    data, clip = path.read_bytes(), load_clip([Segment(str(path))])
    for place in header:
        for bit in range(8):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            try:
                assert torch.equal(load_clip([Segment(str(path))]), clip), f"byte {place}, bit {bit}"
            except AudioError:
                continue


def replaced(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


def without_ogg_page(ogg: bytes, number: int) -> bytes:
    pages = ogg.split(b"OggS")[1:]
    del pages[number]
    return b"".join(b"OggS" + page for page in pages)


def rewritten_pages(ogg: bytes, change: Callable[[bytearray], None]) -> bytes:
    """Return an Ogg file with all its pages changed, and with checksums to match."""
    pages = [bytearray(b"OggS" + page) for page in ogg.split(b"OggS")[1:]]
    for page in pages:
        change(page)
        page[22:26] = bytes(4)
        crc = 0
        for byte in page:
            crc ^= byte << 24
            for _ in range(8):
                crc = (crc << 1 ^ (0x104C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
        page[22:26] = crc.to_bytes(4, "little")
    return b"".join(pages)


def with_granules_moved(ogg: bytes, samples: int) -> bytes:
    def move(page: bytearray) -> None:
        place = int.from_bytes(page[6:14], "little")
        if place:  # 0 in headers
            page[6:14] = (place + samples).to_bytes(8, "little")

    return rewritten_pages(ogg, move)


def with_fewer_frames(mp3: bytes) -> bytes:
    place = mp3.index(b"Xing") + 8
    return replaced(mp3, place, (int.from_bytes(mp3[place : place + 4]) - 3).to_bytes(4))


def aiff() -> bytes:
    soundfile.write(buffer := io.BytesIO(), sweep(1), SAMPLE_RATE_HZ, format="AIFF")
    return buffer.getvalue()


MALFORMED = {
    "nothing": (lambda: b"", "decode"),
    "a text": (lambda: b"hello, no sound here", "decode"),
    "a web page": (lambda: b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "decode"),
    "random bytes": (lambda: np.random.default_rng(0).bytes(50_000), "format"),
    "all byte values": (lambda: bytes(range(256)) * 20, "format"),
    "zeros": (lambda: bytes(10_000), "format"),
    "a WAV's header alone": (lambda: wav()[:44], "length"),
    "no data chunk": (lambda: wav()[:36], "decode"),
    "no format chunk": (lambda: wav()[:12] + wav()[36:], "decode"),
    "no channels": (lambda: wav(channels=0), "decode"),
    "64 channels": (lambda: wav(channels=64), "format"),
    "1,024 channels": (lambda: wav(channels=1_024), "format"),
    "0 Hz": (lambda: wav(rate_hz=0), "decode"),
    "1 Hz": (lambda: wav(rate_hz=1), "rate"),
    "44,101 Hz": (lambda: wav(rate_hz=44_101), "rate"),
    "10 MHz": (lambda: wav(rate_hz=10_000_000), "rate"),
    "another rate than its bytes per second say": (lambda: wav(rate_hz=8_000, byte_rate=32_000), "length"),
    "no bytes of data": (lambda: wav(data_bytes=0), "length"),
    "more bytes of data than there are": (lambda: wav(data_bytes=64_002), "length"),
    "fewer bytes of data than there are": (lambda: wav(data_bytes=60_000), "length"),
    "an AIFF, whose damage would go unseen": (aiff, "format"),
    "a FLAC of more samples than there are": (lambda: replaced(recorded("flac"), 24, b"\x7e"), "decode"),
    "a FLAC of fewer samples than there are": (lambda: replaced(recorded("flac"), 24, b"\x7c"), "length"),
    "a FLAC of another rate than its frames'": (lambda: replaced(recorded("flac"), 18, b"\x01\xf4"), "length"),
    "Ogg pages without the first with sound": (lambda: without_ogg_page(recorded("ogg"), 2), "length"),
    "Ogg pages behind which something stands": (lambda: recorded("ogg") + bytes(10), "length"),
    "Opus pages without the first with sound": (lambda: without_ogg_page(recorded("opus"), 2), "decode"),
    "an MP3 of fewer frames than there are": (lambda: with_fewer_frames(recorded("mp3")), "length"),
    "an MP3 whose first frame is damaged": (lambda: replaced(recorded("mp3"), 8, b"\xff"), "length"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_file_is_rejected_in_the_same_words_each_time(tmp_path: Path, name: str) -> None:
    make, stage = MALFORMED[name]
    path = tmp_path / "a.wav"
    path.write_bytes(make())
    error = rejected(str(path))
    assert error.stage == stage
    assert str(error) == str(rejected(str(path)))


def mp3_in_a_wav() -> bytes:
    mp3 = recorded("mp3")
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, SAMPLE_RATE_HZ, 8_000, 1, 0, 12, 1, 2, 288, 1, 1393)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"fact\4\0\0\0" + struct.pack("<I", 32_000)
    chunks += b"data" + struct.pack("<I", len(mp3)) + mp3 + bytes(len(mp3) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


OTHERS = {
    "MPEG layer II": lambda: (b"\xff\xfd\x80\0" + bytes(413)) * 50,
    "MPEG layer III in a WAV": mp3_in_a_wav,
    "AIFF": aiff,
    "this format (MP4)": lambda: b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(1_000),
    "this format (WebM)": lambda: b"\x1aE\xdf\xa3\x9fB\x86\x81\1" + bytes(1_000),
    "this format (Ogg FLAC)": lambda: recorded("ogg").replace(b"\x01vorbis", b"\x7fFLAC\1\0", 1),
    "this format (shorten)": lambda: (
        b"NIST_1A\n   1024\nsample_coding -s26 pcm,embedded-shorten-v2.00\nend_head\n".ljust(2_000)
    ),
    "this format (AAC in a WAV)": lambda: wav().replace(b"fmt \x10\0\0\0\1\0", b"fmt \x10\0\0\0\xff\0"),
    "this format (AVI)": lambda: wav().replace(b"WAVE", b"AVI "),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_named_with_a_command_that_converts_them(tmp_path: Path, name: str) -> None:
    path = tmp_path / "my sound.flac"
    path.write_bytes(OTHERS[name]())
    error = rejected(str(path))
    assert error.stage == "format"
    assert error.reason == (
        f"{name.partition(' (')[0]} is not read; WAV, FLAC, Ogg Vorbis, Ogg Opus and MP3 are. "
        "To convert it: ffmpeg -i 'my sound.flac' 'my sound.wav'"
    )
    assert "ffmpeg -i b.m4a b.flac" in str(error_of_member(path, "s3://bucket/a.tar!x/b.m4a?region=y"))


def error_of_member(path: Path, name: str) -> AudioError:
    with pytest.raises(AudioError) as caught:
        load_clip([Segment(name)], open_file=lambda _: path.open("rb"))
    return caught.value


@pytest.mark.parametrize("place", ["in front", "between", "behind"])
@pytest.mark.parametrize("extended", [True, False])
def test_wav_with_chunks_of_odd_sizes_is_heard(tmp_path: Path, place: str, extended: bool) -> None:
    plain = wav()
    form, data = plain[12:36], plain[36:]
    if extended:
        guid = b"\1\0\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
        form = b"fmt \x28\0\0\0\xfe\xff" + form[10:] + struct.pack("<HHI", 22, 16, 4) + guid
    odd = b"LIST" + struct.pack("<I", 15) + b"INFOISFT\3\0\0\0abc" + b"\0"
    chunks = {"in front": odd + form + data, "between": form + odd + data, "behind": form + data + odd}[place]
    path = tmp_path / "a.wav"
    path.write_bytes(plain)
    clip = load_clip([Segment(str(path))])
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    assert torch.equal(load_clip([Segment(str(path))]), clip)
    path.write_bytes(path.read_bytes()[:40_000])
    assert "cut off" in rejected(str(path)).reason


@pytest.mark.parametrize("kind", ["ogg", "opus"])
def test_ogg_without_its_end_mark_is_heard_and_reported(tmp_path: Path, kind: str) -> None:
    path = Path(write(tmp_path / f"a.{kind}", sweep(4.01)))
    whole, clip = path.read_bytes(), load_clip([Segment(str(path))])
    doubts: list[AudioError] = []

    def unmark(page: bytearray) -> None:
        page[5] &= ~4

    path.write_bytes(rewritten_pages(whole, unmark))
    assert torch.equal(load_clip([Segment(str(path))], on_doubt=doubts.append), clip)
    assert [str(doubt) for doubt in doubts] == [f"{path}: length: its last page is not marked as the end"]
    assert probe_seconds(str(path)) == 4.01
    path.write_bytes(without_ogg_page(whole, -1))
    cut = load_clip([Segment(str(path))], on_doubt=doubts.append)
    assert len(cut) < len(clip) and len(doubts) == 2
    torch.testing.assert_close(cut, clip[: len(cut)], atol=1e-6, rtol=0)
    load_clip([Segment(str(path), 0.5, 1)], on_doubt=doubts.append)
    assert len(doubts) == 2  # that end is the manifest's

    def reject(doubt: AudioError) -> None:
        raise doubt

    with pytest.raises(AudioError, match="not marked as the end"):
        load_clip([Segment(str(path))], on_doubt=reject)


def test_segment_of_an_ogg_without_its_first_sound_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.ogg"
    path.write_bytes(without_ogg_page(encode(sweep(10), SAMPLE_RATE_HZ, "ogg"), 2))
    assert rejected(str(path), start=4.0, seconds=1.0).stage == "length"


def test_rejection_survives_the_way_between_processes(tmp_path: Path) -> None:
    error = rejected(str(tmp_path / "none.wav"))
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), vars(copy), str(copy)) == (AbsentError, vars(error), str(error))


def test_the_heard_channel_is_a_choice(tmp_path: Path) -> None:
    waves = np.stack([sweep(2), 0.5 * sweep(2)[::-1], 0 * sweep(2)], axis=1)
    path = str(tmp_path / "a.wav")
    soundfile.write(path, waves, SAMPLE_RATE_HZ, subtype="FLOAT")
    for channel, column in (("first", 0), ("0", 0), ("1", 1), ("2", 2)):
        wave = load_clip([Segment(path)], channel=channel)
        torch.testing.assert_close(wave, torch.from_numpy(waves[:, column]).float())
    with pytest.raises(AudioError, match="format: has 3 channels, of which none is number 3"):
        load_clip([Segment(path)], channel="3")


@pytest.mark.parametrize(("level", "is_told"), [(0.5, True), (0.01, True), (1e-5, False), (0.0, False)])
def test_a_silent_channel_beside_sound_is_told(tmp_path: Path, level: float, is_told: bool) -> None:
    waves = np.stack([0 * sweep(2), level * sweep(2)], axis=1)
    path = str(tmp_path / "a.wav")
    soundfile.write(path, waves, SAMPLE_RATE_HZ, subtype="FLOAT")
    told: list[AudioError] = []
    load_clip([Segment(path)], on_doubt=told.append)
    assert [error.reason for error in told] == ["the heard channel is silent, channel 1 is not"] * is_told
    told.clear()
    load_clip([Segment(path)], channel="1", on_doubt=told.append)
    load_clip([Segment(path)], channel="mean", on_doubt=told.append)
    assert not told


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_numbers_are_rejected(tmp_path: Path, value: float) -> None:
    wave = sweep(2).astype(np.float32)
    wave[24_000] = value
    soundfile.write(tmp_path / "a.wav", wave, SAMPLE_RATE_HZ, subtype="FLOAT")
    error = rejected(str(tmp_path / "a.wav"))
    assert (error.stage, error.reason) == ("samples", "not a finite number at 1.5 s")


def test_segment_outside_its_recording_is_rejected_but_rounding_is_not(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", sweep(4))
    assert "lasts 4 s, asked for 3 s to 5 s" in str(rejected(path, start=3, seconds=2))
    assert rejected(path, start=4).stage == "length"
    assert len(load_clip([Segment(path, 1, 3.04)])) == 48_000


@pytest.mark.parametrize(("start", "seconds"), [(-1.0, 1.0), (float("nan"), 1.0), (0.0, 0.0), (0.0, float("inf"))])
def test_impossible_segments_are_errors_of_the_manifest(start: float, seconds: float) -> None:
    with pytest.raises(ValueError, match=r"a\.wav"):
        Segment("a.wav", start, seconds)
    with pytest.raises(ValueError, match="at least one segment"):
        load_clip([])


def stream_header(flac: bytes) -> bytes:
    """Return the file with `total_samples` 0, as an encoder writing to a pipe leaves it."""
    head = bytearray(flac)
    head[21] &= 0xF0
    head[22:26] = bytes(4)
    return bytes(head)


def test_streamed_flac_of_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.flac", sweep(5)))
    wave = decode(str(path))[:, 0]
    path.write_bytes(stream_header(path.read_bytes()))
    assert torch.equal(load_clip([Segment(str(path))]), wave)
    assert torch.equal(load_clip([Segment(str(path), 2, 2)]), wave[32_000:64_000])
    assert rejected(str(path), start=3, seconds=4).stage == "decode"
    assert measure_seconds(str(path)) == len(load_clip([Segment(str(path))])) / SAMPLE_RATE_HZ
    with pytest.raises(AudioError, match="does not state one"):
        probe_seconds(str(path))


def test_streamed_wav_is_read_and_an_inflated_one_is_rejected(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.wav", sweep(2)))
    wave = decode(str(path))[:, 0]
    data = bytearray(path.read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = b"\xff" * 4
    path.write_bytes(data)
    assert torch.equal(load_clip([Segment(str(path))]), wave)
    data[place : place + 4] = (1_000_000).to_bytes(4, "little")
    path.write_bytes(data)
    assert "1000000 bytes of sound stated, 64000 there" in str(rejected(str(path)))


def test_broken_storage_is_not_taken_for_a_broken_recording(tmp_path: Path) -> None:
    class Flaky(io.BytesIO):
        """Fails from the second read on."""

        reads = 0

        def read(self, size: int | None = -1) -> bytes:
            self.reads += 1
            if self.reads > 1:
                raise OSError("connection lost")
            return super().read(size)

    for kind in ("ogg", "mp3", "flac"):
        data = Path(write(tmp_path / f"a.{kind}", sweep(40))).read_bytes()
        with pytest.raises(OSError, match="connection lost"):
            load_clip([Segment("s3://bucket/a")], open_file=lambda _, data=data: Flaky(data))
    with pytest.raises(OSError, match="connection lost"):
        load_clip([Segment("s3://bucket/a")], open_file=lambda _: Flaky(stream_header(data)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_takes_few_reads_of_storage(tmp_path: Path, kind: str) -> None:
    class Counted(io.BytesIO):
        reads = 0

        def read(self, size: int | None = -1) -> bytes:
            Counted.reads += 1
            return super().read(size)

    data = Path(write(tmp_path / f"a.{kind}", sweep(20))).read_bytes()
    load_clip([Segment("s3://bucket/a")], open_file=lambda _: Counted(data))
    assert Counted.reads <= 2 + len(data) // 100_000


@pytest.mark.weights
def test_clips_are_those_of_the_official_dataset(tmp_path: Path) -> None:
    folder = SHARED / "golden" / "dataset"
    expected = json.loads((folder / "expected.json").read_text())["cases"]
    checked = 0
    for case in json.loads((folder / "inputs.json").read_text())["cases"]:
        if any(file["sr"] != SAMPLE_RATE_HZ for file in case["files"]):
            continue  # the official code does not resample
        segments = []
        for number, file in enumerate(case["files"]):
            index = np.arange(file["n"])[:, None] * file["a"] + file["c"] + 31 * np.arange(file["channels"])
            path = tmp_path / f"{case['name']}{number}.wav"
            soundfile.write(path, (index % file["mod"] - file["mod"] // 2).astype(np.int16), SAMPLE_RATE_HZ)
            segments.append(Segment(str(path)))
        clip = load_clip(segments).numpy().astype("<f4")
        assert hashlib.sha256(clip.tobytes()).hexdigest() == expected[case["name"]]["sha256_float32"], case["name"]
        checked += 1
    assert checked == 12


@pytest.mark.weights
def test_real_recordings_of_all_formats_load() -> None:
    for line in (SHARED / "data" / "labels.jsonl").read_text().splitlines()[::5]:
        label = json.loads(line)
        path = SHARED / "data" / label["path"]
        clip = load_clip([Segment(str(path))])
        assert len(clip) == pytest.approx(clip_seconds([label["duration"]]) * SAMPLE_RATE_HZ, abs=2)


@pytest.mark.parametrize("kind", KINDS)
def test_channels_and_rate_are_those_of_the_header(tmp_path: Path, kind: str) -> None:
    wave = np.stack([sweep(1, 48_000), sweep(1, 48_000)], axis=1)
    assert probe_format(write(tmp_path / f"a.{kind}", wave, 48_000)) == (2, 48_000)
