"""Clips at their own length: what is extracted, trimmed, read, trained on and answered is the sound alone.

Covers encoders.features, pipelines.batches.batch.
"""

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from encoders.audio import Segment
from encoders.features import SPEECH_FRAMES, Heard, audio_frames, heard_frames
from encoders.sound.clips import load_clip
from pipelines.batches.batch import read_batch
from pipelines.batches.example_set import load_examples
from pipelines.cache.reader import FeatureCache
from pipelines.cache.tools.config import CacheVerifyConfig
from pipelines.cache.tools.verify import cache_verify
from pipelines.cli import main
from pipelines.inference.hearing import load_hearing
from pipelines.manifest.corpora.table import TableConfig, prepare_table
from pipelines.runs.checkpoint import load_run
from pipelines.runs.spec import RunSpec
from pipelines.training.preflight import open_run
from tests.pipelines.builders import config_of, fill, losses, make_worker, shard_digests, train_here
from tests.toy import write_tones

SECONDS = [0.3, 1.0, 2.35, 3.001, 7.9, 12.34, 29.99, 30.0, 31.5, 2.0]
"""Shorter than the shortest clip, longer than the longest, and of odd numbers of samples."""
SHARD_NBYTES = 1_000_000


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("hear")
    names = write_tones(folder / "audio", SECONDS)
    rows = [
        {
            "path": name,
            "text": "high " * (number % 3 + 1),
            "task": "audiocaption",
            "split": "test" if number == 4 else "train",
        }
        for number, name in enumerate(names)
    ]
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_table(
        TableConfig(table=str(folder / "table.jsonl"), audio_root=str(folder / "audio"), out=str(folder / "m"))
    )
    return str(folder / "m")


@pytest.fixture(scope="module", params=["float16", "int8"])
def caches(manifest, tmp_path_factory, request) -> dict[str, str]:
    """The same clips with all speech frames, and with those of their sound alone."""
    folder = tmp_path_factory.mktemp(request.param)
    for speech_frames in ("all", "heard"):
        worker = make_worker(folder / speech_frames, codec=request.param, speech_frames=speech_frames)
        fill(folder / speech_frames, manifest, worker, shard_nbytes=SHARD_NBYTES)
    return {name: str(folder / name) for name in ("all", "heard")}


def test_speech_frames_are_those_that_overlap_the_sound():
    lengths = np.array([0.02, 0.020001, 0.99, 1.0, 1.0000625, 2.35, 29.98, 29.9801, 30.0, 31.0])
    assert heard_frames(lengths).tolist() == [1, 1, 50, 50, 51, 118, 1499, 1500, 1500, 1550]
    drawn = np.random.Generator(np.random.PCG64(0)).uniform(1.0, 30.0, 100_000)
    lead = heard_frames(drawn) - audio_frames(drawn)
    assert lead.min() >= 0 and lead.max() <= 9  # BEATs leaves out a step of eight frames that is partly silence
    assert Heard(300).frames_of(drawn).tolist() == [300] * len(drawn)
    assert Heard(300, "clip").frames_of(np.array([1.0, 30.0])).tolist() == [50, 300]


def test_a_cache_of_sound_is_the_beginning_of_one_of_all_bit_for_bit(caches):
    whole, trimmed = (FeatureCache(caches[name]) for name in ("all", "heard"))
    ids = whole.rows()["clip_id"].to_pylist()
    frames = heard_frames(whole.rows()["seconds"].to_numpy())
    assert len(ids) == len(SECONDS) and len(set(frames.tolist())) > 6
    for number, (clip, own) in enumerate(zip(ids, frames.tolist(), strict=True)):
        ours, theirs = trimmed.read(int(trimmed.positions([clip])[0])), whole.read(number)
        assert ours["speech"].shape[0] == own <= theirs["speech"].shape[0] == SPEECH_FRAMES
        assert torch.equal(ours["speech"], theirs["speech"][:own]) and torch.equal(ours["audio"], theirs["audio"])
        assert torch.equal(whole.read(number, own)["speech"], ours["speech"])


def test_trimming_gives_the_shards_that_extraction_gives_and_goes_on_where_it_stopped(caches, tmp_path, capsys):
    words = ["cache", "trim", f"cache={caches['all']}", f"out={tmp_path}/t", "shard_megabytes=1"]
    assert main(words) == 0
    shards = {name: digest for name, digest in shard_digests(tmp_path / "t").items() if name.endswith(".tar")}
    extracted = shard_digests_of(caches["heard"])
    assert shards == extracted and len(shards) > 1
    assert cache_verify(CacheVerifyConfig(cache=f"{tmp_path}/t")) is None
    last = max((tmp_path / "t" / "index").iterdir())
    last.unlink()
    assert main(words) == 0 and shard_digests_of(tmp_path / "t") == extracted
    assert f"1 shard written, {len(shards) - 1} were there" in capsys.readouterr().out
    assert main(["cache", "trim", f"cache={tmp_path}/t", f"out={tmp_path}/u"]) == 2
    assert "is trimmed already" in capsys.readouterr().err
    assert main(["cache", "export", f"cache={caches['heard']}", f"out={tmp_path}/t", f"clips={some_clip(caches)}"]) == 0


def shard_digests_of(cache):
    return {name: digest for name, digest in shard_digests(Path(cache)).items() if name.endswith(".tar")}


