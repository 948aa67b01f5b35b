import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from pipelines.batches.mix import MIX_DIR, MixRow, load_mix, make_mixture, save_mix
from pipelines.batches.order import epoch_order, global_batch, micro_batches
from pipelines.inference.scoring.tasks import TASKS
from pipelines.training.preflight import open_run
from tests.pipelines.builders import config_of, fill, losses, make_worker, prepare_tones, train_here

THERE = [("asr", "librispeech")] * 50 + [("asr", "gigaspeech")] * 30 + [("aqa", "wavcaps")] * 20 + [("sqa", "own")] * 4


def mixture_of(*rows, split_of=lambda index: "train", splits=("train",)):
    tasks, corpora = zip(*THERE, strict=True)
    table = pa.table({"task": tasks, "corpus": corpora, "split": [split_of(index) for index in range(len(THERE))]})
    return make_mixture([MixRow(**row) for row in rows], table, splits=splits)


def counts(order):
    return Counter(THERE[index] for index in order)


def walk(mixture, *, steps, batch=7, seed=3):
    return [
        place
        for step in range(steps)
        for place in global_batch(step, batch_examples=batch, num_examples=0, seed=seed, mixture=mixture)
    ]


MIX = (
    {"task": "asr", "corpus": "librispeech", "examples": 20},
    {"task": "asr", "corpus": "gigaspeech", "weight": 0.5},
    {"task": "aqa", "weight": 2.0},
)


def test_every_epoch_has_the_shares_of_its_rows():
    mixture = mixture_of(*MIX)
    assert mixture.epoch_examples == 20 + 15 + 40
    for epoch in range(6):
        found = counts(epoch_order(75, 3, epoch, mixture))
        assert found == {("asr", "librispeech"): 20, ("asr", "gigaspeech"): 15, ("aqa", "wavcaps"): 40}


def test_a_row_shows_all_of_its_examples_before_any_of_them_again():
    mixture = mixture_of(*MIX)
    orders = [epoch_order(75, 3, epoch, mixture) for epoch in range(5)]
    for task, epochs, times in (
        (("asr", "gigaspeech"), 2, 1),
        (("aqa", "wavcaps"), 1, 2),
        (("asr", "librispeech"), 5, 2),
    ):
        shown = Counter(int(index) for order in orders[:epochs] for index in order if THERE[index] == task)
        assert len(shown) == THERE.count(task) and set(shown.values()) == {times}


def test_a_changed_weight_changes_shares_and_no_other_rows_examples():
    before, after = (
        mixture_of(*MIX[:2], {"task": "aqa", "weight": weight}, *more)
        for weight, more in ((2.0, ()), (0.4, ({"task": "sqa"},)))
    )
    assert (before.epoch_examples, after.epoch_examples) == (75, 20 + 15 + 8 + 4)
    for epoch in range(3):
        drawn = [
            sorted(int(index) for index in mixture.draw(3, epoch) if THERE[index][0] == "asr")
            for mixture in (before, after)
        ]
        assert drawn[0] == drawn[1]


def test_the_order_depends_on_seed_epoch_and_mix_alone():
    first, again = mixture_of(*MIX), mixture_of(*MIX)
    assert walk(first, steps=40) == walk(again, steps=40) != walk(first, steps=40, seed=4)
    orders = [epoch_order(75, 3, epoch, first) for epoch in range(2)]
    assert not np.array_equal(*orders)
    assert list(orders[0][:6]) == [99, 64, 46, 81, 21, 92], "the order of runs under way has changed"


