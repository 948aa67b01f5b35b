"""Covers pipelines.cache.index, pipelines.cache.shard, pipelines.cache.tools.config, pipelines.cache.tools.info,
pipelines.extraction.worker, pipelines.runs.recipe_diff.
"""

import hashlib
import json
import shutil
import tarfile
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset

from cluster.unit_queue import Attempt, FatalUnitError
from encoders.codecs import measure_fidelity
from encoders.features import audio_frames
from encoders.sound.clips import load_clip
from pipelines import storage
from pipelines.cache.index import committed_shard, committed_units, read_rejects
from pipelines.cache.plan import (
    count_planned_clips,
    count_units,
    extend_plan,
    find_new_clips,
    predict_nbytes,
    read_units,
)
from pipelines.cache.reader import FeatureCache
from pipelines.cache.recipe import Recipe, read_recipe, write_recipe
from pipelines.cache.shard import write_shard
from pipelines.cache.tools.config import CacheInfoConfig
from pipelines.cache.tools.info import cache_info
from pipelines.cli import main
from pipelines.errors import UserError
from pipelines.extraction.messages import WorkerConfig
from pipelines.extraction.worker import SAMPLED_CLIPS, ExtractWorker
from pipelines.manifest.tables import corpus_roots, read_clips
from tests.pipelines.builders import fill, make_worker, prepare_tones, shard_digests
from tests.toy import write_tones


def test_a_clip_is_opened_by_its_id(tmp_path):
    manifest = prepare_tones(tmp_path, num_clips=3)
    fill(tmp_path / "c", manifest, make_worker(tmp_path / "c"))
    cache = FeatureCache.open(str(tmp_path / "c"))
    for clip in read_clips(manifest):
        found, position = cache[clip.clip_id], int(cache.positions([clip.clip_id])[0])
        assert found.seconds == clip.seconds and found.streams.keys() == {"speech", "audio"}
        assert all(torch.equal(frames, cache.read(position)[name]) for name, frames in found.streams.items())
    with pytest.raises(KeyError, match="c: no clip absent"):
        cache["absent"]


@pytest.mark.parametrize(("codec", "beats"), [("float16", "tiny"), ("int8", "tiny"), ("float16", "none")])
def test_cache_gives_back_each_clips_features(tmp_path, codec, beats):
    manifest = prepare_tones(tmp_path, num_clips=5)
    worker = make_worker(tmp_path / "c", codec=codec, beats=beats)
    fill(tmp_path / "c", manifest, worker)
    cache = FeatureCache(str(tmp_path / "c"))
    clips = list(read_clips(manifest))
    positions = cache.positions([clip.clip_id for clip in clips] + ["absent"])
    assert positions[-1] == -1 and sorted(positions[:-1]) == list(range(5))
    for clip, position in zip(clips, positions, strict=False):
        wave = load_clip(clip.located())
        alone = worker.encoder.encode([wave])[0]
        stored = cache.read(int(position))
        assert stored.keys() == alone.keys() == ({"speech"} if beats == "none" else {"speech", "audio"})
        for name, frames in alone.items():
            spread = frames.std()
            assert stored[name].shape == frames.shape and stored[name].dtype == torch.float32
            assert (stored[name] - frames).abs().max() < (0.05 if codec == "int8" else 0.005) * spread
        assert cache.rows()["seconds"][int(position)].as_py() == pytest.approx(len(wave) / 16_000)


def test_stock_webdataset_reads_every_sample(tmp_path):
    manifest = prepare_tones(tmp_path, num_clips=8)
    fill(tmp_path / "c", manifest, make_worker(tmp_path / "c"))
    last = len(list((tmp_path / "c" / "shards").glob("*.tar"))) - 1
    assert last >= 2
    urls = f"{tmp_path}/c/shards/{{000000..{last:06d}}}.tar"
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    cache = FeatureCache(str(tmp_path / "c"))
    assert [sample["__key__"] for sample in samples] == [clip.clip_id for clip in read_clips(manifest)]
    for sample, position in zip(samples, cache.positions([s["__key__"] for s in samples]), strict=True):
        assert sample["json"]["clip_id"] == sample["__key__"]
        streams = cache.read(int(position))
        for name in ("speech", "audio"):
            assert sample[f"{name}.npy"].dtype == np.float16
            np.testing.assert_array_equal(sample[f"{name}.npy"].astype(np.float32), streams[name].numpy())