def some_clip(caches) -> str:
    return f"[{FeatureCache(caches['all']).rows()['clip_id'][0].as_py()}]"


def test_a_run_that_hears_silence_refuses_a_cache_without_it(manifest, caches, tmp_path):
    config = config_of((manifest, caches["heard"]), tmp_path / "run", heard_seconds=30.0)
    with pytest.raises(ValueError, match=r"speech_frames=heard.*hear=all.*with speech_frames=all"):
        open_run(config, pending=[])
    assert not (tmp_path / "run").exists()


def test_a_run_that_hears_clips_learns_the_same_from_either_cache(manifest, caches, tmp_path):
    keys = {"heard_seconds": 30.0, "hear": "clip", "steps": 3}
    for name in ("all", "heard"):
        train_here(config_of((manifest, caches[name]), tmp_path / name, **keys))
    assert losses(tmp_path / "all") == losses(tmp_path / "heard")
    spec = RunSpec.read(str(tmp_path / "all"))
    assert (spec.hear, spec.recipe.speech_frames) == ("clip", "heard")
    more = config_of((manifest, caches["heard"]), tmp_path / "all", **{**keys, "steps": 4})
    train_here(more)  # the other cache goes on with the run
    with pytest.raises(ValueError, match="hear is 'clip' there and 'all' here"):
        open_run(dataclasses.replace(more, hear="all"), pending=[])


def test_a_stage_hears_as_the_one_before_unless_it_is_asked_otherwise(manifest, caches, tmp_path):
    keys = {"heard_seconds": 4.0, "steps": 1}
    train_here(config_of((manifest, caches["all"]), tmp_path / "one", hear="clip", **keys))
    for name, hear, expected in (("two", "", "clip"), ("three", "all", "all")):
        config = config_of(
            (manifest, caches["all"]), tmp_path / name, init_from=str(tmp_path / "one"), hear=hear, **keys
        )
        open_run(config, pending=[])
        assert RunSpec.read(str(tmp_path / name)).hear == expected


@pytest.fixture(scope="module")
def run(manifest, caches, tmp_path_factory):
    """A run that hears clips, after some steps."""
    folder = tmp_path_factory.mktemp("run") / "run"
    train_here(config_of((manifest, caches["heard"]), folder, heard_seconds=30.0, hear="clip", steps=2))
    return load_run(str(folder), device="cpu")


def examples_of(manifest, cache):
    return load_examples(manifest, cache, splits=[], tasks=[], max_missing_fraction=0)


def test_a_clip_alone_in_a_batch_and_in_any_order_has_the_same_loss_and_answer(manifest, caches, run):
    cache, model = FeatureCache(caches["heard"]), run.model.eval()
    examples = examples_of(manifest, cache)
    places = [(0, number) for number in range(len(examples))]
    random.Random(0).shuffle(places)
    batch = read_batch(examples, cache, places, heard=run.spec.heard, prompt_seed=None)
    alone = [read_batch(examples, cache, [place], heard=run.spec.heard, prompt_seed=None) for place in places]
    with torch.no_grad():
        together = model.loss(batch)
        apart = [model.loss(one) for one in alone]
    assert together.num_targets == sum(one.num_targets for one in apart)
    assert float(together.total) == pytest.approx(sum(float(one.total) for one in apart), rel=1e-5)
    for beams in (1, 4):
        answers = model.generate(batch, num_beams=beams, max_new_tokens=12)
        assert answers == [model.generate(one, num_beams=beams, max_new_tokens=12)[0] for one in alone]


def test_a_clip_of_thirty_seconds_is_what_it_is_with_silence_but_for_its_last_window(manifest, caches, run):
    cache, aligner = FeatureCache(caches["all"]), run.model.aligner.eval()
    positions = [int(np.argmax(cache.rows()["seconds"].to_numpy()))]
    stored = {name: frames.frames.float() for name, frames in cache.read_frames(positions).items()}
    with torch.no_grad():
        all_BAH = aligner(stored["speech"], stored["audio"])
        own_NH = aligner.by_clip(stored["speech"], stored["audio"], speech_frames=torch.tensor([SPEECH_FRAMES]))
    assert (all_BAH.shape[1], len(own_NH)) == (88, 89)
    torch.testing.assert_close(own_NH[:88], all_BAH[0], atol=1e-5, rtol=1e-5)


def test_ask_hears_the_clip_that_the_cache_holds(manifest, caches, run):
    cache = FeatureCache(caches["heard"])
    hear = load_hearing(run.spec, "the run", device="cpu")
    for name in ("tone-2.wav", "tone-0.wav", "tone-8.wav"):
        path = f"{manifest.removesuffix('/m')}/audio/{name}"
        streams = hear([load_clip([Segment(path)])])
        clips = {row["segments"][0]["recording"]: row["clip_id"] for row in clip_rows(manifest)}
        stored = cache.read(int(cache.positions([clips[name]])[0]))
        for stream, frames in stored.items():
            assert streams[0][stream].shape == frames.shape
            torch.testing.assert_close(streams[0][stream], frames, atol=2e-2, rtol=0)


def clip_rows(manifest):
    return pq.read_table(f"{manifest}/clips.parquet", columns=["clip_id", "segments"]).to_pylist()
