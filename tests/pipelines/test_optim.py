import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import Parameter

from pipelines.optim import OptimConfig, learning_rate, make_optimizer

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "optim"


def test_warm_up_is_linear_and_the_cosine_ends_at_the_floor():
    config = OptimConfig(lr=1.0, min_lr=0.1, warmup_lr=0.2, warmup_steps=10)
    assert [learning_rate(step, 100, config) for step in (0, 5)] == pytest.approx([0.2, 0.6])
    assert learning_rate(10, 100, config) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.1)))
    assert learning_rate(100, 100, config) == pytest.approx(0.1)
    rates = [learning_rate(step, 100, config) for step in range(10, 101)]
    assert rates == sorted(rates, reverse=True)


def test_no_warm_up_starts_at_the_top():
    assert learning_rate(0, 12, OptimConfig(warmup_steps=0)) == pytest.approx(3e-5)


def test_norms_biases_and_vectors_do_not_decay():
    shapes = {
        "aligner.qformer.queries": (1, 1, 8),
        "llm.layers.0.q_proj.lora_A.default.weight": (8, 16),
        "aligner.ln_speech.weight": (8,),
        "aligner.projection.bias": (8,),
        "aligner.projection.weight": (8, 8),
    }
    parameters = {name: Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    optimizer = make_optimizer(parameters, OptimConfig(lr=1.0, min_lr=0.0, warmup_lr=0.0, weight_decay=0.5))
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = {name for name, parameter in parameters.items() if not torch.equal(parameter, torch.ones_like(parameter))}
    assert moved == {name for name in shapes if len(shapes[name]) > 1}


@pytest.mark.parametrize("keys", [{"lr": 1e-5, "warmup_lr": 1e-4}, {"min_lr": 1.0}])
def test_rates_out_of_order_are_refused(keys):
    with pytest.raises(ValueError, match="must lie between"):
        OptimConfig(**keys)


@pytest.mark.weights
def test_schedule_is_the_official_one_where_the_warm_up_fits_an_epoch():
    if not GOLDEN.exists():
        pytest.skip("the reference numbers of ../shared/golden are not here")
    case = json.loads((GOLDEN / "expected.json").read_text())["schedule"][0]
    config = OptimConfig(
        lr=case["init_lr"],
        min_lr=case["min_lr"],
        warmup_lr=case["warmup_start_lr"],
        warmup_steps=case["warmup_steps"],
    )
    steps = case["max_epoch"] * case["iters_per_epoch"]
    for epoch, step, expected in case["points"]:
        found = learning_rate(epoch * case["iters_per_epoch"] + step, steps, config)
        assert found == pytest.approx(expected, rel=1e-12)