def test_resuming_at_any_step_goes_on_with_the_very_next_example():
    whole = walk(mixture_of(*MIX), steps=40)
    resumed = global_batch(31, batch_examples=7, num_examples=0, seed=3, mixture=mixture_of(*MIX))
    assert resumed == whole[31 * 7 : 32 * 7]
    assert [epoch for epoch, _ in whole] == [place // 75 for place in range(280)]


@pytest.mark.parametrize("world", [1, 2, 5])
def test_any_number_of_workers_shares_out_the_same_mixed_batch(world):
    batch = global_batch(4, batch_examples=23, num_examples=0, seed=0, mixture=mixture_of(*MIX))
    parts = list(enumerate(micro_batches(batch, [1 + place % 9 for place in range(23)], size=4)))
    assert sorted(place for rank in range(world) for _, part in parts[rank::world] for place in part) == sorted(batch)


def test_without_a_mix_an_epoch_is_the_plain_permutation():
    batches = [global_batch(step, batch_examples=10, num_examples=30, seed=5) for step in range(3)]
    plain = np.random.Generator(np.random.PCG64([5, 0])).permutation(30)
    assert [index for batch in batches for _, index in batch] == plain.tolist()


def test_a_row_without_corpus_takes_the_corpora_that_no_other_row_names():
    mixture = mixture_of({"task": "asr", "corpus": "gigaspeech", "weight": 3.0}, {"task": "asr"})
    assert counts(mixture.draw(0, 0)) == {("asr", "gigaspeech"): 90, ("asr", "librispeech"): 50}


def test_rows_may_have_splits_of_their_own():
    mixture = mixture_of(
        {"task": "asr", "corpus": "librispeech", "splits": ["train-clean-100"]},
        {"task": "asr", "corpus": "gigaspeech"},
        split_of=lambda index: ("train", "dev", "train-clean-100")[index % 3],
    )
    assert [len(share.indices) for share in mixture.shares] == [16, 10]
    assert all(index % 3 == 2 for index in mixture.shares[0].indices)
    assert all(index % 3 == 0 for index in mixture.shares[1].indices)


def test_rows_that_find_nothing_are_told_and_only_a_mix_of_them_is_refused():
    mixture = mixture_of({"task": "sqa"}, {"task": "asr", "corpus": "fisher"})
    assert [row.name for row in mixture.empty] == ["asr of fisher"]
    assert mixture.describe().splitlines() == [
        "an epoch is 4 examples",
        "  100.0%  sqa: 4 from 4",
        "    none  asr of fisher: the manifest has no such example",
        "          100 more are of tasks or corpora that no row names",
    ]
    with pytest.raises(
        ValueError, match="finds no example: it names asr of fisher; there are aqa of wavcaps in train, asr of gig"
    ):
        mixture_of({"task": "asr", "corpus": "fisher"})


def test_a_small_row_is_never_rounded_away():
    assert mixture_of({"task": "sqa", "weight": 0.01}).epoch_examples == 1


def test_shipped_mixes_load_and_name_known_tasks():
    mixes = {path.stem: load_mix(path.stem) for path in MIX_DIR.glob("*.yaml")}
    assert set(mixes) == {"stage1", "stage2", "stage3"}
    assert all(row.task in TASKS for rows in mixes.values() for row in rows)
    assert round(sum(row.examples for row in mixes["stage2"]), -5) == 2_400_000
    assert {TASKS[row.task].level for row in [*mixes["stage1"], *mixes["stage2"]]} == {1}


def test_a_saved_mix_is_read_again_as_it_was(tmp_path):
    rows = load_mix("stage2")
    save_mix(rows, str(tmp_path / "mix.yaml"))
    assert load_mix(str(tmp_path / "mix.yaml")) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("task: asr", "must be a list of rows"),
        ("- asr", "row 1: 'asr' is not a row"),
        ("- {task: asr}\n- {corpus: x}", "row 2: task=… is needed: Task of the row"),
        ("- {task: asr, wieght: 2}", r"row 1: unknown key wieght; did you mean weight\?"),
        ("- {task: asr, weight: 0}", r"row 1: weight=0.0: must be above 0"),
        ("- {task: asr, weight: .nan}", "row 1: weight=nan"),
        ("- {task: asr, examples: -1}", "row 1: examples=-1"),
        ("- {task: asr, weight: much}", "row 1: weight=much: must be a number"),
        ("- {task: asr, corpus: a}\n- {task: aqa}\n- {task: asr, corpus: a}", "row 3: asr of a has a row already"),
        ("- {task: [", "not YAML"),
    ],
)
def test_faulty_mixes_name_the_row(tmp_path, content, message):
    (tmp_path / "m.yaml").write_text(content)
    with pytest.raises(ValueError, match=message) as raised:
        load_mix(str(tmp_path / "m.yaml"))
    assert str(tmp_path / "m.yaml") in str(raised.value)


def test_an_unknown_mix_is_refused_with_those_there_are():
    with pytest.raises(FileNotFoundError, match=r"mix=stage9: .*shipped mix \(stage1, stage2, stage3\)"):
        load_mix("stage9")


def test_a_run_that_learns_a_mix_continues_exactly_and_refuses_another(tmp_path, capsys):
    manifest = prepare_tones(tmp_path, num_clips=12)
    fill(tmp_path / "c", manifest, make_worker(tmp_path / "c"))
    corpus, mix = (manifest, str(tmp_path / "c")), tmp_path / "mix.yaml"
    mix.write_text("- {task: audiocaption, weight: 0.6}\n- {task: asr, corpus: absent}\n")
    train_here(config_of(corpus, tmp_path / "unbroken", mix=str(mix)))
    said = capsys.readouterr().out
    assert "an epoch is 5 examples" in said and "none  asr of absent" in said
    shutil.copytree(tmp_path / "unbroken", tmp_path / "run")
    for step in (4, 6):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"{step:06d}")
    train_here(config_of(corpus, tmp_path / "run", mix=str(mix)))
    assert losses(tmp_path / "run") == losses(tmp_path / "unbroken")
    mix.write_text("- {task: audiocaption, weight: 0.7}\n- {task: asr, corpus: absent}\n")
    with pytest.raises(ValueError, match=r"another mix than mix=.*: row 1\.weight is 0\.6 there and 0\.7 here"):
        open_run(config_of(corpus, tmp_path / "run", mix=str(mix)), pending=[])
    with pytest.raises(ValueError, match=r"another mix than mix=: row 1"):
        open_run(config_of(corpus, tmp_path / "run"), pending=[])
