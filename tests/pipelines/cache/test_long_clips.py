"""Clips over 30 s in caches: planned, encoded in pieces, told of by the recipe, and kept apart from others.

Covers pipelines.cache.recipe, pipelines.extraction.worker.
"""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from encoders.audio import Segment
from encoders.clip_encoder import load_clip_encoder
from encoders.features import audio_frames, speech_frames
from encoders.sound.clips import load_clip
from pipelines.cache.bounds import check_index
from pipelines.cache.encoder_recipe import recipe_of
from pipelines.cache.plan import predict_nbytes
from pipelines.cache.reader import FeatureCache
from pipelines.cache.recipe import Recipe
from pipelines.cli import main
from pipelines.errors import UserError
from pipelines.extraction.worker import CHUNK_CLIPS, _chunks
from pipelines.manifest.corpora.table import TableConfig, prepare_table
from pipelines.manifest.tables import Clip
from tests.pipelines.builders import fill, make_worker
from tests.toy import write_tones

SECONDS = [2.35, 30.0, 75.0, 31.0, 95.5]


def prepared(folder, **keys) -> str:
    names = write_tones(folder / "audio", SECONDS)
    rows = [{"path": name, "text": "high", "task": "audiocaption", "split": "train"} for name in names]
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    audio_root, out = str(folder / "audio"), str(folder / "m")
    prepare_table(TableConfig(table=str(folder / "table.jsonl"), audio_root=audio_root, out=out, **keys))
    return out


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> str:
    return prepared(tmp_path_factory.mktemp("long"), max_clip_seconds=90.0)


@pytest.fixture(scope="module", params=["all", "heard"])
def cache(manifest, tmp_path_factory, request) -> FeatureCache:
    folder = tmp_path_factory.mktemp(request.param) / "c"
    fill(folder, manifest, make_worker(folder, speech_frames=request.param, max_clip_seconds=90.0))
    return FeatureCache(str(folder))


def recipe_with(**keys) -> Recipe:
    encoder = load_clip_encoder(whisper="tiny", beats="tiny")
    return replace(recipe_of(encoder, codec="float16", precision="float32"), **keys)


def test_the_recipe_tells_of_longer_clips_alone():
    usual = recipe_with()
    assert "max_clip_seconds" not in usual.fields
    assert usual.digest.startswith("21d3c5c6d94f")  # of every cache that these encoders wrote before
    assert Recipe.from_fields(usual.fields) == usual
    longer = recipe_with(max_clip_seconds=180.0)
    assert longer.digest != usual.digest and Recipe.from_fields(longer.fields) == longer
    with pytest.raises(UserError, match="max_clip_seconds"):
        longer.require_same(usual, here="the job", there="the cache")


def test_prepare_keeps_what_is_asked_for_and_counts_the_rest(tmp_path, manifest, capsys):
    kept = sorted(pq.read_table(f"{manifest}/clips.parquet")["seconds"].to_pylist())
    assert kept == sorted(min(seconds, 90.0) for seconds in SECONDS)
    prepared(tmp_path / "short")
    assert "3 clips longer than 30 s: 0.031 h are not heard" in capsys.readouterr().out
    prepared(tmp_path / "long", max_clip_seconds=90.0)
    assert "1 clip longer than 90 s: 0.002 h are not heard" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"max_clip_seconds.*29"):
        prepared(tmp_path / "shorter", max_clip_seconds=29.0)


def test_a_cache_holds_the_pieces_frames_joined(manifest, cache):
    seconds = cache.rows()["seconds"].to_numpy()
    assert sorted(seconds) == sorted(min(length, 90.0) for length in SECONDS)
    stored = cache.recipe.speech_frames
    assert cache.rows()["speech_frames"].to_pylist() == speech_frames(seconds, stored).tolist()
    assert cache.rows()["audio_frames"].to_pylist() == audio_frames(seconds).tolist()
    wave = load_clip([Segment(f"{manifest.removesuffix('/m')}/audio/tone-2.wav")], max_clip_seconds=90)
    (streams,) = load_clip_encoder(whisper="tiny", beats="tiny").encode([wave])
    place = int(np.flatnonzero(seconds == 75.0)[0])
    for name, frames in cache.read(place).items():
        torch.testing.assert_close(frames, streams[name], atol=2e-2, rtol=0)