def test_stock_webdataset_reads_int8_and_its_scales(tmp_path):
    manifest = prepare_tones(tmp_path, num_clips=2)
    fill(tmp_path / "c", manifest, make_worker(tmp_path / "c", codec="int8"), shard_nbytes=10**9)
    cache = FeatureCache(str(tmp_path / "c"))
    samples = list(webdataset.WebDataset(f"{tmp_path}/c/shards/000000.tar", shardshuffle=False).decode())
    for position, sample in enumerate(samples):
        for name, frames in cache.read(position).items():
            assert sample[f"{name}.npy"].dtype == np.int8
            np.testing.assert_array_equal(sample[f"{name}.npy"] * sample[f"{name}_scale.npy"], frames.numpy())
    assert len(samples) == 2


def test_index_tells_the_fidelity_of_a_sample_of_each_shard(tmp_path, capsys):
    manifest = prepare_tones(tmp_path, num_clips=SAMPLED_CLIPS + 2)
    worker = make_worker(tmp_path / "c", codec="int8")
    fill(tmp_path / "c", manifest, worker, shard_nbytes=10**9)
    cache = FeatureCache(str(tmp_path / "c"))
    rows = {row["clip_id"]: row for row in cache.rows().to_pylist()}
    measured = {clip_id for clip_id, row in rows.items() if row["speech_snr_db"] is not None}
    assert measured == set(sorted(rows)[:SAMPLED_CLIPS])
    for clip in read_clips(manifest):
        if clip.clip_id in measured:
            for name, computed in worker.encoder.encode([load_clip(clip.located())])[0].items():
                stored = cache.read(int(cache.positions([clip.clip_id])[0]))[name]
                expected, row = measure_fidelity(computed, stored), rows[clip.clip_id]
                assert row[f"{name}_snr_db"] == pytest.approx(expected.snr_db, abs=0.01)
                assert row[f"{name}_worst_cosine"] == pytest.approx(expected.worst_cosine, abs=1e-6)
    worst = min(measured, key=lambda clip_id: rows[clip_id]["speech_snr_db"])
    info = committed_shard(str(tmp_path / "c"), 0)
    assert info.lowest_snr_db == min(rows[i][f"{name}_snr_db"] for i in measured for name in ("speech", "audio"))
    cache_info(CacheInfoConfig(str(tmp_path / "c")))
    shown = capsys.readouterr().out
    assert f"the worst clip {rows[worst]['speech_snr_db']:.1f} ({worst})" in shown
    assert f"{SAMPLED_CLIPS} clips sampled" in shown


def test_unit_whose_features_lose_too_much_is_refused(tmp_path):
    manifest = prepare_tones(tmp_path, num_clips=2)
    worker = make_worker(tmp_path / "c", codec="int8")
    worker.config = replace(worker.config, min_fidelity_db=60.0)
    first = min(clip.clip_id for clip in read_clips(manifest))
    with pytest.raises(FatalUnitError, match=rf"(?s){first}.*comes back from int8.* dB, below min_fidelity_db=60\.0"):
        fill(tmp_path / "c", manifest, worker, shard_nbytes=1_000_000)
    assert committed_units(str(tmp_path / "c")) == frozenset()
    assert list((tmp_path / "c" / "shards").iterdir()) == []


