import sys

import pytest
import torch

from benchmarks.gpu_train_step import main
from tests import ROOT
from tests.sources import OURS, imports_of


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["gpu_train_step", *words])
    main()


def test_small_models_go_through_every_measurement(monkeypatch, capsys):
    run(monkeypatch, "--tiny", "--rounds", "1", "--examples", "2", "--trials", "2")
    printed = capsys.readouterr().out
    rows = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("| ")]
    assert rows[:4] == ["step", "cached features", "cached, gradient checkpointing", "encoders in every step"]
    assert rows[4] == "cached features, 2 trials by turns over one LLM" and "aten::mm" in printed
    assert "extraction" in printed and "per step" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_nothing_is_measured(monkeypatch):
    with pytest.raises(SystemExit, match="no CUDA device here"):
        run(monkeypatch)


@pytest.mark.parametrize("program", sorted((ROOT / "benchmarks").glob("gpu_*.py")), ids=lambda path: path.stem)
def test_gpu_programs_need_no_pipelines_and_no_ray(program):
    assert not imports_of(program) & ({"ray", *OURS} - {"encoders", "qformer", "llm"})
