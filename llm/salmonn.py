"""The whole model: audio tokens from the aligner, between the words of a prompt, into the frozen LLM.

Letters: B examples, T positions of the LLM's sequence, A audio tokens per clip, H LLM width, N target tokens of the
batch, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm.decoding.decoding import decode
from llm.errors import LLMError
from llm.packing import attend_by_example, packed_logits
from llm.peft_parts import PeftModel
from llm.prompts import AFTER_AUDIO, BEFORE_AUDIO

_AUDIO = -1  # in a row of token ids: here goes one audio token
_PADDING = -2
TEXTS_KEPT = 4_096
"""Of which the tokens are kept: some 10 MB."""


@dataclass(frozen=True)
class Batch:
    """Clips as cached features, and what is asked and answered about each."""

    speech: Tensor
    """[B, frames, channels] Speech stream, every clip's whole; floating, or int8 with its scale."""
    audio: Tensor | None
    """[B, frames, channels] Audio stream, zero-padded; None when the model hears speech alone."""
    audio_frames: Tensor | None
    """[B] Real frames of each row of `audio`; None when no row is padded."""
    questions: list[str]
    """[B] What is asked about each clip."""
    answers: list[str] = field(default_factory=list)
    """[B] What should be answered; empty where an answer is to be generated."""
    speech_frames: Tensor | None = None
    """[B] Frames of each row of `speech` where each clip is heard at its own length; None where all are heard alike."""
    speech_scale: Tensor | None = None
    """[B, channels] What `speech` is multiplied by; None for 1."""
    audio_scale: Tensor | None = None
    """[B, channels] What `audio` is multiplied by; None for 1."""

    def to(self, device: str | torch.device, *, non_blocking: bool = False) -> "Batch":
        """Return the batch with its tensors on `device`."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def only(self, place: int) -> "Batch":
        """Return the batch of the one example in this place."""
        one = slice(place, place + 1)
        lists = replace(self, questions=self.questions[one], answers=self.answers[one])
        return lists._with_each(lambda tensor: tensor[one])

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        names = ("speech", "audio", "audio_frames", "speech_frames", "speech_scale", "audio_scale")
        tensors: Any = {name: change(tensor) for name in names if (tensor := getattr(self, name)) is not None}
        return replace(self, **tensors)


@dataclass(frozen=True)
class Answer:
    """What was generated, without control tokens and blanks at its ends."""

    text: str
    num_tokens: int
    """[count] Tokens generated, but for the one that ends the answer."""


@dataclass(frozen=True)
class TokenLoss:
    """Cross-entropy over a batch's answer tokens, as a sum, so that batches and workers add up exactly.

    Training does not use it: `pipelines/batches/micro_batch.py` sums up by task.
    """

    total: Tensor
    """[nats] Scalar sum over the target tokens."""
    num_targets: int
    """[count] Target tokens: the answers' and their ends'."""
    num_correct: Tensor
    """[count] Scalar: targets that were the most likely token. On the loss's device, which need not be waited for."""

    @property
    def mean(self) -> Tensor:
        """[nats per token] The loss to minimise: a mean over tokens, not over examples."""
        return self.total / self.num_targets


