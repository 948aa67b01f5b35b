"""Covers pipelines.operations.config."""

from dataclasses import fields, replace

import pytest

from pipelines.cli import VERBS, main
from pipelines.interface.config import load_config
from pipelines.operations.config import SubmitExtractConfig, SubmitSweepConfig, SubmitTrainConfig
from pipelines.operations.work import (
    SUBMITTED,
    command_of,
    name_of,
    own_config,
    required_packages,
    verb_of,
    wanted_of,
    words_of,
)
from tests import ROOT

DATA = ["manifest=/d/m", "cache=/d/c"]
CALLS = {
    "extract": [*DATA, "whisper=tiny", "beats=/w/BEATs ’größe’.pt", "max_reject_fraction=1e-7", "limits.max_tries=7"],
    "train": ["stage1", *DATA, "runs=s3://b/runs?region=x", "llm=lmsys/vicuna-13b-v1.1", "splits=[no,007,'a,b']"],
    "sweep": ["tiny", *DATA, "sweep=/d/s", "llm=tiny", "grid.optim.lr=[1e-4,3e-4]", "random.seed=[0,1]"],
    "evaluate": ["run=/d/run", *DATA, "splits=[]", "tasks=[asr]", "num_beams=1"],
}


def config_of(verb, *words):
    return load_config(VERBS[f"submit {verb}"].load_config_type(), [*CALLS[verb], *words])


@pytest.mark.parametrize("verb", CALLS)
def test_the_words_that_are_sent_make_the_same_config(verb):
    own = own_config(config_of(verb, "address=http://h:1", "retries=2"))
    assert verb_of(config_of(verb)).name == verb
    assert load_config(VERBS[verb].load_config_type(), words_of(own)) == own
    assert type(own) is VERBS[verb].load_config_type()


@pytest.mark.parametrize("verb", CALLS)
def test_a_submitted_verb_has_all_keys_of_the_verb_and_none_twice(verb):
    config_type = VERBS[f"submit {verb}"].load_config_type()
    own = {key.name for key in fields(VERBS[verb].load_config_type())}
    extra = {key.name for key in fields(config_type)} - own
    assert extra == {
        "address",
        "folder",
        "skip",
        "retries",
        "again",
        "stop_on_interrupt",
        "silence_seconds",
    }


def test_the_name_is_that_of_the_work(tmp_path):
    def name(*words):
        return name_of("extract", words_of(own_config(load_config(SubmitExtractConfig, words))))

    keys = ["manifest=/d/m", "cache=/d/c", "whisper=tiny", "beats=tiny"]
    (tmp_path / "c.yaml").write_text("whisper: tiny\nbeats: tiny\ncodec: float16\n")
    assert name(*keys) == name(*reversed(keys)) == name(*keys[:2], str(tmp_path / "c.yaml"))
    assert name(*keys) == name(*keys, "retries=3", "address=http://other:1", "workers=0")
    assert name(*keys) != name(*keys, "codec=int8")
    assert name(*keys) != name_of("train", words_of(own_config(load_config(SubmitExtractConfig, keys))))


def test_relative_paths_are_sent_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = own_config(load_config(SubmitExtractConfig, ["manifest=m", "cache=../c", "whisper=tiny", "beats=none"]))
    assert (own.manifest, own.cache, own.whisper) == (str(tmp_path / "m"), str(tmp_path.parent / "c"), "tiny")


def test_the_command_is_one_for_a_shell():
    assert command_of("ask", ["question=it's $HOME?"]) == "exec python -m pipelines ask 'question=it'\"'\"'s $HOME?'"


def test_what_is_wanted_of_the_nodes():
    wanted = wanted_of(config_of("extract", "workers=4", "threads=2", "device=cuda", "skip=[room]", f"folder={ROOT}"))
    assert (wanted.reads, wanted.writes) == (["/d/m", "/w/BEATs ’größe’.pt"], ["/d/c"])
    assert (wanted.actors, wanted.cpus, wanted.device) == (4, 2, "cuda")
    assert wanted.checks == ["paths", "packages"]
    train = load_config(SubmitTrainConfig, [*CALLS["train"], "workers=8", "min_workers=2", f"folder={ROOT}"])
    assert (wanted_of(train).actors, wanted_of(train).writes) == (2, [])
    sweep = load_config(SubmitSweepConfig, [*CALLS["sweep"], "gpus_per_process=0.5", f"folder={ROOT}"])
    assert (wanted_of(sweep).gpus, wanted_of(sweep).writes) == (0.5, ["/d/s"])
    evaluate = wanted_of(config_of("evaluate", f"folder={ROOT}"))
    assert (evaluate.actors, evaluate.gpus) == (1, 1.0) and evaluate.writes[0] == evaluate.reads[0]
    assert wanted_of(replace(sweep, skip=["paths", "packages", "room"])).checks == []


def test_the_packages_are_those_of_the_project():
    packages = required_packages(ROOT)
    assert {"ray", "torch", "transformers", "pyarrow"} <= set(packages)
    assert all(name.replace("-", "").isalnum() for name in packages)


def test_each_submitted_verb_has_its_config_type():
    assert {verb.name for verb in SUBMITTED} == set(CALLS)
    assert all(VERBS[verb.name].load_config_type() is verb.config_type for verb in SUBMITTED)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["skip=[path]"], "skip=path: must be some of paths, packages, room"),
        (["retries=-1"], "retries=-1: must be 0 or more"),
        (["retrys=1"], "unknown key retrys; did you mean retries"),
        (["workers=-1"], "workers=-1: must be 0 or more"),
        (["folder=/nowhere"], "folder=/nowhere: no checkout of this project"),
        (["address=head:8265"], "must be http://HOST:PORT"),
    ],
)
def test_mistakes_are_named_before_anything_is_sent(words, message, capsys):
    assert main(["submit", "extract", *CALLS["extract"], *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
