"""The LLM of a run is no longer in its place. Covers pipelines.runs.spec, pipelines.runs.model."""

import dataclasses

import pytest
from safetensors.torch import load_file, save_file

from llm.tiny import write_tiny_llm
from pipelines.cli import main
from pipelines.errors import UserError
from pipelines.runs.checkpoint import load_run
from pipelines.training.preflight import check_run, describe_run
from tests.pipelines.builders import config_of, train_here


@pytest.fixture(scope="module")
def moved(corpus, tmp_path_factory):
    """A run whose LLM has been renamed, and where it is now."""
    folder = tmp_path_factory.mktemp("moved")
    write_tiny_llm(["high low"], folder / "there")
    config = config_of(corpus, folder / "run", llm=str(folder / "there"))
    train_here(config)
    (folder / "there").rename(folder / "here")
    return config, folder / "here"


@pytest.fixture
def other(moved, tmp_path):
    """The same LLM with one matrix changed."""
    write_tiny_llm(["high low"], tmp_path / "other")
    path = tmp_path / "other" / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "lm_head.weight": weights["lm_head.weight"] * 1.01}, path)
    return tmp_path / "other"


def test_a_run_finds_its_llm_where_it_is_told(moved, other):
    config, here = moved
    with pytest.raises(UserError, match=r"there: .*; llm=… says where"):
        load_run(config.run)
    with pytest.raises(UserError, match=r"another LLM than .*: other weights"):
        load_run(config.run, llm=str(other))
    assert load_run(config.run, llm=str(here)).spec.llm == str(here)


def test_a_stage_starts_from_it_with_the_llm_in_its_new_place_and_no_other(moved, other, tmp_path):
    config, here = moved
    for number, (llm, fault) in enumerate(((here, None), (other, "other weights"))):
        after = dataclasses.replace(config, run=str(tmp_path / str(number)), init_from=config.run, llm=str(llm))
        if fault:
            with pytest.raises(UserError, match=f"another LLM than init_from=.*: {fault}"):
                describe_run(after, check_run(after), pending=())
        else:
            describe_run(after, check_run(after), pending=())


def test_verbs_that_answer_say_what_is_missing(moved, corpus, capsys):
    config, _ = moved
    given = ["evaluate", f"run={config.run}", f"manifest={corpus[0]}", f"cache={corpus[1]}"]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert "llm=… says where the LLM of the run lies now" in error and error.count("\n") == 1