class Salmonn(nn.Module):
    """An aligner, an LLM (with LoRA or without) and the LLM's tokenizer. Only aligner and LoRA weights train."""

    def __init__(
        self,
        aligner: nn.Module,
        llm: PeftModel | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_answer_tokens: int = 300,
    ) -> None:
        """Take the parts as they are; `aligner(speech, audio, audio_frames=…)` returns [B, A, H].

        Of clips that are heard at their own lengths `aligner.by_clip` returns the tokens, [N, H].
        `max_answer_tokens` cuts longer answers, which then have no end token to learn. The loss is right where
        `require_packing(llm)` does not object.
        """
        super().__init__()
        if max_answer_tokens < 1:
            raise LLMError(f"max_answer_tokens {max_answer_tokens} must be at least 1")
        self.aligner = aligner
        self.llm: Any = llm  # a PeftModel finds the LLM's methods at run time
        self.tokenizer = tokenizer
        # A batch is dealt by its lengths before it is read, and questions come again.
        self._tokenise = lru_cache(maxsize=TEXTS_KEPT)(self._tokenise_anew)
        self.max_answer_tokens = max_answer_tokens
        attend_by_example(llm)
        aligner.requires_grad_(True)
        for name, parameter in llm.named_parameters():
            parameter.requires_grad_("lora_" in name)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return the aligner's and LoRA's parameters by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def forward(self, batch: Batch) -> TokenLoss:
        """Return `loss(batch)`: what a wrapper such as DistributedDataParallel calls."""
        return self.loss(batch)

    def loss(self, batch: Batch) -> TokenLoss:
        """Return the cross-entropy of the batch's answers; training sums `target_logits` up by task instead.

        Raises:
            LLMError: If the batch has not one question and one answer per clip.
        """
        logits_NV, targets_N = self.target_logits(batch)
        return TokenLoss(
            total=nn.functional.cross_entropy(logits_NV, targets_N, reduction="sum"),
            num_targets=len(targets_N),
            num_correct=(logits_NV.detach().argmax(dim=-1) == targets_N).sum(),
        )

    def target_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return float32 logits [N, V] and the targets [N] they should predict, example by example.

        Raises:
            LLMError: If the batch has not one question and one answer per clip.
        """
        if len(batch.answers) != len(batch.questions):
            raise ValueError(f"{len(batch.answers)} answers to {len(batch.questions)} questions")
        audio_NH, counts = self._audio_tokens(batch)
        pairs = [
            (self._prompt(question, num_audio_tokens=count), self._answer(answer))
            for question, answer, count in zip(batch.questions, batch.answers, counts, strict=True)
        ]
        # Nothing follows an answer's last token, so it is not read; the row's last positions predict the answer.
        ids = [token for prompt, answer in pairs for token in (*prompt, *answer[:-1])]
        lengths = [len(prompt) + len(answer) - 1 for prompt, answer in pairs]
        columns = [
            column
            for end, (_, answer) in zip(accumulate(lengths), pairs, strict=True)
            for column in range(end - len(answer), end)
        ]
        embeds_TH = self._embed(torch.tensor([ids]), audio_NH).squeeze(0)
        logits_NV = packed_logits(self.llm, embeds_TH, lengths, torch.tensor(columns))
        targets_N = torch.tensor([token for _, answer in pairs for token in answer], device=logits_NV.device)
        return logits_NV.float(), targets_N

    def count_tokens(self, question: str, answer: str, *, num_audio_tokens: int) -> int:
        """Return how many positions of the LLM an example takes in training."""
        return len(self._prompt(question, num_audio_tokens=num_audio_tokens)) + len(self._answer(answer)) - 1

    def prompt_tokens(self, question: str, *, num_audio_tokens: int) -> int:
        """Return how many positions of the LLM a question takes with its clip."""
        return len(self._prompt(question, num_audio_tokens=num_audio_tokens))

    def is_cut(self, answer: str) -> bool:
        """Say whether an answer is too long to be learnt to its end."""
        return len(self._tokenise(answer.rstrip())) >= self.max_answer_tokens

    @torch.no_grad()
    def generate(
        self, batch: Batch, *, num_beams: int = 4, max_new_tokens: int = 200, length_penalty: float = 1.0
    ) -> list[Answer]:
        """Answer the batch's questions; each answer is what the example alone would get. Dropout is off meanwhile.

        `length_penalty` shapes the search of several beams only.

        Raises:
            LLMError: If the batch has not one question per clip.
        """
        was_training = self.training
        self.eval()
        try:
            embeds_BTH, lengths = self.embed_prompts(batch)
            answers = decode(
                self.llm,
                embeds_BTH,
                lengths,
                eos=self.tokenizer.eos_token_id,
                num_beams=num_beams,
                max_new_tokens=max_new_tokens,
                length_penalty=length_penalty,
                prompt_again=partial(self.prompt_again, batch.only),
            )
        finally:
            self.train(was_training)
        return [self.answer_of(tokens) for tokens in answers]

    @torch.no_grad()
    def sample(
        self, batch: Batch, *, max_new_tokens: int = 200, temperature: float = 1.0, top_p: float = 0.9
    ) -> list[Answer]:
        """Answer the batch's questions by chance, from the likeliest tokens that make up `top_p` at each step.

        Raises:
            LLMError: If the batch has not one question per clip.
        """
        was_training = self.training
        self.eval()
        try:
            embeds_BTH, lengths = self.embed_prompts(batch)
            padding_B = embeds_BTH.shape[1] - torch.tensor(lengths, device=embeds_BTH.device)
            columns_T = torch.arange(embeds_BTH.shape[1], device=embeds_BTH.device)
            eos, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
            answer_ids = self.llm.generate(
                inputs_embeds=embeds_BTH,
                attention_mask=(columns_T >= padding_B.unsqueeze(1)).long(),
                max_new_tokens=max_new_tokens,
                do_sample=True,
                temperature=temperature,
                top_p=top_p,
                eos_token_id=eos,
                pad_token_id=eos if pad is None else pad,
            )
        finally:
            self.train(was_training)
        num_tokens = ((answer_ids == eos).cumsum(dim=1) == 0).sum(dim=1).tolist()
        texts: list[str] = self.tokenizer.batch_decode(answer_ids, skip_special_tokens=True)
        return [Answer(text.strip(), count) for text, count in zip(texts, num_tokens, strict=True)]

    def answer_of(self, tokens: list[int]) -> Answer:
        """Return the answer that token ids, without an end token, spell."""
        return Answer(self.spell(tokens), len(tokens))

    def spell(self, tokens: list[int]) -> str:
        """Return the text of token ids, without control tokens and blanks at its ends."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    def embed_prompts(self, batch: Batch) -> tuple[Tensor, list[int]]:
        """Return the prompts [B, T, H], each ending in the last column, and their lengths [B].

        Raises:
            LLMError: If the batch has not one question per clip.
        """
        audio_NH, counts = self._audio_tokens(batch)
        prompts = [
            self._prompt(question, num_audio_tokens=count)
            for question, count in zip(batch.questions, counts, strict=True)
        ]
        ids_BT = pad_sequence(
            [torch.tensor(prompt) for prompt in prompts],
            batch_first=True,
            padding_value=_PADDING,
            padding_side="left",  # every row continues from its own last token
        )
        return self._embed(ids_BT, audio_NH), [len(prompt) for prompt in prompts]

    def prompt_again(self, one: Callable[[int], Batch], place: int) -> Callable[[], Tensor]:
        """Make one example's batch with `one`; return what computes its prompt [1, T, H], no rounding due to others."""
        batch = one(place)
        return lambda: self.embed_prompts(batch)[0]

    def _audio_tokens(self, batch: Batch) -> tuple[Tensor, list[int]]:
        """Return the clips' audio tokens one after the other, [N, H], and how many each has, [B]."""
        if len(batch.questions) != len(batch.speech):
            raise ValueError(f"{len(batch.questions)} questions about {len(batch.speech)} clips")
        speech_BTC = _scaled(batch.speech, batch.speech_scale)
        audio_BTC = None if batch.audio is None else _scaled(batch.audio, batch.audio_scale)
        if batch.speech_frames is not None:
            aligner: Any = self.aligner  # PyTorch's types do not know the methods of a module
            frames = {"speech_frames": batch.speech_frames, "audio_frames": batch.audio_frames}
            audio_NH: Tensor = aligner.by_clip(speech_BTC, audio_BTC, **frames)
            return audio_NH, [aligner.num_reached_tokens(count) for count in batch.speech_frames.tolist()]
        audio_BAH: Tensor = self.aligner(speech_BTC, audio_BTC, audio_frames=batch.audio_frames)
        return audio_BAH.flatten(0, 1), [audio_BAH.shape[1]] * len(audio_BAH)

    def _prompt(self, question: str, *, num_audio_tokens: int) -> list[int]:
        """Return the ids up to where the answer begins; texts are tokenised one by one, as SALMONN does."""
        begin = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        before, after = self._tokenise(BEFORE_AUDIO), self._tokenise(AFTER_AUDIO.format(question=question))
        return [*begin, *before, *[_AUDIO] * num_audio_tokens, *after]

    def _answer(self, answer: str) -> list[int]:
        """Return the ids to learn; blanks at the end go, as before the `</s>` that SALMONN's own code writes."""
        return [*self._tokenise(answer.rstrip()), self.tokenizer.eos_token_id][: self.max_answer_tokens]

    def _tokenise_anew(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text, in which a spelled control token (`</s>`, `<unk>`) is text."""
        return tuple(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)

    def _embed(self, ids_BT: Tensor, audio_NH: Tensor) -> Tensor:
        """Return the LLM's input [B, T, H] in its own dtype, audio tokens in their places."""
        ids_BT = ids_BT.to(audio_NH.device)
        embeds_BTH: Tensor = self.llm.get_input_embeddings()(ids_BT.clamp(min=0))
        return embeds_BTH.masked_scatter((ids_BT == _AUDIO).unsqueeze(-1), audio_NH.to(embeds_BTH.dtype))


def _scaled(stored_BTC: Tensor, scale_BC: Tensor | None) -> Tensor:
    """Return the frames that were stored, on the device where they are; C is channels."""
    return stored_BTC if scale_BC is None else stored_BTC.float() * scale_BC.unsqueeze(1)
