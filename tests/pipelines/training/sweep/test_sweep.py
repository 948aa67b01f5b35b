"""Covers pipelines.training.sweep.config, pipelines.training.sweep.early, pipelines.training.sweep.figures,
pipelines.training.sweep.process, pipelines.training.sweep.report,
pipelines.training.sweep.results, pipelines.training.sweep.space, pipelines.training.sweep.trial,
pipelines.training.sweep.watch.
"""

import io
import json
import math
import os
import re
import shlex
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from html import unescape
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from pipelines.cli import main
from pipelines.errors import JobIncompleteError
from pipelines.inference.config import EvaluateConfig
from pipelines.inference.evaluate import evaluate
from pipelines.interface.config import load_config
from pipelines.interface.progress import Progress
from pipelines.manifest.corpora.table import TableConfig, prepare_table
from pipelines.runs.checkpoint import load_run
from pipelines.runs.config import RunsListConfig
from pipelines.runs.folder import best_checkpoint, complete_steps
from pipelines.runs.metrics import read_metrics
from pipelines.runs.summary import runs_list
from pipelines.training.config import TrainConfig
from pipelines.training.monitoring.curves import scalars_of
from pipelines.training.preflight import open_run
from pipelines.training.sweep.config import SweepConfig, plan_trials
from pipelines.training.sweep.pool import Pool
from pipelines.training.sweep.report import write_sweep_report
from pipelines.training.sweep.results import TrialResult, ranked, read_result
from pipelines.training.sweep.space import draws
from pipelines.training.sweep.sweep import SPEEDS, metric_names, sweep
from pipelines.training.sweep.trial import WORST, Goal
from pipelines.training.worker.loop import TrainWorker
from tests import ROOT
from tests.pipelines.builders import fill, losses, make_worker, train_here, valid_losses
from tests.toy import write_tone_corpus

SMALL = ["heard_seconds=2", "qformer.hidden_width=32", "qformer.num_heads=2", "qformer.ffn_width=64", "threads=2"]
SHORT = ["steps=6", "batch_examples=8", "log_every=1", "checkpoint_every=2", "keep_checkpoints=9"]
OPTIM = ["optim.lr=3e-3", "optim.warmup_steps=1", "optim.min_lr=1e-4", "optim.warmup_lr=1e-4"]
HELD_OUT = ["valid_splits=[test]", "valid_every=2"]


