"""Covers pipelines.cache.cost, pipelines.cache.layout, pipelines.cache.recipe, pipelines.extraction.plan_extract,
pipelines.storage.tables.
"""

import json
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoders.audio import Segment
from pipelines import storage
from pipelines.cache import plan
from pipelines.cache.cost import break_even_epochs
from pipelines.cache.plan import (
    count_units,
    cut_units,
    extend_plan,
    pending_seconds,
    predict_nbytes,
    read_units,
    repeated_clips,
    unit_sizes,
)
from pipelines.cache.recipe import Recipe, StreamRecipe
from pipelines.cli import main
from pipelines.errors import UserError
from pipelines.extraction.plan_extract import fit_cost
from pipelines.manifest.tables import CLIP_SCHEMA, Clip, require_clips, row_from_clip
from pipelines.storage.tables import RowTable
from tests.pipelines.builders import fill, make_worker, prepare_tones

RECIPE = Recipe(
    streams={"speech": StreamRecipe("0" * 64, 1280), "audio": StreamRecipe("1" * 64, 768)},
    codec="float16",
    precision="float32",
    attention="sdpa",
)


def segment_of(recording: str, start: float, *, number: int, seconds: float | None = 10.0) -> Clip:
    return Clip(
        clip_id=f"{number:032x}",
        corpus="corpus",
        split="train",
        root="/r",
        segments=(Segment(recording, start, seconds),),
        seconds=seconds,
    )