def test_index_points_at_the_members_of_the_tar(tmp_path):
    manifest = prepare_tones(tmp_path, num_clips=3)
    fill(tmp_path / "c", manifest, make_worker(tmp_path / "c", codec="int8"))
    rows = pq.read_table(tmp_path / "c" / "index").to_pylist()
    for row in rows:
        with tarfile.open(tmp_path / "c" / "shards" / row["shard"]) as tar:
            for member in ("speech", "audio", "speech_scale", "audio_scale"):
                info = tar.getmember(f"{row['clip_id']}.{member}.npy")
                assert (info.offset_data, info.size) == (row[f"{member}_offset"], row[f"{member}_nbytes"])
                assert (info.mtime, info.uname, info.gname) == (0, "", "")
    about = pq.read_schema(tmp_path / "c" / "index" / "000000.parquet").metadata
    shard = (tmp_path / "c" / "shards" / "000000.tar").read_bytes()
    assert int(about[b"shard_nbytes"]) == len(shard)
    assert about[b"shard_sha256"].decode() == hashlib.sha256(shard).hexdigest()


def test_damaged_recordings_are_rejected_with_a_reason_and_the_rest_is_kept(tmp_path):
    manifest = prepare_tones(tmp_path, num_clips=6, damaged=2)
    fill(tmp_path / "c", manifest, make_worker(tmp_path / "c"))
    rejects = pq.read_table(tmp_path / "c" / "rejects").to_pylist()
    assert sorted(row["recording"] for row in rejects) == ["tone-4.wav", "tone-5.wav"]
    assert all(row["stage"] and "tone-" in row["error"] for row in rejects)
    assert FeatureCache(str(tmp_path / "c")).num_clips == 4


def test_unit_with_nothing_but_rejects_is_complete(tmp_path):
    manifest = prepare_tones(tmp_path, num_clips=2)
    for name in ("tone-0.wav", "tone-1.wav"):
        (tmp_path / "audio" / name).write_bytes(b"gone")
    fill(tmp_path / "c", manifest, make_worker(tmp_path / "c"))
    assert committed_units(str(tmp_path / "c")) == {0}
    assert FeatureCache(str(tmp_path / "c")).num_clips == 0


def test_the_same_work_gives_the_same_bytes_in_any_order(tmp_path):
    manifest = prepare_tones(tmp_path, num_clips=8, damaged=1)
    one, other = tmp_path / "one", tmp_path / "other"
    fill(one, manifest, make_worker(one))
    worker = make_worker(other)
    extend_plan(str(other), read_clips(manifest), recipe=worker.config.recipe, shard_nbytes=1_500_000)
    for unit in reversed(list(read_units(str(other)))):
        worker.run(unit, Attempt())
    assert len(shard_digests(one)) > 6 and shard_digests(one) == shard_digests(other)


def test_exception_in_the_middle_of_a_shard_publishes_nothing(tmp_path):
    manifest = prepare_tones(tmp_path, num_clips=4)
    worker = make_worker(tmp_path / "c")
    unit = next(iter(read_units_of(tmp_path / "c", manifest, worker)))

    def interrupted():
        yield next(iter(worker._encoded(unit.clips, {}, defaultdict(float), Counter())))
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_shard(str(tmp_path / "c"), unit.unit, worker.config.recipe, interrupted())
    assert list((tmp_path / "c" / "shards").iterdir()) == []
    assert committed_units(str(tmp_path / "c")) == frozenset()


def read_units_of(cache, manifest, worker):
    extend_plan(str(cache), read_clips(manifest), recipe=worker.config.recipe, shard_nbytes=1_500_000)
    return read_units(str(cache))


def test_features_that_are_not_finite_are_rejected(tmp_path, monkeypatch):
    manifest = prepare_tones(tmp_path, num_clips=2)
    worker = make_worker(tmp_path / "c")
    encode = worker.encoder.encode

    def broken(waves, **keys):
        streams = encode(waves, **keys)
        streams[0]["speech"] = streams[0]["speech"].clone().index_fill_(0, torch.tensor([3]), float("nan"))
        return streams

    monkeypatch.setattr(worker.encoder, "encode", broken)
    fill(tmp_path / "c", manifest, worker)
    assert pq.read_table(tmp_path / "c" / "rejects")["stage"].to_pylist() == ["features"]