def test_clips_of_thirty_seconds_are_the_same_in_either_cache(tmp_path, manifest, cache):
    usual = tmp_path / "usual"
    fill(usual, manifest, make_worker(usual, speech_frames=cache.recipe.speech_frames))
    other = FeatureCache(str(usual))
    short = [
        id_
        for id_, length in zip(*map(cache.rows().column, ("clip_id", "seconds")), strict=True)
        if length.as_py() <= 30
    ]
    assert len(short) == 2
    for clip_id in (id_.as_py() for id_ in short):
        for name, frames in cache[clip_id].streams.items():
            torch.testing.assert_close(other[clip_id].streams[name], frames, atol=1e-2, rtol=0)
    assert max(other.rows()["seconds"].to_pylist()) == 30.0


def test_bytes_are_forecast_within_the_tars_own(manifest, cache):
    seconds = cache.rows()["seconds"].to_numpy()
    forecast = predict_nbytes(np.minimum(seconds + 100 * (seconds == 90), 500), cache.recipe, "float16")
    stored = [sum(row[f"{name}_nbytes"] for name in ("speech", "audio")) for row in cache.rows().to_pylist()]
    assert (np.abs(forecast - stored) <= 4_096).all()


def test_an_index_with_longer_clips_than_the_recipe_says_is_refused(cache):
    rows = cache.num_clips
    shards, ends = cache.rows()["shard"].combine_chunks(), np.full(rows, 10**12)
    keys = {"shards": shards, "ends_N": ends, "place": lambda _: "the index"}
    check_index(cache.rows(), cache.recipe, **keys)
    with pytest.raises(UserError, match=r"seconds is .*; it must be from 0 to 60$"):
        check_index(cache.rows(), replace(cache.recipe, max_clip_seconds=60.0), **keys)


def test_a_chunk_holds_as_much_sound_whatever_the_clips_lengths():
    keys = {"corpus": "c", "split": "train", "root": "/", "segments": (), "seconds": 30.0}
    clips = [Clip(clip_id=str(number), **keys) for number in range(70)]
    assert [len(chunk) for chunk in _chunks(clips, 30.0)] == [CHUNK_CLIPS, CHUNK_CLIPS, 6]
    long = [replace(clip, seconds=seconds) for clip, seconds in zip(clips, [180.0, None, 5.0] * 20, strict=False)]
    chunks = list(_chunks(long, 180.0))
    assert [clip for chunk in chunks for clip in chunk] == long
    assert {len(chunk) for chunk in chunks[:-1]} == {7}
    assert [len(chunk) for chunk in _chunks(long[:2], 7_200.0)] == [1, 1]
    assert [len(chunk) for chunk in _chunks([replace(c, seconds=3_600.0) for c in clips[:3]], 7_200.0)] == [1, 1, 1]


def test_a_job_with_another_longest_clip_refuses_the_cache(manifest, cache, capsys):
    words = ["extract", f"manifest={manifest}", f"cache={cache.uri}", "whisper=tiny", "beats=tiny"]
    frames = f"speech_frames={cache.recipe.speech_frames}"
    assert main([*words, frames]) == 2
    assert "max_clip_seconds" in capsys.readouterr().err
    assert main([*words, "max_clip_seconds=20"]) == 2
    assert "max_clip_seconds" in capsys.readouterr().err
    assert main(["cache", "info", f"cache={cache.uri}"]) == 0
    assert "clips up to 90 s" in capsys.readouterr().out
