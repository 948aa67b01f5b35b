import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from llm.packing import attend_by_example, packed_logits, require_packing

SIZES = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = LlamaConfig(**SIZES, intermediate_size=128, num_key_value_heads=2)
PACKABLE = {
    "llama": LLAMA,
    "qwen2": Qwen2Config(**SIZES, intermediate_size=128, num_key_value_heads=2),
    "mistral, with a window shorter than the examples": MistralConfig(
        **SIZES, intermediate_size=128, num_key_value_heads=2, sliding_window=9
    ),
    "gpt_neox": GPTNeoXConfig(**SIZES, intermediate_size=128),
    "gpt2, with learnt positions": GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=4),
}
LENGTHS = [40, 1, 13, 25]


def build(
    config: PreTrainedConfig, *, attention: str | None = None, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    torch.manual_seed(0)
    llm: PreTrainedModel = AutoModelForCausalLM.from_config(
        copy.deepcopy(config), attn_implementation=attention, dtype=dtype
    )
    attend_by_example(llm)
    return llm.eval()


def embeds(llm: PreTrainedModel, lengths: Sequence[int]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return llm.get_input_embeddings()(torch.randint(300, (sum(lengths),), generator=generator)).detach()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PACKABLE)
def test_an_example_gets_in_a_packed_row_what_it_gets_alone(name: str, attention: str) -> None:
    llm = build(PACKABLE[name], attention=attention)
    row = embeds(llm, LENGTHS)
    together = packed_logits(llm, row, LENGTHS, torch.arange(len(row)))
    alone = [
        llm(inputs_embeds=example.unsqueeze(0)).logits.squeeze(0)  # the plain call, nothing of ours in it
        for example in row.split(LENGTHS)
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    require_packing(llm)


def test_attention_costs_what_the_examples_cost_and_no_more() -> None:
    """Counted with attention written out as products, which the counter sees."""
    llm = build(LLAMA)
    row = embeds(llm, LENGTHS)
    work = sum(_flops(llm, example, [len(example)]) for example in row.split(LENGTHS))
    assert _flops(llm, row, LENGTHS) == work
    assert _flops(build(LLAMA, attention="eager"), row, LENGTHS) > 1.02 * work


def test_logits_are_those_of_the_columns_asked_for() -> None:
    llm = build(LLAMA)
    row, columns = embeds(llm, LENGTHS), torch.tensor([0, 39, 41, 78])
    everywhere = packed_logits(llm, row, LENGTHS, torch.arange(len(row)))
    torch.testing.assert_close(packed_logits(llm, row, LENGTHS, columns), everywhere[columns])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_bfloat16_llm_is_not_refused_for_its_rounding(attention: str) -> None:
    for name in PACKABLE:
        require_packing(build(PACKABLE[name], attention=attention, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=300, hidden_size=64, n_layer=2, n_head=4),
        FalconConfig(**SIZES),
        MambaConfig(vocab_size=300, hidden_size=64, num_hidden_layers=2),
        OPTConfig(**SIZES, ffn_dim=128, word_embed_proj_dim=64),
    ],
    ids=lambda config: config.model_type,
)
def test_an_llm_that_mixes_packed_examples_is_refused(config: PreTrainedConfig, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"of type {config.model_type} cannot be trained here"):
        require_packing(build(config, dtype=dtype))


def _flops(llm: PreTrainedModel, row: Tensor, lengths: list[int]) -> int:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        packed_logits(llm, row, lengths, torch.arange(len(row))).sum().backward()
    return counter.get_total_flops()