def test_damaged_shard_is_noticed_when_read(tmp_path):
    manifest = prepare_tones(tmp_path, num_clips=2)
    fill(tmp_path / "c", manifest, make_worker(tmp_path / "c"))
    cache = FeatureCache(str(tmp_path / "c"))
    row = cache.rows().slice(1, 1).to_pylist()[0]
    path = tmp_path / "c" / "shards" / row["shard"]
    data = bytearray(path.read_bytes())
    data[row["speech_offset"] + 5_000] ^= 1
    path.write_bytes(data)
    assert cache.read(0)
    with pytest.raises(ValueError, match=f"speech of clip {row['clip_id']} is damaged"):
        cache.read(1)


def test_grown_manifest_gets_new_units_and_leaves_the_old(tmp_path):
    manifest = prepare_tones(tmp_path, num_clips=8)
    worker = make_worker(tmp_path / "c")
    clips = list(read_clips(manifest))
    recipe, cache = worker.config.recipe, str(tmp_path / "c")
    assert extend_plan(cache, iter(clips[:5]), recipe=recipe, shard_nbytes=1_500_000) == 5
    before = list(read_units(cache))
    assert extend_plan(cache, iter(clips[:5]), recipe=recipe, shard_nbytes=1_500_000) == 0
    assert extend_plan(cache, iter(clips), recipe=recipe, shard_nbytes=1_500_000) == 3
    units = list(read_units(cache))
    assert units[: len(before)] == before
    assert [clip for unit in units for clip in unit.clips] == clips
    assert [unit.unit for unit in units] == list(range(count_units(cache)))
    assert count_planned_clips(cache) == 8


def test_second_job_that_plans_the_same_cache_is_refused(tmp_path, monkeypatch):
    manifest = prepare_tones(tmp_path, num_clips=4)
    worker = make_worker(tmp_path / "c")
    clips, cache, recipe = list(read_clips(manifest)), str(tmp_path / "c"), worker.config.recipe
    extend_plan(cache, clips[:2], recipe=recipe, shard_nbytes=1_500_000)
    monkeypatch.setattr("pipelines.cache.plan.count_units", lambda cache: 0)  # as it looked when the other began
    with pytest.raises(ValueError, match="another job has just planned"):
        extend_plan(cache, clips, recipe=recipe, shard_nbytes=1_500_000)
    with pytest.raises(ValueError, match="another job has just begun"):
        write_recipe(cache, recipe, encoders={}, recorded={})


def test_recordings_that_moved_are_found_where_the_manifest_says_now(tmp_path):
    manifest = prepare_tones(tmp_path, num_clips=2)
    worker = make_worker(tmp_path / "c")
    extend_plan(str(tmp_path / "c"), read_clips(manifest), recipe=worker.config.recipe, shard_nbytes=1_500_000)
    assert corpus_roots(manifest) == {"table": str(tmp_path / "audio")}
    (unit,) = read_units(str(tmp_path / "c"), roots={"table": "/elsewhere"})
    assert {clip.root for clip in unit.clips} == {"/elsewhere"}


def test_a_clip_that_the_cache_lacks_is_not_another_clip(tmp_path):
    manifest = prepare_tones(tmp_path, num_clips=2)
    fill(tmp_path / "c", manifest, make_worker(tmp_path / "c"))
    cache = FeatureCache(str(tmp_path / "c"))
    (absent,) = cache.positions(["0" * 32])
    for position in (absent, 2):
        with pytest.raises(IndexError, match=f"no row {position} among 2"):
            cache.read(int(position))


def test_rejects_of_an_attempt_that_failed_do_not_stay(tmp_path):
    manifest = prepare_tones(tmp_path, num_clips=2)
    (tmp_path / "c" / "rejects").mkdir(parents=True)
    (tmp_path / "c" / "rejects" / "000000.parquet").write_bytes(b"left over")
    fill(tmp_path / "c", manifest, make_worker(tmp_path / "c"))
    assert read_rejects(str(tmp_path / "c"), {0}).num_rows == 0


