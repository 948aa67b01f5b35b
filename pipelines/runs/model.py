"""Models built from a run's description, around its frozen LLM."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm.identity import llm_identity
from llm.loading import load_llm
from llm.lora import add_lora
from llm.salmonn import Salmonn
from pipelines.runs.spec import RunSpec, local_llm, require_same_llm
from qformer.aligner import Aligner

LoadedLLM = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def build_model(spec: RunSpec, run: str, *, device: str, seed: int = 0, llm: LoadedLLM | None = None) -> Salmonn:
    """Build the model with fresh aligner and LoRA weights, drawn from `seed`, around the LLM if that is loaded."""
    base, tokenizer = llm or load_run_llm(spec, run, device=device)
    torch.manual_seed(seed)
    model = Salmonn(Aligner(spec.aligner), add_lora(base, spec.lora), tokenizer)
    return model.to(device)


def build_beside(model: Salmonn, spec: RunSpec, *, adapter: str, device: str) -> Salmonn:
    """Build another run's model, with fresh weights, around the LLM of this one, as its LoRA of the name `adapter`."""
    beside = Salmonn(Aligner(spec.aligner), add_lora(model.llm, spec.lora, adapter=adapter), model.tokenizer)
    return beside.to(device)


def load_run_llm(spec: RunSpec, run: str, *, device: str) -> LoadedLLM:
    """Load the frozen LLM of a run and its tokenizer.

    Raises:
        UserError: If another one is there now.
        LLMError: If there is none, or it cannot be loaded.
    """
    with local_llm(run, spec.llm) as folder:
        require_same_llm(spec.llm_identity, llm_identity(folder), of=run, llm=spec.llm)
        return load_llm(folder, precision=spec.dtype, device=device)
