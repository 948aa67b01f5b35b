"""What float64 finds, and that it decides where float32 cannot."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

from llm.decoding.decoding import Decoding, decode
from llm.decoding.exact import InFloat64
from tests.llm.builders import EOS, FAMILIES, GATED, VOCABULARY, WIDTH, padded


def with_twins(name: str) -> PreTrainedModel:
    """Return a small LLM to which each two tokens are as likely as each other but for the last digits."""
    torch.manual_seed(0)
    return make_twins(FAMILIES[name]().eval())


def make_twins(model: Any, *, are_equal: bool = False) -> PreTrainedModel:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=WIDTH**-0.5)
        head = model.get_output_embeddings().weight
        head.mul_(3)
        head[1::2] = head[::2]
        if not are_equal:
            head[1::2] = head[::2].nextafter(torch.tensor(9.0) * torch.randn(VOCABULARY // 2, WIDTH).sign())
        model.get_input_embeddings().weight[1::2] = model.get_input_embeddings().weight[::2]
    found: PreTrainedModel = model
    return found


def in_float64(llm: PreTrainedModel, prompt: Tensor, **options: Any) -> list[int]:
    """Return the answer of a search that is done in float64 from its beginning, and asks no judge."""
    with torch.no_grad(), InFloat64():  # type: ignore[no-untyped-call]
        decoding = Decoding(llm, **options)
        decoding._is_judged = False
        decoding.join([0], prompt.unsqueeze(0), [len(prompt)])
        answers: dict[int, list[int]] = {}
        while len(decoding):
            answers |= decoding.step()
    return answers[0]


def prompts_of(count: int) -> list[Tensor]:
    chance, generator = random.Random(count), torch.Generator().manual_seed(count)
    return [torch.randn(chance.randint(3, 20), WIDTH, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("name", FAMILIES)
def test_likelihoods_are_those_of_each_sequence_alone_in_float64(name: str) -> None:
    llm: Any = with_twins(name)
    decoding = Decoding(llm, eos=EOS, num_beams=3, max_new_tokens=16)
    sequences = [[5, 7, 9, 4, 4, 11, 5, 8, 3], [5, 7, 8], [], [6], [5, 7, 9, 4, 5]]
    (prompt,) = prompts_of(1)
    decoding.join([0], prompt.unsqueeze(0), [len(prompt)])
    with torch.no_grad():
        found = decoding._judge(0, sequences)
        assert found.scores.dtype == found.logits.dtype == torch.float64
        for place, sequence in enumerate(sequences):
            tokens = torch.tensor(sequence, dtype=torch.long)
            with InFloat64():  # type: ignore[no-untyped-call]
                embeds = torch.cat([prompt, llm.get_input_embeddings()(tokens)])
                logits = llm(inputs_embeds=embeds.unsqueeze(0)).logits[0, len(prompt) - 1 :]
            steps = logits.log_softmax(-1)[range(len(sequence)), sequence]
            assert abs(found.scores[place] - steps.sum()) < 1e-12
            assert (found.logits[place] - logits[-1]).abs().max() < 1e-12
    assert all(weights.dtype == torch.float32 for weights in llm.parameters())


@pytest.mark.parametrize(
    ("num_beams", "length_penalty", "most_tokens"),
    [(1, 1.0, 8), (3, 1.0, 8), (3, 0.0, 6), (2, 2.0, 6), (6, -1.0, 2), (6, 0.5, 1), (5, -1.0, 5)],
)
@pytest.mark.parametrize("name", ["llama, as Salmonn attends", "qwen2, of which a layer sees 8 tokens back", "gpt2"])
def test_where_float32_cannot_tell_float64_does_whatever_the_batch(
    name: str, num_beams: int, length_penalty: float, most_tokens: int
) -> None:
    llm, prompts = with_twins(name), prompts_of(8)
    options = {"eos": EOS, "num_beams": num_beams, "max_new_tokens": most_tokens, "length_penalty": length_penalty}
    expected = [in_float64(llm, prompt, **options) for prompt in prompts]
    chance = random.Random(num_beams)
    for _ in range(2):
        order = random.Random(chance.random()).sample(range(len(prompts)), len(prompts))
        size = chance.randint(1, len(prompts))
        for first in range(0, len(prompts), size):
            picked = order[first : first + size]
            answers = decode(llm, *padded([prompts[place] for place in picked]), **options)
            assert answers == [expected[place] for place in picked]


@pytest.mark.parametrize(("name", "length_penalty"), [("gemma", 1.0), ("gpt2", 2.0), ("llama, eager", 0.5)])
def test_two_that_are_as_likely_to_the_last_digit_are_chosen_from_alike(name: str, length_penalty: float) -> None:
    options: dict[str, Any] = {"eos": EOS, "num_beams": 4, "length_penalty": length_penalty}
    for seed in range(4):
        torch.manual_seed(seed)
        llm, prompts = make_twins(FAMILIES[name]().eval(), are_equal=True), prompts_of(6)
        alone = [decode(llm, prompt.unsqueeze(0), [len(prompt)], max_new_tokens=6, **options)[0] for prompt in prompts]
        assert decode(llm, *padded(prompts), max_new_tokens=6, **options) == alone


@pytest.mark.parametrize("num_beams", [1, 3])
def test_an_llm_with_experts_answers_and_rounding_decides(num_beams: int) -> None:
    torch.manual_seed(0)
    llm = make_twins(MixtralForCausalLM(MixtralConfig(**GATED, num_local_experts=4, num_experts_per_tok=2)).eval())
    decoding = Decoding(llm, eos=-1, num_beams=num_beams, max_new_tokens=5)
    prompts = prompts_of(3)
    decoding.join(range(3), *padded(prompts))
    answers: dict[int, list[int]] = {}
    while len(decoding):
        answers |= decoding.step()
    assert decoding.near_ties == 0 and all(len(answer) == 5 for answer in answers.values())


@pytest.mark.parametrize("num_beams", [1, 3])
def test_the_prompt_that_float64_reads_is_computed_anew_for_the_example_alone(num_beams: int) -> None:
    llm, prompts = with_twins("llama"), prompts_of(4)
    noisy = [prompt * (1 + 1e-6 * torch.randn(prompt.shape)) for prompt in prompts]
    asked: list[int] = []

    def again(place: int) -> Callable[[], Tensor]:
        asked.append(place)
        assert torch.ones(1).dtype == (torch.ones(1) + 1).dtype == torch.float32  # what is read stays as it is
        return lambda: prompts[place].unsqueeze(0)

    options: dict[str, Any] = {"eos": EOS, "num_beams": num_beams, "max_new_tokens": 10}
    expected = decode(llm, *padded(prompts), **options)
    assert decode(llm, *padded(noisy), prompt_again=again, **options) == expected
    assert sorted(asked) == list(range(4))  # each once


def test_what_is_told_is_never_taken_back_where_float32_cannot_tell() -> None:
    llm, prompts = with_twins("llama"), prompts_of(6)
    decoding = Decoding(llm, eos=EOS, num_beams=3, max_new_tokens=12)
    decoding.join(range(6), *padded(prompts))
    told: dict[int, list[int]] = {number: [] for number in range(6)}
    answers: dict[int, list[int]] = {}
    while len(decoding):
        answers |= decoding.step()
        for number, tokens in decoding.settled().items():
            assert tokens[: len(told[number])] == told[number]
            told[number] = tokens
    assert decoding.near_ties and any(told.values())
    assert all(answer[: len(told[number])] == told[number] for number, answer in answers.items())


@pytest.mark.parametrize("num_beams", [1, 3])
def test_nobody_asks_float64_where_the_llm_rounds_more_than_float32_or_the_example_is_dropped(num_beams: int) -> None:
    (prompt,) = prompts_of(1)
    for dtype, is_dropped in itertools.product((torch.bfloat16, torch.float32), (False, True)):
        llm: Any = with_twins("llama").to(dtype)  # type: ignore[arg-type]
        decoding = Decoding(llm, eos=EOS, num_beams=num_beams, max_new_tokens=4)
        decoding.join([0, 1], prompt.to(dtype).expand(2, -1, -1), [len(prompt)] * 2)
        decoding.step()
        before = decoding.near_ties
        if is_dropped:
            decoding.drop(0)
            decoding.drop(1)
        decoding.step()
        assert bool(before) == (dtype == torch.float32)
        assert (decoding.near_ties > before) == (dtype == torch.float32 and not is_dropped)