def test_few_shards_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.cache.reader.OPEN_SHARDS", 2)
    manifest = prepare_tones(tmp_path, num_clips=8)
    fill(tmp_path / "c", manifest, make_worker(tmp_path / "c"), shard_nbytes=600_000)
    cache = FeatureCache(str(tmp_path / "c"))
    for position in [*range(8), *range(8)]:
        cache.read(position)
        assert len(cache._shards) <= 2


def test_predicted_bytes_are_close_to_the_shard(tmp_path):
    manifest = prepare_tones(tmp_path, num_clips=4)
    worker = make_worker(tmp_path / "c")
    fill(tmp_path / "c", manifest, worker, shard_nbytes=1_000_000_000)
    seconds_N = find_new_clips(str(tmp_path / "other"), manifest).seconds
    predicted = predict_nbytes(seconds_N, worker.config.recipe, "float16").sum()
    actual = (tmp_path / "c" / "shards" / "000000.tar").stat().st_size
    assert 0.97 < predicted / actual < 1.03
    frames = FeatureCache(str(tmp_path / "c")).rows()["audio_frames"].to_pylist()
    assert frames == audio_frames(seconds_N).tolist()
    assert audio_frames(np.array([30.0])) == 1496


def test_recipe_reads_back_and_names_the_first_difference(tmp_path):
    worker = make_worker(tmp_path / "c")
    recipe, encoders = read_recipe(str(tmp_path / "c"))
    assert recipe == worker.config.recipe and encoders == {"speech": "tiny", "audio": "tiny"}
    other = Recipe(recipe.streams, "int8", "float32", "sdpa")
    with pytest.raises(ValueError, match="codec is 'float16' there and 'int8' here"):
        other.require_same(recipe, here="this", there="that")


def test_recipe_changed_by_hand_is_refused(tmp_path):
    make_worker(tmp_path / "c")
    uri = storage.join(str(tmp_path / "c"), "recipe.json")
    content = json.loads(storage.read_bytes(uri))
    content["recipe"]["codec"] = "int8"
    storage.write_bytes(uri, json.dumps(content).encode())
    with pytest.raises(ValueError, match="changed by hand"):
        read_recipe(str(tmp_path / "c"))


def test_cache_info_notices_shards_of_another_recipe_or_length(tmp_path):
    manifest = prepare_tones(tmp_path, num_clips=2)
    cache, other = tmp_path / "c", tmp_path / "d"
    fill(cache, manifest, make_worker(cache))
    make_worker(other, codec="int8")
    cache_info(CacheInfoConfig(str(cache)))
    own = (cache / "recipe.json").read_bytes()
    (cache / "recipe.json").write_bytes((other / "recipe.json").read_bytes())
    with pytest.raises(ValueError, match="shard 000000 was written with another recipe"):
        cache_info(CacheInfoConfig(str(cache)))
    (cache / "recipe.json").write_bytes(own)
    with (cache / "shards" / "000000.tar").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="its index says"):
        cache_info(CacheInfoConfig(str(cache)))


def test_worker_refuses_encoders_of_another_recipe(tmp_path):
    worker = make_worker(tmp_path / "c")
    streams = {**worker.config.recipe.streams}
    streams["speech"] = streams["speech"].__class__("0" * 64, 128)
    recipe = Recipe(streams, "float16", "float32", "sdpa")
    with pytest.raises(ValueError, match=r"streams\.speech\.digest"):
        ExtractWorker(
            WorkerConfig(
                cache=str(tmp_path / "c"),
                whisper="tiny",
                beats="tiny",
                recipe=recipe,
                device="cpu",
                threads=1,
                batch_clips=4,
            )
        )


