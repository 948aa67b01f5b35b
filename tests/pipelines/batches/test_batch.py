"""Covers pipelines.batches.example_set, pipelines.batches.micro_batch, pipelines.batches.order."""

from itertools import chain

import numpy as np
import pyarrow as pa
import pytest
import torch

from encoders.features import Heard
from pipelines.batches.batch import make_batch, read_batch, read_texts
from pipelines.batches.example_set import ExampleSet, load_examples
from pipelines.batches.order import ShardOrder, epoch_order, global_batch, micro_batches
from pipelines.cache.reader import FeatureCache
from tests.pipelines.builders import fill, make_worker, prepare_tones


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
    parts = list(enumerate(micro_batches(batch, draw_lengths(23, seed=0), size=4)))
    shared = [place for rank in range(world) for _, part in parts[rank::world] for place in part]
    assert sorted(shared) == sorted(batch)


@pytest.mark.parametrize("num_shards", [7, 100])
def test_order_by_shards_holds_every_example_once_and_few_shards_at_a_time(num_shards):
    rng = np.random.Generator(np.random.PCG64(0))
    shards = ShardOrder(rng.integers(0, num_shards, size=1_000), window=4)
    first, second = (epoch_order(1_000, 5, epoch, None, shards) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(1_000))
    ends = [np.flatnonzero(shards.numbers[first] == shard)[[0, -1]] for shard in range(num_shards)]
    open_at = [sum(begin <= place <= end for begin, end in ends) for place in range(1_000)]
    assert max(open_at) <= 4
    assert (first != second).any() and shards.numbers[first[0]] != shards.numbers[second[0]]
    assert (np.diff(first) == 1).mean() < 0.05  # shuffled within the window


def test_order_by_shards_does_not_depend_on_shards_without_examples():
    numbers = np.array([5, 0, 0, 9, 5, 2, 9])
    assert ShardOrder.of(numbers, 2).numbers.tolist() == [2, 0, 0, 3, 2, 1, 3]
    assert ShardOrder.of(numbers * 3 + 1, 2).numbers.tolist() == [2, 0, 0, 3, 2, 1, 3]
    table = pa.table({"example_id": list("abcdefg")})
    digests = [
        ExampleSet(table, numbers, table, shards=ShardOrder.of(each, 2)).digest for each in (numbers, 9 - numbers)
    ]
    assert len({*digests, ExampleSet(table, numbers, table).digest}) == 3


def draw_lengths(num_examples, *, seed):
    """Tokens of examples of mixed tasks: 88 of audio, the prompt's, and answers of very unequal length."""
    rng = np.random.Generator(np.random.PCG64(seed))
    answers = {"asr": (15, 80), "translation": (20, 80), "caption": (8, 25), "qa": (1, 30), "label": (1, 3)}
    tasks = rng.choice([*answers, "story"], num_examples, p=[0.33, 0.13, 0.03, 0.28, 0.22, 0.01])
    return [
        88 + int(rng.integers(20, 34) + rng.integers(*(answers | {"story": (150, 300)})[task], endpoint=True))
        for task in tasks
    ]


@pytest.mark.parametrize(("num_examples", "size"), [(64, 8), (256, 16), (48, 4)])
def test_micro_batches_have_the_same_number_of_tokens_and_examples(num_examples, size):
    """So that a worker waits for the slowest less than a twentieth of the time; cut in order, it would a quarter."""
    dealt, in_order = [], []
    for seed in range(20):
        lengths = draw_lengths(num_examples, seed=seed)
        places = [(0, place) for place in range(num_examples)]
        parts = micro_batches(places, lengths, size=size)
        assert {len(part) for part in parts} == {size} and sorted(chain(*parts)) == places
        sums = [sum(lengths[place] for _, place in part) for part in parts]
        dealt.append(np.mean(sums) / max(sums))
        longest = [max(lengths[first : first + size]) for first in range(0, num_examples, size)]
        in_order.append(np.mean(lengths) / max(longest))
    assert np.mean(dealt) > 0.95 and np.mean(in_order) < 0.75


def test_micro_batches_depend_on_the_global_batch_alone():
    batch = global_batch(3, batch_examples=10, num_examples=50, seed=2)
    lengths = [30, 10, 10, 20, 10, 50, 10, 10, 10, 10]
    parts = micro_batches(batch, lengths, size=4)
    assert parts == micro_batches(batch, lengths, size=4)
    dealt = [[lengths[batch.index(place)] for place in part] for part in parts]
    assert dealt == [[50, 10], [30, 10, 10, 10], [10, 20, 10, 10]]
    assert [batch.index(part[0]) for part in micro_batches(batch, [7] * 10, size=4)] == [0, 1, 2]


def test_rejected_clips_are_left_out_up_to_a_share(corpus):
    examples = load(corpus)
    assert (len(examples), examples.missing.num_rows) == (11, 1)
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
    batch = read_batch(examples, cache, [(0, 0), (0, 3)], heard=Heard(1500), prompt_seed=None)
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
    batch = make_batch(streams, ["?", "?"], ["a", "b"], heard=Heard(60))
    assert batch.speech.shape[1] == 60 and torch.equal(batch.speech[1], streams[1]["speech"][:60])
    assert batch.audio_frames.tolist() == [min(60, len(clip["audio"])) for clip in streams]


def test_texts_are_those_of_the_batch(corpus):
    examples, cache = load(corpus), corpus[1]
    picked = [(2, 4), (0, 1), (1, 1)]
    batch = read_batch(examples, cache, picked, heard=Heard(60), prompt_seed=5)
    assert read_texts(examples, picked, prompt_seed=5) == list(zip(batch.questions, batch.answers, strict=True))


def test_prompts_vary_in_training_and_do_not_in_evaluation(corpus):
    examples, cache = load(corpus), corpus[1]
    picked = [(epoch, index) for epoch in range(3) for index in range(6)]
    trained = read_batch(examples, cache, picked, heard=Heard(60), prompt_seed=1).questions
    assert len(set(trained)) > 1
    assert trained == read_batch(examples, cache, picked, heard=Heard(60), prompt_seed=1).questions
    assert len(set(read_batch(examples, cache, picked, heard=Heard(60), prompt_seed=None).questions)) == 1