@pytest.fixture(scope="module", autouse=True)
def threads_as_before() -> Iterator[None]:
    """Trials, and what they are compared with, are trained by two threads."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    """The keys that name a manifest of 12 tones of two tasks, a quarter of them held out, and its cache."""
    folder = tmp_path_factory.mktemp("corpus")
    corpus = write_tone_corpus(folder)
    rows = [json.loads(line) for line in (corpus / "table.jsonl").read_text().splitlines()]
    rows = [row | {"task": ("asr", "audiocaption")[number // 4 % 2]} for number, row in enumerate(rows)]
    (corpus / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table, manifest = str(corpus / "table.jsonl"), str(folder / "m")
    prepare_table(TableConfig(table=table, audio_root=str(corpus / "audio"), out=manifest))
    fill(folder / "c", manifest, make_worker(folder / "c"))
    return [f"manifest={manifest}", f"cache={folder / 'c'}", "llm=tiny"]


def config_of(data, folder, *words) -> SweepConfig:
    return load_config(SweepConfig, [*data, *SMALL, *SHORT, *OPTIM, *HELD_OUT, f"sweep={folder}", *words])


def values_of(*words) -> list[dict]:
    """What the trials of a sweep with these keys differ in."""
    return [dict(trial.values) for trial in plan_trials(config_of(["manifest=m", "cache=c", "llm=l"], "s", *words))]


def test_a_grid_is_every_combination_whatever_the_order_of_its_keys():
    expected = [
        {"lora.rank": rank, "optim.lr": lr, "seed": seed} for rank in (4, 8) for lr in (1e-3, 3e-3) for seed in (0, 1)
    ]
    words = ["grid.lora.rank=[4,8]", "grid.optim.lr=[1e-3,3e-3]", "grid.seed=[0,1]"]
    assert values_of(*words) == values_of(*reversed(words)) == expected


def test_a_trial_is_the_train_config_with_its_values(tmp_path):
    config = config_of(["manifest=/m", "cache=/c", "llm=tiny"], tmp_path, "grid.optim.lr=[3e-3,1e-3]", "seed=7")
    trials = plan_trials(config)
    assert [trial.config.run for trial in trials] == [f"{tmp_path}/trials/0000", f"{tmp_path}/trials/0001"]
    assert [trial.config.optim.lr for trial in trials] == [3e-3, 1e-3]
    shared = {field.name: getattr(config, field.name) for field in fields(TrainConfig)}
    assert trials[0].config == TrainConfig(
        **shared | {"run": f"{tmp_path}/trials/0000", "optim": trials[0].config.optim}
    )


def test_draws_are_pinned_and_more_of_them_begin_alike():
    words = ["random.optim.lr={low: 1e-4, high: 1e-2, log: true}", "random.lora.rank=[2,4,8]"]
    eight = values_of(*words, "num_trials=8")
    assert values_of(*words, "num_trials=3") == eight[:3]
    assert [(values["lora.rank"], values["optim.lr"]) for values in eight[:3]] == [
        (4, 0.0002326),
        (2, 0.0001197),
        (8, 0.0001719),
    ]
    assert values_of(*words, "num_trials=3", "sweep_seed=1") != eight[:3]
    assert values_of(words[0], "num_trials=8") == [{"optim.lr": values["optim.lr"]} for values in eight]


def test_draws_fill_their_ranges_evenly():
    space = {"optim.lr": {"low": 1e-4, "high": 1e-2, "log": True}, "lora": {"rank": {"low": 2, "high": 5}}}
    drawn = draws({**space, "qformer.dropout": {"low": 0, "high": 0.5}}, TrainConfig, count=4000, seed=0)
    ranks, rates = ([values[key] for values in drawn] for key in ("lora.rank", "optim.lr"))
    assert all(abs(ranks.count(rank) - 1000) < 150 for rank in (2, 3, 4, 5))
    assert all(isinstance(rank, int) for rank in ranks)
    assert abs(sum(rate < 1e-3 for rate in rates) - 2000) < 150
    assert all(1e-4 <= rate <= 1e-2 and rate == float(f"{rate:.4g}") for rate in rates)
    assert abs(sum(values["qformer.dropout"] < 0.25 for values in drawn) - 2000) < 150


def test_every_draw_meets_every_point_of_the_grid():
    drawn = values_of("random.seed={low: 0, high: 1000}", "num_trials=3", "grid.lora.rank=[4,8]")
    assert [values["lora.rank"] for values in drawn] == [4, 8] * 3
    seeds = [values["seed"] for values in drawn]
    assert seeds[0::2] == seeds[1::2] and len(set(seeds)) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "grid.KEY=[…] or random.KEY=… is needed"),
        (["grid.optim.learning_rate=[1]"], "grid.optim.learning_rate: unknown key; did you mean optim.min_lr?"),
        (["random.lr=[1]"], "random.lr: unknown key"),
        (["grid.optim.lr=[]"], "grid.optim.lr=[]: must be a list of values to try"),
        (["grid.optim.lr=1e-3"], "grid.optim.lr=0.001: must be a list"),
        (["grid.optim=[1]"], "grid.optim: holds several keys"),
        (["grid.optim.lr=[fast]"], "trial 0 (optim.lr=fast): optim.lr=fast: must be a number"),
        (["grid.optim.lr=[1e-3,1e-9]"], "trial 1 (optim.lr=1e-09): optim: warmup_lr and min_lr must lie between"),
        (["grid.steps=[6,0]"], "trial 1 (steps=0): steps=0: must be 1 or more"),
        (["random.optim.lr={low: 1e-3}"], "low and high must be numbers"),
        (["random.optim.lr={low: 0, high: 1, log: true}"], "and above 0 for a logarithm"),
        (["random.lora.rank={low: 1.5, high: 3}"], "low and high must be whole numbers"),
        (["random.llm={low: 1, high: 3}"], "a range is for numbers"),
        (["random.optim.lr={low: 1, hihg: 3}"], "a range has low, high and log"),
        (["random.optim.lr=3"], "must be a list of choices or"),
        (["grid.seed=[0,1]", "random.seed=[2]"], "seed is given both as grid.seed and as random.seed"),
        (["grid.run=[a,b]"], "run cannot be swept"),
        (["grid.seed=[0,1]", "num_trials=3"], "num_trials=3: there is nothing to draw"),
        (["grid.seed=[0,1]", "workers=2"], "workers=2: a trial is trained by one worker"),
        (["grid.seed=[0,1]", "run=r"], "run=r: the trials' runs lie in the sweep's folder"),
        (["grid.seed=[0,1]", "metric=valid_los"], "metric=valid_los: lines of metrics will have loss, "),
        (
            ["grid.seed=[0,1]", "valid_every=0"],
            "metric=valid_loss: nothing is held out; give valid_splits=[…] and valid_every=…, or metric=loss; lines of",
        ),
        (["grid.valid_every=[2,0]"], "trial 1 (valid_every=0): metric=valid_loss"),
        (["grid.splits=[[train],[dev]]"], "trial 1 (splits=[dev]): "),
        (["grid.tasks=[[asr],[]]"], "trial 1 (tasks=[]): is judged by other held-out examples than trial 0"),
        (
            ["grid.tasks=[[asr],[audiocaption]]", "metric=valid_loss_by_task/asr"],
            "trial 1 (tasks=[audiocaption]): metric=",
        ),
        (["grid.seed=[0,1]", "stop_early.grace_steps=7"], "stop_early.grace_steps=7: no trial has so many steps"),
        (["grid.seed=[0,1]", "stop_early.reduction=1"], "reduction=1.0: must be above 1"),
        (
            ["grid.precision=[float32,bfloat16]", "trials_per_process=2"],
            "precision cannot be swept with trials_per_process=2: those share an LLM",
        ),
        (["grid.seed=[0,1]", "gpus_per_process=0"], "gpus_per_process=0.0: must be"),
    ],
)
def test_wrong_keys_give_one_line_before_anything_starts(data, tmp_path, words, message, monkeypatch, capsys):
    monkeypatch.setattr("pipelines.training.sweep.sweep.connect", lambda config: pytest.fail("a cluster was asked for"))
    keys = [*data, *SMALL, *SHORT, *OPTIM, *HELD_OUT, f"sweep={tmp_path / 'sweep'}"]
    assert main(["sweep", *keys, *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    assert not (tmp_path / "sweep").exists()


def open_only(words, monkeypatch) -> int:
    """Begin a sweep as it is typed, up to where a cluster is asked for; return its exit code."""

    def connect(config):
        raise JobIncompleteError("all is opened")

    monkeypatch.setattr("pipelines.training.sweep.sweep.connect", connect)
    return main(["sweep", *words])


def test_the_readmes_sweep_starts_from_a_run(data, tmp_path, monkeypatch, capsys):
    (command,) = re.findall(r"^\$ salmonn sweep (?:.*\\\n)*.*", (ROOT / "docs/training.md").read_text(), re.MULTILINE)
    train_here(load_config(TrainConfig, [*data, *SMALL, *SHORT, *OPTIM, f"run={tmp_path / 'before'}"]))
    here = ["mix=", "valid_splits=[test]", f"init_from={tmp_path / 'before'}", f"sweep={tmp_path / 'sweep'}"]
    words = shlex.split(command.replace("\\\n", ""))[3:]
    assert open_only([*words, *data, *SMALL, *here], monkeypatch) == 1, capsys.readouterr().err
    assert len(list(tmp_path.glob("sweep/trials/*/run.json"))) == 16


def test_a_sweep_that_goes_on_is_judged_by_the_same_examples(data, tmp_path, monkeypatch, capsys):
    shutil.copytree(data[0].partition("=")[2], tmp_path / "m")
    table = pq.read_table(tmp_path / "m" / "examples.parquet")
    splits = ["dev" if number == 3 else split for number, split in enumerate(table["split"].to_pylist())]
    place = table.schema.get_field_index("split")
    pq.write_table(table.set_column(place, table.schema.field("split"), [splits]), tmp_path / "m" / "examples.parquet")
    shared = [*data, *SMALL, *SHORT, *OPTIM, "valid_every=2", f"manifest={tmp_path / 'm'}", f"sweep={tmp_path / 's'}"]
    words = [*shared, "random.seed={low: 0, high: 9}"]
    assert open_only([*words, "valid_splits=[test]"], monkeypatch) == 1
    assert open_only([*words, "valid_splits=[test]", "num_trials=2", "metric=valid_loss_by_task/asr"], monkeypatch) == 1
    capsys.readouterr()
    for metric in ("valid_loss", "valid_loss_by_task/asr"):
        assert open_only([*words, "valid_splits=[dev]", "num_trials=3", f"metric={metric}"], monkeypatch) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "valid_splits=['dev']: trials in" in error
    assert not (tmp_path / "s" / "trials" / "0002").exists()
    assert open_only([*words, "valid_splits=[dev]", "num_trials=3", "metric=loss"], monkeypatch) == 1


def test_what_trials_can_be_ranked_by_is_what_lines_of_metrics_have(data, tmp_path):
    (trial,) = plan_trials(config_of(data, tmp_path, "grid.seed=[0]", "steps=2"))
    train_here(trial.config)
    shown = scalars_of(read_metrics(trial.config.run)[-1])
    tasks = ["asr", "audiocaption"]
    counts = ("examples_by_task/", "seconds_by_part/")
    assert {*metric_names(tasks, tasks), "lr"} == {name for name in shown if not name.startswith(counts)}
    assert set(SPEEDS) < set(metric_names(tasks, None)) < set(metric_names(tasks, tasks))


def test_lines_come_once_they_are_saved_and_end_where_no_more_are_wanted(data, tmp_path):
    (trial,) = plan_trials(config_of(data, tmp_path, "grid.seed=[0]"))
    run = trial.config.run
    open_run(trial.config, pending=[])
    lines = TrainWorker(trial.config, 0, 1, torch.device("cpu")).lines()
    for step in (1, 2, 3):
        line, saved = next(lines), read_metrics(run)[-1]  # which says when and where, too
        assert saved == saved | line and saved["step"] == step
    lines.close()
    assert len(read_metrics(run)) == 3 and complete_steps(run) == [2]


GOOD, BAD = "1e-3,3e-3", "1e30"
TRIED = ["grid.seed=[0,1]", "max_skipped_steps=2", "trials_per_process=2"]


@dataclass(frozen=True)
class Swept:
    """A sweep of six trials, two by turns in each process.

    One was interrupted before, the process of two is killed, two fail (losses not finite).
    """

    config: SweepConfig
    error: str
    processes: set[int]


@pytest.fixture(scope="module")
def swept(data, tmp_path_factory, ray_session) -> Swept:
    config = config_of(data, tmp_path_factory.mktemp("sweep") / "lr=1 2", f"grid.optim.lr=[{GOOD},{BAD}]", *TRIED)
    interrupted = plan_trials(config)[1].config
    train_here(interrupted)
    for step in (4, 6):
        shutil.rmtree(Path(interrupted.run) / "checkpoints" / f"{step:06d}")
    pids: dict[object, int] = {}
    killed: list[int] = []
    go_on = Pool._go_on

    def spy(self, call, answer):
        go_on(self, call, answer)
        if call.number < 0:
            pids[call.process] = answer
        elif not killed and answer["step"] == 3:
            killed.append(pids[call.process])
            os.kill(killed[0], signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(JobIncompleteError) as raised:
        patch.setattr(Pool, "_go_on", spy)
        sweep(config)
    return Swept(config, str(raised.value), set(pids.values()))


@pytest.mark.ray
def test_trials_are_what_each_variant_is_when_trained_by_itself(swept, tmp_path):
    for trial in plan_trials(swept.config)[:4]:
        alone = replace(trial.config, run=str(tmp_path / str(trial.number)))
        train_here(alone)
        assert losses(trial.config.run) == losses(alone.run) and valid_losses(trial.config.run) == valid_losses(
            alone.run
        )
        for name in ("aligner.safetensors", "adapter/adapter_model.safetensors"):
            ours, theirs = (
                load_file(Path(run) / "checkpoints" / "000006" / name) for run in (trial.config.run, alone.run)
            )
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.ray
def test_a_process_trains_one_trial_after_another(swept):
    assert len(swept.processes) <= 4  # three for the six, and one in the killed one's place


@pytest.mark.ray
def test_failed_trials_are_named_with_their_reasons_and_the_rest_is_done(swept):
    assert swept.error.startswith(f"{swept.config.sweep}: 2 of 6 trials are not done: trial ")
    for number, seed in ((4, 0), (5, 1)):
        assert (
            f"trial {number} (optim.lr=1e+30, seed={seed}): {swept.config.sweep}/trials/000{number}: loss"
            in swept.error
        )
    assert swept.error.count("not finite in 2 steps in a row") == 2


@pytest.mark.ray
def test_table_and_page_say_what_the_run_folders_say(swept, capsys):
    found = json.loads((Path(swept.config.sweep) / "sweep.json").read_text())
    assert (found["metric"], found["mode"]) == ("valid_loss", "min")
    scores = [row["score"] for row in found["trials"][:4]]
    assert scores == sorted(scores)
    for row in found["trials"][:4]:
        assert (row["best_step"], row["score"]) == best_checkpoint(row["run"])
        assert (row["ending"], row["step"], row["steps"]) == ("complete", 6, 6)
    assert [row["ending"] for row in found["trials"][4:]] == ["failed"] * 2
    page = unescape((Path(swept.config.sweep) / "sweep.html").read_text())
    assert page.count("data:image/png") == 2 and f"{scores[0]:.4f}" in page and "not finite in 2 steps" in page
    assert f"salmonn sweep '{swept.config.sweep}/sweep.yaml' continues" in page


@pytest.mark.ray
def test_finished_trials_are_not_repeated_and_the_saved_config_runs_again(swept, monkeypatch, capsys):
    monkeypatch.setattr("pipelines.training.sweep.sweep.connect", lambda config: pytest.fail("a cluster was asked for"))
    saved = str(Path(swept.config.sweep) / "sweep.yaml")
    assert load_config(SweepConfig, [saved]) == swept.config
    before = {path: path.stat().st_mtime_ns for path in Path(swept.config.sweep).glob("trials/*/*.json*")}
    assert main(["sweep", saved, f"grid.optim.lr=[{GOOD}]"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    shown = capsys.readouterr().out
    assert "4 trials, 0 of them to do" in shown and shown.count("complete") == 4


@pytest.mark.ray
def test_trials_are_runs_like_any_other(swept, data, tmp_path):
    found = runs_list(RunsListConfig(runs=f"{swept.config.sweep}/trials"))
    assert [(summary.name, summary.step) for summary in found[:4]] == [(f"000{number}", 6) for number in range(4)]
    manifest, cache = (word.partition("=")[2] for word in data[:2])
    scores = evaluate(
        EvaluateConfig(
            run=f"{swept.config.sweep}/trials/0002",
            manifest=manifest,
            cache=cache,
            out=str(tmp_path),
            num_beams=1,
            max_new_tokens=3,
        )
    )
    assert [score.task for score in scores] == ["asr", "audiocaption"]


@pytest.mark.ray
def test_a_folder_of_other_trials_is_refused(swept, capsys):
    saved = str(Path(swept.config.sweep) / "sweep.yaml")
    assert main(["sweep", saved, "grid.optim.lr=[1e-3,2e-3]"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "trial 2 (optim.lr=0.002, seed=0)" in error
    assert "holds a run with another config: optim.lr is 0.003 there and 0.002 here" in error


@pytest.mark.ray
def test_a_bad_trial_is_stopped_early_and_keeps_its_best_checkpoint(data, tmp_path, ray_session, monkeypatch, capsys):
    slow = ["optim.min_lr=0", "optim.warmup_lr=0", "grid.optim.lr=[3e-3,1e-7]"]
    config = config_of(
        data, tmp_path, *slow, "stop_early.grace_steps=2", "stop_early.reduction=2", "trials_per_process=2"
    )
    good, bad = plan_trials(config)
    train_here(good.config)
    progress, terminal = Progress(), Console(file=io.StringIO(), force_terminal=True, width=200)
    monkeypatch.setattr(progress, "_console", terminal)
    first, second = sweep(config, progress)
    assert "2 of 2 trials done, 1 of them early, 0 running, best valid_loss" in terminal.file.getvalue()
    assert (first.number, first.ending, first.step) == (0, "complete", 6)
    assert (second.number, second.ending, second.step) == (1, "stopped early", 2)
    assert complete_steps(bad.config.run) == [2] and best_checkpoint(bad.config.run) == (2, second.score)
    assert load_run(bad.config.run, checkpoint="best").step == 2
    assert "stopped early" in capsys.readouterr().out
    monkeypatch.setattr("pipelines.training.sweep.sweep.connect", lambda config: pytest.fail("a cluster was asked for"))
    assert sweep(config) == [first, second]


def test_a_trial_is_ranked_by_its_best_line_and_one_without_a_number_last(data, tmp_path):
    (trial,) = plan_trials(config_of(data, tmp_path, "grid.seed=[0]"))
    assert read_result(trial, Goal("valid_loss", "min")).score is None
    train_here(trial.config)
    found = valid_losses(trial.config.run)
    lowest, highest = (read_result(trial, Goal("valid_loss", mode)) for mode in ("min", "max"))
    assert (lowest.score, lowest.best_step) == (min(found), 2 + 2 * found.index(min(found)))
    assert (highest.score, highest.best_step) == (max(found), 2 + 2 * found.index(max(found)))
    assert Goal("valid_loss", "min").score({"valid_loss": math.nan}) == -Goal("valid_loss", "max").score(
        {"valid_loss": math.nan}
    )
    assert Goal("valid_loss", "min").score({"loss": 1.0}) is None


@pytest.mark.parametrize(
    ("endings", "named"), [(["failed", "complete"], "trial 1"), (["failed", "unfinished"], "trial 0 (failed)")]
)
def test_the_best_trial_has_ended_where_one_has(tmp_path, endings, named):
    results = [
        TrialResult(number, "run", {"seed": number}, 1.0 + number, 2, 2, 4, 1.0, ending, "", [(2, 1.0 + number)])
        for number, ending in enumerate(endings)
    ]
    page, goal = tmp_path / "x.html", Goal("loss", "min")
    write_sweep_report(str(page), ranked(results, goal), goal, log_keys=(), command="again")
    assert f"loss of {named}<" in page.read_text() and f"{named.capitalize()} with seed=" in page.read_text()


@pytest.mark.parametrize(
    ("values", "scores", "pictures"),
    [
        ([1e-4, 1e-3, 1e-2], [1.2, 1.1, 9.0], 2),
        (["[asr]", "[]", "[asr]"], [1.2, 1.1, WORST], 2),
        ([True, 1, None], [1.2, -1.1, 0.0], 2),
        ([1e-3], [1.2], 2),
        ([1e-4, 1e-3], [None, None], 0),
        ([1e-4, 1e-3], [WORST, None], 0),
    ],
)
def test_page_draws_what_there_is(tmp_path, values, scores, pictures):
    results = [
        TrialResult(
            number,
            "run",
            {"key": value},
            score,
            2,
            2,
            4,
            1.0,
            "stopped early",
            "",
            [] if score is None else [(2, score)],
        )
        for number, (value, score) in enumerate(zip(values, scores, strict=True))
    ]
    goal = Goal("valid_loss_by_task/a$b$c", "min")
    page = tmp_path / "x.html"
    write_sweep_report(str(page), ranked(results, goal), goal, log_keys={"key"}, command="again")
    assert page.read_text().count("data:image/png") == pictures
    assert page.read_text().count("not finite") == scores.count(WORST)
