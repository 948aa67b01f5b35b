import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm.tiny import write_tiny_llm

TEXTS = ["RED BOAT", "a bell is ringing", "Grün, 紅い, 🦆"]


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tiny_llm(iter(TEXTS), tmp_path / name, seed=3, vocab_size=300, width=32)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_weights_are_those_of_every_machine(tmp_path: Path) -> None:
    write_tiny_llm(TEXTS, tmp_path, seed=0, vocab_size=259, width=16, num_layers=1)
    weights = load_file(tmp_path / "model.safetensors")
    digest = hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights))).hexdigest()
    assert digest[:16] == "b020bbc8b20e8728"


def test_another_seed_gives_other_weights_and_the_same_tokenizer(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_tiny_llm(TEXTS, tmp_path / str(seed), seed=seed, width=16)
    first, second = (load_file(tmp_path / str(seed) / "model.safetensors") for seed in (0, 1))
    assert not torch.equal(first["lm_head.weight"], second["lm_head.weight"])
    assert (tmp_path / "0" / "tokenizer.json").read_bytes() == (tmp_path / "1" / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("text", ["", " ", "red boat", "  two  spaces ", "line\nbreak\ttab", "Hören 请 🦆", "\x00\x7f"])
def test_any_text_is_encoded_and_decoded_exactly(tiny_tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tiny_tokenizer(text, add_special_tokens=False).input_ids
    assert tiny_tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tiny_tokenizer.unk_token_id not in ids


def test_frequent_words_are_single_tokens(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tiny_tokenizer(" speaker", add_special_tokens=False).input_ids) == 1


def test_the_folder_loads_with_its_special_tokens(
    tiny_llm: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    assert (tiny_tokenizer.unk_token_id, tiny_tokenizer.bos_token_id, tiny_tokenizer.eos_token_id) == (0, 1, 2)
    assert tiny_llm.config.vocab_size == len(tiny_tokenizer) <= 512


def test_the_model_can_be_confident_but_is_not_at_first(tiny_llm: PreTrainedModel) -> None:
    """Logits of random text are moderate; a hidden state along one token's output row makes that token certain."""
    head = tiny_llm.lm_head.weight
    random_logits = tiny_llm(torch.arange(3, 103).unsqueeze(0)).logits
    assert 0.5 < random_logits.std().item() < 3
    along = head[5] / head[5].norm() * head.shape[1] ** 0.5  # as long as a normed hidden state
    assert torch.softmax(head @ along, dim=0)[5].item() > 0.95


def test_a_vocabulary_without_room_for_all_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size 100 must be at least 259"):
        write_tiny_llm(TEXTS, tmp_path, vocab_size=100)
