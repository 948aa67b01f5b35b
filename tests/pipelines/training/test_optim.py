import json
import math

import pytest
import torch
from torch.nn import Parameter

from llm.loading import load_llm
from llm.lora import add_lora
from llm.salmonn import Salmonn
from llm.settings import LoraSettings
from pipelines.training.config import OptimConfig
from pipelines.training.optim import learning_rate, make_optimizer
from qformer.aligner import Aligner
from qformer.config import AlignerConfig
from qformer.official import official_name
from tests import SHARED

GOLDEN = SHARED / "golden" / "optim"


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
        "aligner.qformer.query_tokens": (1, 1, 8),
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


def test_steps_are_those_of_the_published_formula_at_the_schedules_rates():
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) written out in float64, eps 1e-8 outside of the root."""
    config = OptimConfig(lr=1e-2, min_lr=1e-3, warmup_lr=1e-3, warmup_steps=3, weight_decay=0.2, beta1=0.8, beta2=0.9)
    generator = torch.Generator().manual_seed(0)
    shapes = {"aligner.projection.weight": (4, 3), "aligner.projection.bias": (4,)}
    draw = {name: torch.randn(8, *shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    parameters = {name: Parameter(drawn[0].clone()) for name, drawn in draw.items()}
    optimizer = make_optimizer(parameters, config)
    expected = {name: drawn[0].clone() for name, drawn in draw.items()}
    mean, square = ({name: torch.zeros_like(drawn[0]) for name, drawn in draw.items()} for _ in range(2))
    for step in range(7):
        rate = learning_rate(step, 7, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, parameter in parameters.items():
            gradient = draw[name][step + 1]
            parameter.grad = gradient.clone()
            decay = 0.2 if name.endswith("weight") else 0.0
            mean[name] = 0.8 * mean[name] + 0.2 * gradient
            square[name] = 0.9 * square[name] + 0.1 * gradient**2
            unbiased = mean[name] / (1 - 0.8 ** (step + 1)), square[name] / (1 - 0.9 ** (step + 1))
            expected[name] -= rate * (unbiased[0] / (unbiased[1].sqrt() + 1e-8) + decay * expected[name])
        optimizer.step()
        for name, parameter in parameters.items():
            torch.testing.assert_close(parameter.detach(), expected[name], atol=0, rtol=1e-12)


def golden() -> dict:
    return json.loads((GOLDEN / "expected.json").read_text())


def schedule_of(case: dict) -> tuple[OptimConfig, int]:
    rates = {"lr": case["init_lr"], "min_lr": case["min_lr"], "warmup_lr": case["warmup_start_lr"]}
    return OptimConfig(**rates, warmup_steps=case["warmup_steps"]), case["max_epoch"] * case["iters_per_epoch"]


@pytest.mark.weights
@pytest.mark.parametrize("number", [0, 1])
def test_schedule_is_the_official_one_but_for_a_warm_up_that_begins_anew_with_the_second_epoch(number):
    """Where the warm-up is longer than an epoch, the official one starts again from its first rate; ours goes on."""
    case = golden()["schedule"][number]
    config, steps = schedule_of(case)
    restarted = 0
    for epoch, place, released in case["points"]:
        step = epoch * case["iters_per_epoch"] + place
        restarts = epoch > 0 and step < case["warmup_steps"]
        lost = (config.lr - config.warmup_lr) * (step - place) / case["warmup_steps"] if restarts else 0.0
        assert learning_rate(step, steps, config) == pytest.approx(released + lost, rel=1e-12)
        restarted += restarts
    assert restarted == 2 * number


@pytest.mark.weights
def test_what_decays_is_what_decays_officially():
    sizes = {"speech_width": 64, "audio_width": 96, "llm_width": 64, "hidden_width": 96, "num_heads": 4}
    llm, tokenizer = load_llm(GOLDEN.parent / "llama_small", device="meta")
    model = Salmonn(Aligner(AlignerConfig(**sizes)), add_lora(llm, LoraSettings()), tokenizer)
    names = {id(p): official_name(name) for name, p in model.aligner.named_parameters()}
    names |= {id(p): f"llama_model.{name}" for name, p in model.llm.named_parameters()}
    optimizer = make_optimizer(model.trainable_parameters(), OptimConfig())
    for ours, released in zip(optimizer.param_groups, golden()["param_groups"], strict=True):
        assert sorted(names[id(parameter)] for parameter in ours["params"]) == sorted(released["names"])
        assert all(ours[name] == released[name] for name in ("weight_decay", "eps"))
        assert list(ours["betas"]) == released["betas"]
