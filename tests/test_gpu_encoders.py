"""The program that measures encoders on a GPU runs here at toy size, so that its code is known to work."""

import sys

import pytest
import torch

from benchmarks.gpu_encoders import main


def test_small_encoders_go_through_every_measurement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_encoders", "--tiny", "--rounds", "1"])
    main()
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert rows == ["attention", "sdpa", "flex"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_encoders"])
    with pytest.raises(SystemExit, match="no CUDA device here"):
        main()
