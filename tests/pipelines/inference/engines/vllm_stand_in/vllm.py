"""Our own decoding behind the part of vLLM 0.32's interface that is used, for tests where vLLM is not installed."""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from llm.decoding.decoding import decode

__version__ = "0.32.0"


@dataclass(kw_only=True)
class SamplingParams:
    temperature: float
    max_tokens: int
    stop_token_ids: list[int]
    ignore_eos: bool
    detokenize: bool


class LLM:
    def __init__(
        self, model, *, dtype, skip_tokenizer_init, enable_prompt_embeds, generation_config, gpu_memory_utilization
    ):
        assert skip_tokenizer_init and enable_prompt_embeds and generation_config == "vllm"
        print("loading")  # as vLLM does
        self._llm = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()

    def generate(self, prompts, sampling_params, *, use_tqdm):
        assert sampling_params.temperature == 0
        embeds = [prompt["prompt_embeds"] for prompt in prompts]
        (eos,) = sampling_params.stop_token_ids
        with torch.no_grad():
            batch = pad_sequence(embeds, batch_first=True, padding_side="left")
            lengths = [len(one) for one in embeds]
            most = sampling_params.max_tokens
            found = decode(self._llm, batch, lengths, eos=eos, num_beams=1, max_new_tokens=most)
        # The end token is a token of the answer there.
        return [
            SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens + [eos] * (len(tokens) < most))])
            for tokens in found
        ]
