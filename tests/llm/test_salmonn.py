import dataclasses
import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm.loading import load_llm
from llm.lora import adapter_from_official, add_lora, load_adapter_state
from llm.packing import require_packing
from llm.salmonn import Batch, Salmonn
from llm.settings import LoraSettings, Precision
from qformer.aligner import Aligner
from qformer.config import AlignerConfig
from qformer.official import official_name
from tests import SHARED
from tests.llm.conftest import WORDS

GOLDEN = SHARED / "golden"
SPEECH_WIDTH, AUDIO_WIDTH = 12, 8


def test_the_loss_is_that_of_the_sequence_written_out(salmonn: Salmonn, batch: Batch) -> None:
    """[BOS] before audio after answer </s>, one example at a time through the LLM, logits everywhere."""
    salmonn.eval()
    tokenizer, embed = salmonn.tokenizer, salmonn.llm.get_input_embeddings()
    audio = salmonn.aligner(batch.speech, batch.audio, audio_frames=batch.audio_frames)
    total = torch.zeros(())
    for i, (question, answer) in enumerate(zip(batch.questions, batch.answers, strict=True)):
        before, after, target = (
            torch.tensor(tokenizer(text, add_special_tokens=False).input_ids, dtype=torch.long)
            for text in ("USER: <Speech>", f"</Speech> {question}\nASSISTANT:", answer)
        )
        target = torch.cat([target, torch.tensor([2])])
        pieces = [embed(torch.tensor([1])), embed(before), audio[i], embed(after), embed(target)]
        logits = salmonn.llm(inputs_embeds=torch.cat(pieces).unsqueeze(0)).logits[0, -len(target) - 1 : -1]
        total = total + nn.functional.cross_entropy(logits, target, reduction="sum")
    loss = salmonn.loss(batch)
    torch.testing.assert_close(loss.total, total, atol=1e-4, rtol=1e-6)
    assert loss.num_targets == sum(
        len(tokenizer(answer, add_special_tokens=False).input_ids) + 1 for answer in batch.answers
    )
    torch.testing.assert_close(loss.mean, loss.total / loss.num_targets)


def test_the_loss_of_a_batch_is_the_sum_of_its_examples(salmonn: Salmonn, batch: Batch) -> None:
    salmonn.eval()
    alone = [salmonn.loss(_example(batch, i)) for i in range(3)]
    together = salmonn.loss(batch)
    torch.testing.assert_close(together.total, torch.stack([loss.total for loss in alone]).sum(), atol=1e-4, rtol=1e-6)
    assert together.num_targets == sum(loss.num_targets for loss in alone)
    assert together.num_correct == sum(loss.num_correct for loss in alone)


