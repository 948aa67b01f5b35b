#!/usr/bin/env bash
# transformers 5.23.0 with torch 2.11.0, run on 2026-11-28.
#
# `LlamaForCausalLM(...).double()` computes in float32 in two places and says nothing: every RMSNorm and the rotary
# embedding turn what they get into float32 and the result back. Logits of a "float64" Llama carry float32's
# rounding (about 1e-8 here), and `torch.autograd.gradcheck`, made for float64, calls its right gradients wrong.
# GPT-2, which has neither part, passes and differs by nothing.
#
# It matters to whoever takes a model in double precision as the truth: for a tolerance of bfloat16 or int8, for a
# near tie between two tokens, for a gradient check of what stands around the LLM.
# What helps: a TorchDispatchMode that gives every operation float64 for float32, the dtype that it is asked for included.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy torch==2.11.0 transformers==5.23.0
cat >"$folder/try.py" <<'END'
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM


class Float64(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        def widen(value):
            if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
                return value.double()
            return torch.float64 if value is torch.float32 else value

        return operation(*tree_map(widen, args), **tree_map(widen, kwargs or {}))


torch.manual_seed(0)
sizes = {"num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 50}
llama = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, **sizes)).double().eval()
gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, bos_token_id=1, eos_token_id=2)).double().eval()
ids = torch.randint(0, 50, (1, 40))
errors = {}
for name, model in (("Llama", llama), ("GPT-2", gpt2)):
    with torch.no_grad():
        said = model(ids).logits
        with Float64():
            true = model(ids).logits
    embeds = torch.randn(1, 3, 32, dtype=torch.float64, requires_grad=True)
    passes = torch.autograd.gradcheck(lambda x: model(inputs_embeds=x).logits, embeds, raise_exception=False)
    errors[name] = float((said - true).abs().max()), passes
    print(f"{name}.double(): {said.dtype}, off by {errors[name][0]:.1e} of logits up to {float(true.abs().max()):.2f}, gradcheck {'passes' if passes else 'fails'}")
norm = llama.model.norm(torch.randn(1, 9, 32, dtype=torch.float64))
print("every number that its RMSNorm returns is one of float32:", bool((norm == norm.float().double()).all()))
ok = errors["Llama"][0] > 1e-10 and not errors["Llama"][1] and errors["GPT-2"][0] < 1e-14 and errors["GPT-2"][1]
raise SystemExit(0 if ok and (norm == norm.float().double()).all() else 1)
END
"$folder/venv/bin/python" -W ignore "$folder/try.py" 2>/dev/null
