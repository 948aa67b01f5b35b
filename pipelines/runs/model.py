"""Models built from a run's description, around its frozen LLM."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm.loading import load_llm
from llm.lora import add_lora
from llm.salmonn import Salmonn
from pipelines.runs.spec import RunSpec, local_llm
from qformer.aligner import Aligner

LoadedLLM = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def build_model(spec: RunSpec, run: str, *, device: str, seed: int = 0, llm: LoadedLLM | None = None) -> Salmonn:
    """Build the model with fresh aligner and LoRA weights, drawn from `seed`, around the LLM if that is loaded."""
    base, tokenizer = llm or load_run_llm(spec, run, device=device)
    torch.manual_seed(seed)
    model = Salmonn(Aligner(spec.aligner), add_lora(base, spec.lora), tokenizer)
    return model.to(device)


def load_run_llm(spec: RunSpec, run: str, *, device: str) -> LoadedLLM:
    """Load the frozen LLM of a run and its tokenizer."""
    with local_llm(run, spec.llm) as folder:
        return load_llm(folder, precision=spec.dtype, device=device)