def test_gradients_of_a_batch_are_the_sum_of_its_examples(salmonn: Salmonn, batch: Batch) -> None:
    salmonn.eval()
    for i in range(3):
        salmonn.loss(_example(batch, i)).total.backward()
    alone = {name: parameter.grad for name, parameter in salmonn.trainable_parameters().items()}
    salmonn.zero_grad(set_to_none=True)
    salmonn.loss(batch).total.backward()
    for name, parameter in salmonn.trainable_parameters().items():
        torch.testing.assert_close(
            parameter.grad, alone[name], atol=2e-4, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_very_different_lengths_packed_or_one_by_one_give_the_same_loss_and_gradients(
    salmonn: Salmonn, batch: Batch
) -> None:
    uneven = dataclasses.replace(batch, questions=["?", "Why, and " * 20, "What?"], answers=["", "red", "green " * 60])
    salmonn.eval()
    alone = sum(salmonn.loss(_example(uneven, i)).total for i in range(3))
    gradients = torch.autograd.grad(alone, _reached(salmonn))
    together = salmonn.loss(uneven).total
    torch.testing.assert_close(together, alone, atol=0, rtol=1e-5)
    for ours, expected in zip(torch.autograd.grad(together, _reached(salmonn)), gradients, strict=True):
        assert (ours - expected).norm() <= 1e-5 * expected.norm()


def test_a_batch_computes_what_its_examples_compute_alone_and_nothing_else(salmonn: Salmonn, batch: Batch) -> None:
    """No padding, no logits without a target, no attention across examples: the very same number of operations."""
    uneven = dataclasses.replace(batch, answers=["", "green " * 30, "red"])
    assert _flops(salmonn, uneven) == sum(_flops(salmonn, _example(uneven, i)) for i in range(3))
    logits, targets = salmonn.target_logits(uneven)
    assert len(logits) == len(targets) == salmonn.loss(uneven).num_targets


def test_tokens_are_counted_as_they_are_computed(salmonn: Salmonn, batch: Batch) -> None:
    seen: list[int] = []
    salmonn.llm.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(inputs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    salmonn.loss(batch)
    windows = salmonn.aligner(batch.speech, batch.audio, audio_frames=batch.audio_frames).shape[1]
    texts = zip(batch.questions, batch.answers, strict=True)
    assert seen == [sum(salmonn.count_tokens(*text, num_audio_tokens=windows) for text in texts)]


def test_a_text_is_tokenised_once(salmonn: Salmonn, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it is counted to deal the batch, counted for the targets, and read."""
    said: list[str] = []
    kind = type(salmonn.tokenizer)
    original = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda self, text, **keys: said.append(text) or original(self, text, **keys))
    for question, answer in zip(batch.questions, batch.answers, strict=True):
        salmonn.count_tokens(question, answer, num_audio_tokens=3)
        salmonn.count_tokens(question, "", num_audio_tokens=3)
        salmonn.is_cut(answer)
    salmonn.loss(batch)
    assert len(said) == len(set(said)) > len(set(batch.answers))


def test_gradient_checkpointing_changes_memory_and_nothing_else(salmonn: Salmonn, batch: Batch) -> None:
    salmonn.train()
    plain, kept = _loss_and_gradients(salmonn, batch)
    salmonn.llm.activation_checkpointing_enable()
    again, kept_less = _loss_and_gradients(salmonn, batch)
    assert kept_less < 0.7 * kept
    assert all(torch.equal(ours, expected) for ours, expected in zip(again, plain, strict=True))


@pytest.mark.parametrize("num_beams", [1, 4])
def test_answers_of_a_batch_are_those_of_its_examples(salmonn: Salmonn, batch: Batch, num_beams: int) -> None:
    options: dict[str, Any] = {"num_beams": num_beams, "max_new_tokens": 12}
    together = salmonn.generate(batch, **options)
    assert together == [salmonn.generate(_example(batch, i), **options)[0] for i in range(3)]
    assert len(set(together)) > 1  # or equal answers would say nothing; untrained, two of three may be the same


def test_sampled_answers_depend_on_the_seed(salmonn: Salmonn, batch: Batch) -> None:
    def sample(seed: int) -> list[str]:
        torch.manual_seed(seed)
        return salmonn.sample(batch, temperature=1.5, top_p=1.0, max_new_tokens=8)

    assert sample(0) == sample(0) != sample(1)


@pytest.mark.parametrize("blank", [" ", "\n", "\t \n", "\u3000"])
def test_blanks_at_an_answers_end_are_not_learnt(salmonn: Salmonn, blank: str) -> None:
    assert salmonn._answer(f"a dog barks{blank}") == salmonn._answer("a dog barks")
    assert len(salmonn._answer(f"a dog{blank}barks")) > len(salmonn._answer("a dog")) > 1


@pytest.mark.parametrize("token", ["</s>", "<s>", "<unk>"])
def test_a_control_token_spelled_in_a_text_is_text(salmonn: Salmonn, token: str) -> None:
    ids = salmonn._answer(f"say {token} now")
    assert ids.count(salmonn.tokenizer.eos_token_id) == 1 and ids[-1] == salmonn.tokenizer.eos_token_id
    special = {salmonn.tokenizer.bos_token_id, salmonn.tokenizer.unk_token_id}
    assert not special & set(ids)
    assert token in salmonn.tokenizer.decode(ids[:-1], skip_special_tokens=True)
    prompt = salmonn._prompt(f"what is {token}?", num_audio_tokens=2)
    assert prompt.count(salmonn.tokenizer.eos_token_id) == 0


def test_a_cut_answer_loses_its_end(salmonn: Salmonn, batch: Batch) -> None:
    salmonn.max_answer_tokens = 2
    _, targets = salmonn.target_logits(dataclasses.replace(batch, answers=["red blue green", "", "red"]))
    ids = [salmonn.tokenizer(word, add_special_tokens=False).input_ids for word in ("red blue green", "red")]
    assert targets.tolist() == [*ids[0][:2], 2, *[*ids[1], 2][:2]]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4"])
def test_only_aligner_and_lora_train_and_change(precision: Precision, tiny_llm_dir: Path, batch: Batch) -> None:
    if precision in ("int8", "int4"):
        pytest.importorskip("bitsandbytes")
    llm, tokenizer = load_llm(tiny_llm_dir, precision=precision)
    require_packing(llm)
    salmonn = Salmonn(_aligner(), add_lora(llm, LoraSettings(dropout=0.0)), tokenizer)
    before = {name: tensor.clone() for name, tensor in salmonn.state_dict().items()}
    parameters = salmonn.trainable_parameters()
    assert all(name.startswith("aligner.") or "lora_" in name for name in parameters)
    assert {f"aligner.{name}" for name, _ in salmonn.aligner.named_parameters()} < parameters.keys()
    salmonn.train()
    salmonn.loss(batch).mean.backward()
    assert all(parameter.dtype == torch.float32 for parameter in parameters.values())
    torch.optim.AdamW(parameters.values(), lr=1e-2).step()
    changed = {name for name, tensor in salmonn.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed <= parameters.keys()
    # No gradient: with one query, self-attention is a softmax over one element; a key's bias moves all scores alike.
    unmoved = {name for name in parameters.keys() - changed if "self_attention.query" not in name}
    assert all(name.endswith("attention.key.bias") for name in unmoved)


def test_generation_leaves_the_mode_as_it_was_and_warns_of_nothing(salmonn: Salmonn, batch: Batch) -> None:
    salmonn.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        once = salmonn.generate(batch, num_beams=2, max_new_tokens=4)
        salmonn.sample(batch, temperature=0.7, max_new_tokens=2)
    assert salmonn.training and salmonn.aligner.training
    assert salmonn.generate(batch, num_beams=2, max_new_tokens=4) == once  # no dropout


def test_a_bfloat16_llm_takes_float32_audio_tokens(tiny_llm_dir: Path, batch: Batch) -> None:
    llm, tokenizer = load_llm(tiny_llm_dir, precision="bfloat16")
    salmonn = Salmonn(_aligner(), add_lora(llm, LoraSettings()), tokenizer)
    loss = salmonn.loss(batch)
    loss.mean.backward()
    assert loss.total.dtype == torch.float32
    assert {
        parameter.grad.dtype for parameter in salmonn.trainable_parameters().values() if parameter.grad is not None
    } == {torch.float32}
    assert len(salmonn.generate(batch, num_beams=1, max_new_tokens=2)) == 3


def test_speech_alone_and_an_llm_without_lora_work_too(
    tiny_llm: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase, batch: Batch
) -> None:
    salmonn = Salmonn(_aligner(audio_width=None), tiny_llm, tiny_tokenizer)
    loss = salmonn.loss(dataclasses.replace(batch, audio=None, audio_frames=None))
    assert loss.total.requires_grad
    assert all(name.startswith("aligner.") for name in salmonn.trainable_parameters())


def test_wrong_counts_are_named(salmonn: Salmonn, batch: Batch) -> None:
    with pytest.raises(ValueError, match="2 answers to 3 questions"):
        salmonn.loss(dataclasses.replace(batch, answers=["a", "b"]))
    with pytest.raises(ValueError, match="1 questions about 3 clips"):
        salmonn.generate(dataclasses.replace(batch, questions=["a"]))


def test_a_frozen_random_llm_learns_to_say_what_is_heard(
    tiny_llm: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Eight sounds, 40 frames each, at random places in 6 s of noise; eight words to say."""
    torch.manual_seed(0)
    draw = random.Random(0)
    sounds = torch.randn(len(WORDS), SPEECH_WIDTH)

    def noisy_batch(size: int) -> Batch:
        speech, words = 0.5 * torch.randn(size, 300, SPEECH_WIDTH), [draw.randrange(len(WORDS)) for _ in range(size)]
        for row, word in zip(speech, words, strict=True):
            start = draw.randrange(260)
            row[start : start + 40] += sounds[word]
        return Batch(speech, None, None, ["What are the words?"] * size, [WORDS[word] for word in words])

    salmonn = Salmonn(_aligner(audio_width=None, hidden_width=64), add_lora(tiny_llm, LoraSettings()), tiny_tokenizer)
    parameters = list(salmonn.trainable_parameters().values())
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    for step in range(120):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 20)
        salmonn.loss(noisy_batch(16)).mean.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    unheard = noisy_batch(64)
    answers = [answer.text for answer in salmonn.generate(unheard, num_beams=1, max_new_tokens=4)]
    assert sum(map(str.__eq__, answers, unheard.answers)) / 64 > 0.9


def _aligner(audio_width: int | None = AUDIO_WIDTH, hidden_width: int = 24) -> Aligner:
    torch.manual_seed(0)
    return Aligner(
        AlignerConfig(
            speech_width=SPEECH_WIDTH,
            audio_width=audio_width,
            llm_width=128,
            hidden_width=hidden_width,
            num_heads=4,
            ffn_width=2 * hidden_width,
        )
    )


def _example(batch: Batch, i: int) -> Batch:
    """One example as it would be alone, its audio not padded."""
    assert batch.audio is not None and batch.audio_frames is not None
    frames = int(batch.audio_frames[i])
    return Batch(
        batch.speech[i : i + 1],
        batch.audio[i : i + 1, :frames],
        None,
        batch.questions[i : i + 1],
        batch.answers[i : i + 1],
    )


@pytest.fixture
def salmonn(adapted_llm: PeftModel, tiny_tokenizer: PreTrainedTokenizerBase) -> Salmonn:
    return Salmonn(_aligner(), adapted_llm, tiny_tokenizer)


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(2)
    audio = torch.randn(3, 96, AUDIO_WIDTH)
    frames = torch.tensor([96, 16, 56])
    for row, length in zip(audio, frames.tolist(), strict=True):
        row[length:] = 0
    questions = ["What are the words?", "Describe what can be heard, and where, and when.", "Why?"]
    return Batch(
        3 * torch.randn(3, 200, SPEECH_WIDTH), audio, frames, questions, ["red", "", "a green and yellow bird"]
    )


def _reached(salmonn: Salmonn) -> list[nn.Parameter]:
    """The trainable parameters that a loss depends on: with one query, its own attention's scores do not count."""
    unread = ("self_attention.query", "attention.key.bias", "self_attention.key")
    return [
        tensor for name, tensor in salmonn.trainable_parameters().items() if not any(part in name for part in unread)
    ]


def _flops(salmonn: Salmonn, batch: Batch) -> int:
    """Count the products of a forward and backward pass, attention written out as such."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        salmonn.loss(batch).total.backward()
    return counter.get_total_flops()


def _loss_and_gradients(salmonn: Salmonn, batch: Batch) -> tuple[list[Tensor], int]:
    """Loss and gradients with dropout of one seed, and the number of values kept for the backward pass."""
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = salmonn.loss(batch).total
    return [loss, *torch.autograd.grad(loss, _reached(salmonn))], sum(kept)


class GivenTokens(nn.Module):
    """Stands where the aligner does, to begin from the official model's audio tokens."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = nn.Parameter(tokens)

    def forward(self, speech: Tensor, audio: Tensor | None, *, audio_frames: Tensor | None = None) -> Tensor:
        return self.tokens


@dataclasses.dataclass(frozen=True)
class Official:
    config: dict[str, Any]
    outputs: dict[str, Tensor]
    model: dict[str, Tensor]
    llm: PeftModel
    tokenizer: PreTrainedTokenizerBase

    def salmonn(self, aligner: nn.Module, **options: Any) -> Salmonn:
        return Salmonn(aligner, self.llm, self.tokenizer, **options).eval()


@pytest.fixture(scope="module")
def official() -> Official:
    folder = GOLDEN / "salmonn_small"
    llm, tokenizer = load_llm(GOLDEN / "llama_small")
    llm = add_lora(llm, LoraSettings())
    model = torch.load(folder / "salmonn_small.pth", weights_only=True)["model"]
    load_adapter_state(llm, adapter_from_official(model))
    return Official(
        json.loads((folder / "config.json").read_text()),
        load_file(folder / "outputs.safetensors"),
        model,
        llm,
        tokenizer,
    )


def _official_question(prompt: str, question: str = "") -> str:
    return prompt.removeprefix("<Speech><SpeechHere></Speech> ").format(question)


def _official_batch(case: dict[str, Any]) -> Batch:
    examples = case["batch"]
    questions = [_official_question(case["prompts"][example["task"]], example.get("Q", "")) for example in examples]
    return Batch(torch.zeros(len(examples), 1, 1), None, None, questions, [example["text"] for example in examples])


@pytest.mark.weights
@pytest.mark.parametrize(
    "name",
    [
        *("loss_same_prompt", "loss_same_prompt_encoded_alone", "loss_truncated"),
        *("loss_alone_0", "loss_alone_1", "loss_alone_2"),
    ],
)
def test_loss_and_logits_equal_the_official_model(official: Official, name: str) -> None:
    case = next(case for case in official.config["loss_cases"] if case["name"] == name)
    salmonn = official.salmonn(
        GivenTokens(official.outputs[f"{name}.audio_tokens"]), max_answer_tokens=case.get("max_txt_len", 300)
    )
    batch = _official_batch(case)
    logits, targets = salmonn.target_logits(batch)
    torch.testing.assert_close(logits, official.outputs[f"{name}.target_logits"], atol=1e-4, rtol=0)
    labels, logprobs = official.outputs[f"{name}.labels"][:, 1:], official.outputs[f"{name}.target_logprobs"]
    assert torch.equal(targets, labels[labels != -100])
    ours = logits.log_softmax(dim=-1).gather(1, targets.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(ours, logprobs[labels != -100], atol=1e-4, rtol=0)
    torch.testing.assert_close(salmonn.loss(batch).mean, official.outputs[f"{name}.loss"][0], atol=1e-5, rtol=0)


@pytest.mark.weights
def test_mixed_prompts_give_each_examples_own_official_values(official: Official) -> None:
    """The official model pads inside mixed sequences; ours equal its single examples."""
    names = ["loss_alone_0", "loss_alone_1", "loss_alone_2"]
    cases = [next(case for case in official.config["loss_cases"] if case["name"] == name) for name in names]
    batches = [_official_batch(case) for case in cases]
    together = Batch(
        torch.zeros(3, 1, 1), None, None, [b.questions[0] for b in batches], [b.answers[0] for b in batches]
    )
    audio = torch.cat([official.outputs[f"{name}.audio_tokens"] for name in names])
    logits, _ = official.salmonn(GivenTokens(audio)).target_logits(together)
    expected = torch.cat([official.outputs[f"{name}.target_logits"] for name in names])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.weights
def test_gradients_equal_the_official_model(official: Official) -> None:
    """The loss's gradients for LoRA, and for the aligner's last layer through its audio tokens."""
    name = "loss_same_prompt"
    case = next(case for case in official.config["loss_cases"] if case["name"] == name)
    given = GivenTokens(official.outputs[f"{name}.audio_tokens"])
    salmonn = official.salmonn(given)
    salmonn.zero_grad()
    salmonn.loss(_official_batch(case)).mean.backward()
    prefix = f"{name}.grad.llama_model."
    compared = 0
    for key, expected in official.outputs.items():
        if key.startswith(prefix):
            gradient = official.llm.get_parameter(key.removeprefix(prefix)).grad
            torch.testing.assert_close(gradient, expected, atol=5e-5, rtol=0, msg=lambda text, k=key: f"{k}: {text}")
            compared += 1
    assert compared == 8
    assert given.tokens.grad is not None
    bias_gradient = given.tokens.grad.sum(dim=(0, 1))  # the projection's bias is added to every audio token
    torch.testing.assert_close(
        bias_gradient, official.outputs[f"{name}.grad.{official_name('projection.bias')}"], atol=5e-5, rtol=0
    )


@pytest.mark.weights
@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("name", ["gen_alone_0", "gen_alone_1", "gen_alone_2", "gen_alone_1_qa", "gen_alone_2_caption"])
def test_generated_answers_equal_the_official_model(official: Official, name: str, num_beams: int) -> None:
    case = next(case for case in official.config["generate_cases"] if case["name"] == name)
    clip = {"synth_2p37s": 0, "excitement": 1, "mountain": 2}[case["batch"][0]["clip"]]
    salmonn = official.salmonn(GivenTokens(official.outputs[f"loss_alone_{clip}.audio_tokens"]))
    batch = Batch(torch.zeros(1, 1, 1), None, None, [_official_question(case["prompts"][0])])
    notes = json.loads((GOLDEN / "salmonn_small" / "generation_notes.json").read_text())
    expected = official.tokenizer.decode(notes[f"{name}.beams{num_beams}"]["official_ids"][0], skip_special_tokens=True)
    assert salmonn.generate(batch, num_beams=num_beams, max_new_tokens=20)[0].text == expected.strip()