def test_unit_that_another_job_commits_meanwhile_stays_as_it_is(tmp_path, monkeypatch):
    manifest = prepare_tones(tmp_path / "tones", num_clips=4, damaged=1)
    ours, cache = make_worker(tmp_path / "c"), str(tmp_path / "c")
    theirs = ExtractWorker(ours.config)
    extend_plan(cache, read_clips(manifest), recipe=ours.config.recipe, shard_nbytes=10**9)
    (unit,) = read_units(cache)
    encoded = ours._encoded
    commits = []

    def slow(*arguments):
        yield from encoded(*arguments)
        commits.append(theirs.run(unit, Attempt()).shard)

    monkeypatch.setattr(ours, "_encoded", slow)
    assert ours.run(unit, Attempt()).shard == commits[0] and (commits[0].clips, commits[0].rejects) == (3, 1)
    before = shard_digests(tmp_path / "c")
    monkeypatch.setattr(theirs, "encoder", None)
    assert theirs.run(unit, Attempt()).shard == commits[0]
    assert shard_digests(tmp_path / "c") == before and len(before) == 3


def test_recipe_of_a_newer_schema_is_named_as_such(tmp_path):
    make_worker(tmp_path / "c")
    content = json.loads((tmp_path / "c" / "recipe.json").read_text())
    content["recipe"]["schema_version"] = 2
    (tmp_path / "c" / "recipe.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"recipe\.json: schema 2, of which this version knows only 1"):
        read_recipe(str(tmp_path / "c"))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("encoders", {}, "encoders does not say which one made"),
        ("encoders", {"speech": 3, "audio": "tiny"}, "made speech"),
    ]
    + [
        ("recipe", {"schema_version": 1, "streams": streams}, "not a recipe")
        for streams in (1.5, {"speech": []}, {"speech": 1})
    ],
)
def test_a_recipe_without_encoders_or_streams_is_a_line(tmp_path, key, value, said):
    make_worker(tmp_path / "c")
    file = tmp_path / "c" / "recipe.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(UserError, match=rf"recipe\.json: .*{said}"):
        read_recipe(str(tmp_path / "c"))


@pytest.mark.parametrize("checksum", [-1, 2**32, None])
def test_a_checksum_that_no_bytes_have_names_its_clip(corpus, tmp_path, checksum):
    cache = shutil.copytree(corpus[1], tmp_path / "c")
    path = cache / "index" / "000000.parquet"
    table = pq.read_table(path)
    numbers = pa.array([checksum, *table["audio_crc32"].to_pylist()[1:]], pa.int64())
    pq.write_table(table.set_column(table.schema.get_field_index("audio_crc32"), "audio_crc32", numbers), path)
    with pytest.raises(
        UserError, match=rf"000000\.parquet: clip \w+: audio_crc32 is {checksum}; a checksum has 32 bits"
    ):
        FeatureCache(str(cache)).rows()


def test_types_of_a_samples_json_do_not_depend_on_the_clip(tmp_path):
    """Hugging Face `datasets` takes the types of a tar's first five samples for all."""
    names = write_tones(tmp_path / "audio", [1.0, 2.0, 3.0])
    rows = [
        {"path": names[0], "text": "whole"},
        {"path": names[1], "text": "part", "start_seconds": 1, "duration_seconds": 1},
        {"path": names[2], "text": "from a second on", "start_seconds": 0.5},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [f"table={tmp_path}/t.jsonl", f"audio_root={tmp_path}/audio", f"out={tmp_path}/m"]
    assert main(["prepare", "table", *words]) == 0
    fill(tmp_path / "c", f"{tmp_path}/m", make_worker(tmp_path / "c"))
    told = []
    for path in sorted((tmp_path / "c" / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            told += [json.load(tar.extractfile(name)) for name in tar.getnames() if name.endswith(".json")]
    assert len({json.dumps(types_of(content), sort_keys=True) for content in told}) == 1
    spans = [
        (segment["start_seconds"], segment["duration_seconds"]) for content in told for segment in content["segments"]
    ]
    assert sorted(spans) == [(0.0, 0.0), (0.5, 0.0), (1.0, 1.0)]


def types_of(value):
    if isinstance(value, dict):
        return {key: types_of(content) for key, content in value.items()}
    return [types_of(item) for item in value] if isinstance(value, list) else type(value).__name__
