import numpy as np
import pytest
import torch

from pipelines.batches import epoch_order, global_batch, load_examples, make_batch, micro_batches, read_batch
from pipelines.feature_cache import FeatureCache
from tests.pipelines.test_feature_cache import fill, make_worker, prepare_tones


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A manifest of 12 clips, of which the last is damaged, and its cache."""
    folder = tmp_path_factory.mktemp("corpus")
    manifest = prepare_tones(folder, num_clips=12, damaged=1)
    fill(folder / "c", manifest, make_worker(folder / "c"))
    return manifest, FeatureCache(str(folder / "c"))


def load(corpus, *, splits=(), tasks=(), max_missing_fraction=0.1):
    manifest, cache = corpus
    return load_examples(manifest, cache, splits=splits, tasks=tasks, max_missing_fraction=max_missing_fraction)


def test_every_example_comes_once_an_epoch_in_an_order_of_its_own():
    orders = [epoch_order(100, 7, epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[0], epoch_order(100, 8, 0))
    assert list(orders[0][:5]) == [88, 42, 26, 50, 54], "the order of runs under way has changed"


@pytest.mark.parametrize(("num_examples", "batch"), [(10, 3), (10, 10), (4, 11), (1, 2)])
def test_global_batches_walk_through_the_epochs_without_gap(num_examples, batch):
    steps = [global_batch(s, batch_examples=batch, num_examples=num_examples, seed=1) for s in range(20)]
    walked = [place for step in steps for place in step]
    expected = [(epoch, int(index)) for epoch in range(300) for index in epoch_order(num_examples, 1, epoch)]
    assert all(len(step) == batch for step in steps) and walked == expected[: 20 * batch]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_any_number_of_workers_shares_out_the_same_global_batch(world):
    batch = global_batch(4, batch_examples=23, num_examples=100, seed=0)
    parts = list(enumerate(micro_batches(batch, size=4)))
    shared = sorted((number, part) for rank in range(world) for number, part in parts[rank::world])
    assert [place for _, part in shared for place in part] == batch


def test_rejected_clips_are_left_out_up_to_a_share(corpus):
    examples = load(corpus)
    assert (len(examples), examples.num_missing) == (11, 1)
    with pytest.raises(ValueError, match=r"lacks the features of 1 of 12 examples.*max_missing_fraction=0.05"):
        load(corpus, max_missing_fraction=0.05)


def test_splits_and_tasks_select(corpus):
    assert len(load(corpus, splits=["train"])) == 9
    with pytest.raises(ValueError, match=r"splits=\['dev'\].*splits found: test, train; tasks found: audiocaption"):
        load(corpus, splits=["dev"])
    with pytest.raises(ValueError, match=r"tasks=\['asr'\]"):
        load(corpus, tasks=["asr"])


def test_batch_holds_each_clips_frames_question_and_answer(corpus):
    examples, cache = load(corpus), corpus[1]
    batch = read_batch(examples, cache, [(0, 0), (0, 3)], frames=1500, prompt_seed=None)
    for row, index in enumerate((0, 3)):
        stored = cache.read(int(examples.positions[index]))
        length = len(stored["audio"])
        assert torch.equal(batch.speech[row], stored["speech"])
        assert torch.equal(batch.audio[row, :length], stored["audio"]) and not batch.audio[row, length:].any()
        assert int(batch.audio_frames[row]) == length
    assert batch.answers == ["low", "high"] and batch.questions[0] == batch.questions[1]


def test_heard_frames_are_the_first_ones(corpus):
    cache = corpus[1]
    streams = [cache.read(0), cache.read(1)]
    batch = make_batch(streams, ["?", "?"], ["a", "b"], frames=60)
    assert batch.speech.shape[1] == 60 and torch.equal(batch.speech[1], streams[1]["speech"][:60])
    assert batch.audio_frames.tolist() == [min(60, len(clip["audio"])) for clip in streams]


def test_prompts_vary_in_training_and_do_not_in_evaluation(corpus):
    examples, cache = load(corpus), corpus[1]
    picked = [(epoch, index) for epoch in range(3) for index in range(6)]
    trained = read_batch(examples, cache, picked, frames=60, prompt_seed=1).questions
    assert len(set(trained)) > 1
    assert trained == read_batch(examples, cache, picked, frames=60, prompt_seed=1).questions
    assert len(set(read_batch(examples, cache, picked, frames=60, prompt_seed=None).questions)) == 1
