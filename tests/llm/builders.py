"""Small LLMs of several families, and batches for them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from llm.packing import attend_by_example

WIDTH, VOCABULARY, EOS = 32, 40, 2
SIZES: dict[str, Any] = {
    "tie_word_embeddings": False,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
}
GATED: dict[str, Any] = {**SIZES, "intermediate_size": 48, "max_position_embeddings": 128, "num_key_value_heads": 2}

SMALL_NEO: dict[str, Any] = {
    **{"hidden_size": WIDTH, "num_layers": 2, "num_heads": 4, "vocab_size": VOCABULARY},
    "attention_types": [[["global", "local"], 1]],
}
SMALL_GEMMA_3N: dict[str, Any] = {
    **{**GATED, "num_hidden_layers": 4, "intermediate_size": [48] * 4, "activation_sparsity_pattern": [0.0] * 4},
    **{"head_dim": 8, "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2},
    **{"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "laurel_rank": 4},
}


def attending_by_example(model: PreTrainedModel) -> PreTrainedModel:
    attend_by_example(model)
    return model


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GATED)),
    "llama, eager": lambda: LlamaForCausalLM(LlamaConfig(**GATED, attn_implementation="eager")),
    "llama, as Salmonn attends": lambda: attending_by_example(LlamaForCausalLM(LlamaConfig(**GATED))),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**{**GATED, "intermediate_size": 64})),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**GATED)),
    "mistral, which sees 8 tokens back": lambda: MistralForCausalLM(MistralConfig(**GATED, sliding_window=8)),
    "qwen2, of which a layer sees 8 tokens back": lambda: Qwen2ForCausalLM(
        Qwen2Config(**GATED, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    ),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**GATED, head_dim=8)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(n_embd=WIDTH, n_layer=2, n_head=4, vocab_size=VOCABULARY, n_positions=128, tie_word_embeddings=False)
    ),
}


def padded(prompts: list[Tensor]) -> tuple[Tensor, list[int]]:
    width = max(map(len, prompts))
    embeds = torch.stack([torch.cat([torch.full((width - len(prompt), WIDTH), 9.0), prompt]) for prompt in prompts])
    return embeds, [len(prompt) for prompt in prompts]