@pytest.mark.parametrize("seed", range(5))
def test_units_are_in_order_without_gaps_and_near_equal(seed):
    nbytes_N = np.random.default_rng(seed).integers(1, 100, size=1_000)
    units_N = cut_units(nbytes_N, shard_nbytes=1_000)
    assert sorted(set(units_N)) == list(range(units_N[-1] + 1)) and (np.diff(units_N) >= 0).all()
    sums = np.bincount(units_N, weights=nbytes_N)
    assert len(sums) == -(-nbytes_N.sum() // 1_000) and sums.max() - sums.min() < 2 * nbytes_N.max()


@pytest.mark.parametrize("sizes", [[1], [5, 5, 5], [9, 1, 1, 1], [100, 1, 100], [50] * 3])
def test_clips_larger_than_a_shard_leave_no_unit_empty(sizes):
    units = cut_units(np.array(sizes), shard_nbytes=10).tolist()
    assert len(units) == len(sizes) and sorted(set(units)) == list(range(units[-1] + 1))


@pytest.mark.parametrize(("clips", "units"), [(1, 1), (15, 1), (16, 2), (100, 12), (136, 16), (10_000, 16)])
def test_few_clips_are_work_for_several_workers(clips, units):
    assert cut_units(np.full(clips, 1_000), shard_nbytes=10**12)[-1] + 1 == units
    assert cut_units(np.full(10_000, 1_000), shard_nbytes=10_000)[-1] + 1 == 1_000  # many are cut by their bytes


def test_clips_of_a_recording_follow_each_other_by_time(tmp_path):
    places = [("b", 20.0), ("a", 10.0), ("b", 0.0), ("c", 0.0), ("a", 0.0), ("b", 10.0)]
    clips = [segment_of(name, start, number=number) for number, (name, start) in enumerate(places)]
    extend_plan(str(tmp_path), clips, recipe=RECIPE, shard_nbytes=10**10)
    (unit,) = read_units(str(tmp_path))
    planned = [(clip.segments[0].recording, clip.segments[0].start_seconds) for clip in unit.clips]
    assert planned == [("b", 0.0), ("b", 10.0), ("b", 20.0), ("a", 0.0), ("a", 10.0), ("c", 0.0)]
    assert set(unit.clips) == set(clips)


def test_plan_of_many_row_groups_is_the_plan_of_one(tmp_path, monkeypatch):
    clips = [segment_of(f"r{number % 7}", float(number), number=number) for number in range(100)]
    extend_plan(str(tmp_path / "one"), clips, recipe=RECIPE, shard_nbytes=50_000_000)
    monkeypatch.setattr("pipelines.cache.plan.ROWS_PER_GROUP", 16)
    monkeypatch.setattr("pipelines.cache.plan.ROWS_PER_GATHER", 32)
    extend_plan(str(tmp_path / "many"), clips, recipe=RECIPE, shard_nbytes=50_000_000)
    units = list(read_units(str(tmp_path / "one")))
    assert list(read_units(str(tmp_path / "many"))) == units
    assert count_units(str(tmp_path / "many")) == len(units) > 5


def test_sizes_of_units_are_those_of_their_clips_an_unknown_length_the_longest(tmp_path):
    clips = [segment_of("a", 10.0 * number, number=number, seconds=number or None) for number in range(12)]
    assert [len(sizes) for sizes in unit_sizes(str(tmp_path))] == [0, 0]
    extend_plan(str(tmp_path), clips, recipe=RECIPE, shard_nbytes=2_000_000)
    units = list(read_units(str(tmp_path)))
    clips_U, seconds_U = unit_sizes(str(tmp_path))
    assert len(units) > 1 and clips_U.tolist() == [len(unit.clips) for unit in units]
    assert seconds_U.tolist() == [sum(clip.seconds or 30.0 for clip in unit.clips) for unit in units]


def test_plan_of_a_manifest_is_the_plan_of_its_clips(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.storage.tables.ROWS_PER_GROUP", 16)
    monkeypatch.setattr("pipelines.cache.plan.ROWS_PER_GROUP", 16)
    monkeypatch.setattr("pipelines.cache.plan.ROWS_PER_GATHER", 32)
    numbers = np.random.default_rng(0).permutation(300)
    clips = [segment_of(f"r{number % 7}", float(number), number=number) for number in numbers]
    with RowTable(str(tmp_path / "m" / "clips.parquet"), CLIP_SCHEMA) as table:
        for clip in clips:
            table.add(row_from_clip(clip))
    keys = {"recipe": RECIPE, "shard_nbytes": 50_000_000}
    for cache, given in (("a", str(tmp_path / "m")), ("b", clips)):
        assert extend_plan(str(tmp_path / cache), clips[:90], **keys) == 90
        assert extend_plan(str(tmp_path / cache), given, **keys) == 210
        assert extend_plan(str(tmp_path / cache), given, **keys) == 0
    units = list(read_units(str(tmp_path / "a")))
    assert units == list(read_units(str(tmp_path / "b")))
    assert {clip for unit in units for clip in unit.clips} == set(clips)


@pytest.mark.parametrize("moment", ["_plan_files", "find_new_clips", "_parts", "count_units"])
@pytest.mark.parametrize("planned_before", [0, 90])
def test_no_clip_is_planned_twice_whenever_another_job_plans(tmp_path, monkeypatch, moment, planned_before):
    clips = [segment_of(f"r{number % 7}", float(number), number=number) for number in range(300)]
    keys = {"recipe": RECIPE, "shard_nbytes": 50_000_000}
    if planned_before:
        extend_plan(str(tmp_path), clips[:planned_before], **keys)
    original, others = getattr(plan, moment), []

    def interrupted(*arguments):
        if not others:
            others.append("at work")  # what it calls is not interrupted
            extend_plan(str(tmp_path), clips[:200], **keys)
        return original(*arguments)

    monkeypatch.setattr(plan, moment, interrupted)
    for _ in range(2):
        with suppress(UserError):
            extend_plan(str(tmp_path), clips, **keys)
    assert others and not repeated_clips(str(tmp_path))
    assert {clip for unit in read_units(str(tmp_path)) for clip in unit.clips} == set(clips)


def test_empty_or_damaged_manifests_are_refused(tmp_path):
    pq.write_table(CLIP_SCHEMA.empty_table(), tmp_path / "clips.parquet")
    with pytest.raises(ValueError, match="holds no clips"):
        require_clips(str(tmp_path))
    pq.write_table(CLIP_SCHEMA.empty_table().drop_columns("split"), tmp_path / "clips.parquet")
    with pytest.raises(ValueError, match="column split is missing"):
        require_clips(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no manifest there"):
        require_clips(str(tmp_path / "absent"))


def test_a_plan_that_does_not_say_its_last_unit_is_refused_by_name(tmp_path):
    clips = [segment_of("a", 10.0 * number, number=number) for number in range(4)]
    extend_plan(str(tmp_path), clips, recipe=RECIPE, shard_nbytes=10**7)
    path = tmp_path / "units" / "000000.parquet"
    planned = pq.read_table(path)
    pq.write_table(planned.set_column(0, "unit", pa.array([0, 0, 0, None], pa.int64())), path)
    with pytest.raises(UserError, match=r"000000\.parquet: damaged \(column unit lacks a value in some row\)"):
        count_units(str(tmp_path))
    pq.write_table(planned.slice(0, 0), path)
    with pytest.raises(UserError, match=r"000000\.parquet: damaged \(it holds no clips\)"):
        count_units(str(tmp_path))
    with pq.ParquetWriter(path, planned.schema) as writer:
        writer.write_table(planned)
        writer.write_table(planned.slice(0, 0))
    assert count_units(str(tmp_path)) == 1 + planned["unit"][-1].as_py()


def test_clip_of_unknown_length_counts_as_the_longest(tmp_path):
    clips = [segment_of("a", 0.0, number=0, seconds=None), segment_of("b", 0.0, number=1, seconds=30.0)]
    extend_plan(str(tmp_path), clips, recipe=RECIPE, shard_nbytes=10**9)
    seconds_N = pending_seconds(str(tmp_path), done=())
    assert seconds_N.tolist() == [30.0, 30.0]
    float16, int8 = (predict_nbytes(seconds_N, RECIPE, codec)[0] - 4_096 for codec in ("float16", "int8"))
    assert float16 == 2 * int8 == 2 * (1500 * 1280 + 1496 * 768)
    assert not len(pending_seconds(str(tmp_path), done={0}))


def test_cost_is_fitted_per_clip_and_per_second():
    assert fit_cost([(length, 0.5 + 0.1 * length) for length in (2.0, 10.0, 30.0)]) == pytest.approx((0.5, 0.1))
    assert fit_cost([(5.0, 1.0), (5.0, 3.0)]) == (2.0, 0.0)  # one length says nothing about others
    assert fit_cost([(2.0, 3.0), (30.0, 1.0)]) == (2.0, 0.0)  # a shorter time for more audio is noise


def test_break_even_counts_examples_and_storage():
    assert break_even_epochs(100.0, 0.0, 1.0) == 1.0
    assert break_even_epochs(100.0, 50.0, 3.0) == pytest.approx(0.5)


def planned(manifest, cache, capsys, *words) -> dict:
    capsys.readouterr()
    keys = [f"manifest={manifest}", f"cache={cache}", "whisper=tiny", "beats=tiny", "shard_megabytes=1"]
    assert main(["plan", "extract", *keys, "json=true", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_forecast_matches_what_is_then_written_and_writes_nothing(tmp_path, capsys):
    manifest, cache = prepare_tones(tmp_path, num_clips=8), tmp_path / "c"
    forecast = planned(manifest, cache, capsys, "clips_per_second=4")
    assert not cache.exists()
    fill(cache, manifest, make_worker(cache), shard_nbytes=1_000_000)
    shards = list((cache / "shards").glob("*.tar"))
    assert (forecast["clips"], forecast["shards"], forecast["clips_in_cache"]) == (8, len(shards), 0)
    assert forecast["nbytes"] == pytest.approx(sum(shard.stat().st_size for shard in shards), rel=0.03)
    assert forecast["audio_nbytes"] == sum(file.stat().st_size for file in (tmp_path / "audio").iterdir())
    assert forecast["device_hours"] == pytest.approx(8 / 4 / 3600)
    assert forecast["write_megabytes_per_second"] == pytest.approx(forecast["nbytes"] / 1e6 / 2)


@pytest.mark.parametrize(("codec", "speech_frames"), [("float16", "all"), ("float16", "heard"), ("int8", "heard")])
def test_every_way_of_storing_is_forecast_beside_the_plans_own(tmp_path, capsys, codec, speech_frames):
    manifest, cache = prepare_tones(tmp_path, num_clips=8), tmp_path / "c"
    words = ["calibration_seconds=0", "terabyte_price=20", "price_per_hour=2", "budget_terabytes=0.000001"]
    ways = planned(manifest, cache, capsys, f"speech_frames={speech_frames}", *words)["stored"]
    fill(cache, manifest, make_worker(cache, codec=codec, speech_frames=speech_frames), shard_nbytes=1_000_000)
    written = sum(shard.stat().st_size for shard in (cache / "shards").glob("*.tar"))
    (way,) = (way for way in ways if (way["codec"], way["speech_frames"]) == (codec, speech_frames))
    assert len(ways) == 4 and way["nbytes"] == pytest.approx(written, rel=0.1)
    assert way["money"] == pytest.approx(way["nbytes"] / 1e12 * 20) and way["fits"] == (way["nbytes"] <= 1e6)
    assert {way["fits"] for way in ways} == {True, False}
    assert way["snr_db"] == pytest.approx({"float16": 70, "int8": 43}[codec], abs=8)


def test_forecast_leaves_out_what_the_cache_holds(tmp_path, capsys):
    manifest, cache = prepare_tones(tmp_path, num_clips=8), tmp_path / "c"
    fill(cache, manifest, make_worker(cache), shard_nbytes=1_000_000)
    assert planned(manifest, cache, capsys)["clips"] == 0
    assert main(["plan", "extract", f"manifest={manifest}", f"cache={cache}", "whisper=tiny", "beats=tiny"]) == 0
    told = capsys.readouterr().out
    assert told == "clips      0 to encode; 8 are in the cache, or rejected there: nothing is left to do\n"
    first = next(read_units(str(cache)))
    storage.delete_file(str(cache / "index" / "000000.parquet"))
    forecast = planned(manifest, cache, capsys, "clips_per_second=4")
    assert (forecast["clips"], forecast["shards"]) == (len(first.clips), 1)
    assert forecast["clips_in_cache"] == 8 - len(first.clips)
    assert main(["plan", "extract", f"manifest={manifest}", f"cache={cache}", "whisper=tiny", "beats=none"]) == 2
    assert "another recipe" in capsys.readouterr().err


def test_the_plan_names_the_extraction_with_all_that_decides_what_is_stored(tmp_path, capsys):
    manifest = prepare_tones(tmp_path, num_clips=2)
    words = ["codec=int8", "max_clip_seconds=60", "whisper=tiny", "beats=tiny", "clips_per_second=4"]
    assert main(["plan", "extract", f"manifest={manifest}", *words]) == 0
    step = "whisper=tiny beats=tiny codec=int8 max_clip_seconds=60.0"
    assert capsys.readouterr().err.endswith(f"next: salmonn extract manifest={manifest} cache=CACHE {step}\n")


def test_speed_is_measured_on_the_manifests_own_clips(tmp_path, capsys):
    manifest = prepare_tones(tmp_path, num_clips=4)
    words = [f"manifest={manifest}", f"cache={tmp_path}/c", "whisper=tiny", "beats=tiny", "calibration_seconds=0"]
    assert main(["plan", "extract", *words, "terabyte_price=20", "price_per_hour=2"]) == 0
    shown = capsys.readouterr().out
    assert "4 to encode" in shown and "clips/s per worker" in shown and "break-even" in shown
    assert main(["plan", "extract", *words, "terabyte_price=20"]) == 2
    for file in (tmp_path / "audio").iterdir():
        file.write_bytes(b"no sound")
    assert main(["plan", "extract", *words]) == 2
    assert "none of the clips sampled can be read" in capsys.readouterr().err


def test_recipe_diff_shows_every_field_that_differs(tmp_path, capsys):
    make_worker(tmp_path / "a")
    make_worker(tmp_path / "b")
    make_worker(tmp_path / "c", codec="int8", beats="none")
    assert main(["recipe", "diff", f"a={tmp_path}/a", f"b={tmp_path}/b"]) == 0
    assert capsys.readouterr().out == "same recipe\n"
    assert main(["recipe", "diff", f"a={tmp_path}/a", f"b={tmp_path}/c"]) == 1
    shown = capsys.readouterr().out
    assert "codec\n  a  float16\n  b  int8" in shown
    assert "streams.audio.digest" in shown and "streams.audio.width" in shown and "streams.speech" not in shown
    assert main(["recipe", "diff", f"a={tmp_path}/a", "b=absent"]) == 2
