"""A language model small enough for a laptop's CPU: real Llama architecture, random weights, its own tokenizer."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

UNKNOWN, BEGIN, END = SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
LOGIT_SPREAD = 1.7  # standard deviation of an untrained model's logits


def write_tiny_llm(
    texts: Iterable[str],
    out_dir: str | Path,
    *,
    seed: int = 0,
    vocab_size: int = 512,
    width: int = 128,
    num_layers: int = 2,
    num_heads: int = 4,
) -> None:
    """Write a Hugging Face folder with a seeded random Llama and a tokenizer trained on `texts`.

    The same arguments give the same bytes on every machine. The tokenizer encodes any text and decodes it exactly;
    words that are frequent in `texts` become single tokens.

    Args:
        texts: What the tokenizer learns its merges from.
        out_dir: Folder to create or to write into.
        seed: Of the weights.
        vocab_size: Tokens at most; fewer when the texts hold no more pairs to merge. At least 259: bytes and specials.
        width: Of the embeddings.
        num_layers: Transformer layers.
        num_heads: Attention heads; they divide the width.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer(texts, vocab_size=vocab_size)
    tokenizer.save_pretrained(out_dir)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        architectures=["LlamaForCausalLM"],
        dtype="float32",
    )
    config.save_pretrained(out_dir)
    save_file(_draw_weights(config, seed=seed), out_dir / "model.safetensors", metadata={"format": "pt"})


def _train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: every byte is a token, so no text is unknown and no space is lost."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + len(SPECIAL_TOKENS):
        raise ValueError(f"vocab_size {vocab_size} must be at least {len(alphabet) + len(SPECIAL_TOKENS)}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # the library's
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        clean_up_tokenization_spaces=False,
    )


def _draw_weights(config: LlamaConfig, *, seed: int) -> dict[str, Tensor]:
    """Draw weights with which a signal keeps its size through layers of any width.

    Token embeddings have unit variance and matrices 1 / fan-in. The output rows are longer: logits of a random hidden
    state spread by about `LOGIT_SPREAD`, and one along a token's row reaches LOGIT_SPREAD · sqrt(width), so training
    can make the frozen head certain, which it never is with the customary 0.02.
    """
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("norm.weight"):
            weights[name] = torch.ones(shape)
        else:
            gain = {"model.embed_tokens.weight": shape[-1] ** 0.5, "lm_head.weight": LOGIT_SPREAD}.get(name, 1.0)
            weights[name] = torch.from_numpy(_uniform(name, shape, std=gain * shape[-1] ** -0.5, seed=seed))
    return weights


def _uniform(name: str, shape: tuple[int, ...], *, std: float, seed: int) -> npt.NDArray[np.float32]:
    """Draw from a stream of the tensor's own; uniform, since normal draws differ between machines in the last bit."""
    stream = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    uniform = np.random.Generator(np.random.PCG64([seed, stream])).random(shape)
    return ((2 * uniform - 1) * (std * 3**0.5)).astype(np.float32)
