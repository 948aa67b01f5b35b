"""Covers llm.decoding.layers, llm.decoding.searches, llm.decoding.trees."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    GenerationConfig,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from llm.decoding.decoding import Decoding, decode
from llm.decoding.layers import most_positions, require_decoding
from llm.decoding.trees import _ROOM
from llm.errors import LLMError
from tests.llm.builders import EOS, FAMILIES, GATED, SMALL_GEMMA_3N, SMALL_NEO, VOCABULARY, WIDTH, padded


@pytest.fixture(scope="module", params=FAMILIES)
def llm(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    model = FAMILIES[request.param]()
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=WIDTH**-0.5)
        head.mul_(3)
        head[EOS] *= 2  # else few answers end
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]  # the library's
    trained: PreTrainedModel = model.eval()
    return trained


@pytest.mark.parametrize(("num_beams", "length_penalty"), [(1, 1.0), (4, 1.0), (4, 0.0), (2, 2.0)])
def test_answers_are_those_of_transformers_whatever_the_batch(
    llm: PreTrainedModel, num_beams: int, length_penalty: float
) -> None:
    chance = random.Random(num_beams)
    generator = torch.Generator().manual_seed(7)
    prompts = [torch.randn(chance.randint(3, 12), WIDTH, generator=generator) for _ in range(8)]
    options: dict[str, Any] = {"num_beams": num_beams, "max_new_tokens": 16, "length_penalty": length_penalty}
    expected = [_generate(llm, prompt, **options) for prompt in prompts]
    assert length_penalty > 1 or len({len(answer) for answer in expected}) > 1  # some end early, some do not
    for _ in range(3):
        order = list(range(len(prompts)))
        chance.shuffle(order)
        size = chance.randint(1, len(prompts))
        for first in range(0, len(prompts), size):
            picked = order[first : first + size]
            answers = _decode(llm, [prompts[place] for place in picked], **options)
            assert answers == [expected[place] for place in picked]


def test_an_answer_may_be_one_token_long_or_empty(llm: PreTrainedModel) -> None:
    prompts = list(torch.randn(6, 4, WIDTH, generator=torch.Generator().manual_seed(1)))
    answers = _decode(llm, prompts, num_beams=1, max_new_tokens=1, length_penalty=1.0)
    assert answers == [_generate(llm, prompt, num_beams=1, max_new_tokens=1, length_penalty=1.0) for prompt in prompts]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_examples_join_at_any_step_and_some_are_dropped_and_the_others_have_the_answers_they_have_alone(
    llm: PreTrainedModel, num_beams: int
) -> None:
    chance = random.Random(num_beams)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randn(chance.randint(3, 12), WIDTH, generator=generator) for _ in range(14)]
    most = [chance.randint(1, 16) for _ in prompts]
    expected = {
        number: _generate(llm, prompt, num_beams=num_beams, max_new_tokens=most[number], length_penalty=1.0)
        for number, prompt in enumerate(prompts)
    }
    decoding = Decoding(llm, eos=EOS, num_beams=num_beams, max_new_tokens=16)
    waiting, answers, told, dropped = list(expected), {}, {number: [] for number in expected}, set()
    while waiting or len(decoding):
        count = chance.randint(0, 3)
        new, waiting = waiting[:count], waiting[count:]
        if new:
            embeds, lengths = padded([prompts[number] for number in new])
            decoding.join(new, embeds, lengths, [most[number] for number in new])
        if chance.random() < 0.2 and len(unended := set(told) - set(waiting) - set(answers) - dropped) > 1:
            dropped.add(gone := min(unended))
            decoding.drop(gone)
        answers |= decoding.step()
        for number, tokens in decoding.settled().items():
            assert tokens[: len(told[number])] == told[number]
            told[number] = tokens
    assert dropped and answers == {number: answer for number, answer in expected.items() if number not in dropped}
    assert all(answer[: len(told[number])] == told[number] for number, answer in answers.items())
    assert any(told[number] for number in answers)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize(("crowd", "length"), [(1, 100), (20, 5)])
def test_however_many_join_no_more_is_kept_than_those_at_work_need(num_beams: int, crowd: int, length: int) -> None:
    torch.manual_seed(0)
    decoding = Decoding(FAMILIES["llama"]().eval(), eos=EOS, num_beams=num_beams, max_new_tokens=8)
    decoding.join(range(100, 100 + crowd), torch.randn(crowd, length, WIDTH), [length] * crowd)
    for number in range(60):
        decoding.join([number], torch.randn(1, 5, WIDTH), [5])
        decoding.step()
        if max(decoding._asked) >= 100:
            continue
        trees = decoding._trees
        assert max(trees._used) <= 5 + 8 * num_beams
        for keys_or_values in itertools.chain(*trees._layers):
            places, _, columns, _ = keys_or_values.shape
            assert places <= 2 * len(decoding) and columns <= 2 * (max(trees._used) + num_beams * _ROOM)


def test_what_no_beam_continues_is_forgotten(llm: PreTrainedModel) -> None:
    num_beams, tokens = 4, 100
    decoding = Decoding(llm, eos=-1, num_beams=num_beams, max_new_tokens=tokens)
    decoding.join([0], torch.randn(1, 5, WIDTH, generator=torch.Generator().manual_seed(5)), [5])
    most = 0
    while len(decoding):
        most = max([most, *decoding._trees._used])
        decoding.step()
    assert tokens < most < 5 + tokens + 2 * num_beams * _ROOM < 5 + num_beams * tokens


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (
            lambda: Lfm2ForCausalLM(Lfm2Config(**{**GATED, "layer_types": ["conv", "full_attention"]})),
            "type lfm2 cannot answer here: they have layers of the kind conv",
        ),
        (
            lambda: GPTNeoForCausalLM(GPTNeoConfig(**SMALL_NEO)),
            "type gpt_neo cannot answer here: they have layers of the kind local",
        ),
        (
            lambda: BloomForCausalLM(BloomConfig(hidden_size=WIDTH, n_layer=1, n_head=4, vocab_size=VOCABULARY)),
            "type bloom cannot answer here: they have layers that attend by ALiBi",
        ),
        (
            lambda: Gemma3nForCausalLM(Gemma3nTextConfig(**SMALL_GEMMA_3N)),
            "type gemma3n_text cannot answer here: they have layers that take keys and values of other layers",
        ),
    ],
)
def test_an_llm_whose_layers_keep_other_things_is_refused(model: Callable[[], PreTrainedModel], layers: str) -> None:
    llm = model()
    with pytest.raises(LLMError, match=layers):
        require_decoding(llm)
    with pytest.raises(LLMError, match=layers):
        Decoding(llm, eos=EOS, num_beams=4, max_new_tokens=8)


def test_an_llm_of_longrope_takes_no_more_positions_than_it_sees_alike() -> None:
    factors = [1.0] * (WIDTH // 8)
    rope = {"rope_type": "longrope", "short_factor": factors, "long_factor": [4.0] * len(factors), "rope_theta": 1e4}
    config = LlamaConfig(**GATED, rope_parameters={**rope, "original_max_position_embeddings": 32})
    assert most_positions(LlamaForCausalLM(config)) == 32
    assert most_positions(FAMILIES["llama"]()) == 128


def test_more_beams_than_tokens_can_fill_are_refused() -> None:
    llm = FAMILIES["llama"]().eval()
    decoding = Decoding(llm, eos=EOS, num_beams=19, max_new_tokens=4)
    decoding.join([0], torch.randn(1, 5, WIDTH), [5])
    while len(decoding):
        decoding.step()
    with pytest.raises(LLMError, match=r"num_beams=20: needs more than 40 tokens to choose from, not 40"):
        Decoding(llm, eos=EOS, num_beams=20, max_new_tokens=4)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_an_example_without_numbers_disturbs_none_that_takes_its_place(llm: PreTrainedModel, broken: float) -> None:
    lengths = {1: 40, 2: 60, 3: 5, 4: 6}

    def answers_of(number: float) -> dict[int, list[int]]:
        decoding, answers = Decoding(llm, eos=-1, num_beams=1, max_new_tokens=12), {}
        for example, length in lengths.items():
            prompt = torch.randn(1, length, WIDTH, generator=torch.Generator().manual_seed(example))
            if example == 1:
                prompt[0, 20] = number
            if example == 4:  # comes when the broken one has left
                answers |= {key: tokens for _ in range(5) for key, tokens in decoding.step().items()}
            decoding.join([example], prompt, [length], [3 if example == 1 else 12])
        while len(decoding):
            answers |= decoding.step()
        return answers

    healthy, beside = answers_of(0.5), answers_of(broken)
    assert [healthy[example] for example in (2, 3, 4)] == [beside[example] for example in (2, 3, 4)]


def _decode(
    llm: PreTrainedModel, prompts: list[Tensor], *, num_beams: int, max_new_tokens: int, length_penalty: float
) -> list[list[int]]:
    embeds, lengths = padded(prompts)
    return decode(
        llm,
        embeds,
        lengths,
        eos=EOS,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        length_penalty=length_penalty,
    )


def _generate(
    llm: PreTrainedModel, prompt: Tensor, *, num_beams: int, max_new_tokens: int, length_penalty: float
) -> list[int]:
    ids: list[int] = llm.generate(  # type: ignore[operator]  # the library's
        inputs_embeds=prompt.unsqueeze(0),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=EOS,
        pad_token_id=EOS,
        **({"length_penalty": length_penalty} if num_beams > 1 else {}),
    )[0].tolist()
    return ids[: ids.index(EOS)] if EOS in ids else ids
