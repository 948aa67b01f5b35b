"""Greedy and beam search from embedded prompts, for LLMs of transformers that attend, without work that nobody reads.

A prompt goes through the LLM once, however many beams continue it, an example that is done leaves the batch, and a new
one joins at any step. The answers are those of transformers' `generate` with `early_stopping=False`, which is
SALMONN's, example by example. With an LLM in float32 they are the same whatever else is in the batch: where rounding
would decide between two continuations, float64 does. LLMs with experts are left out: which experts a token gets is
another choice that rounding makes, and no float64 sees it.

Letters: B examples still at work, K beams, R = B · K rows, T positions of the prompts, H LLM width, V vocabulary,
N most new tokens, C columns of the cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llm.decoding.exact import InFloat64, Likelihoods, likelihoods
from llm.decoding.layers import windows_of
from llm.decoding.searches import Beams, Greedy
from llm.decoding.trees import AdaptedLLM, Prompts, Trees, read_prompts
from llm.errors import LLMError


def decode(
    llm: Any,
    embeds_BTH: Tensor,
    prompt_lengths: list[int],
    *,
    eos: int,
    num_beams: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
    prompt_again: Callable[[int], Callable[[], Tensor]] | None = None,
) -> list[list[int]]:
    """Return the token ids of each example's answer, without its end token; arguments as of `Decoding`."""
    decoding = Decoding(llm, eos=eos, num_beams=num_beams, max_new_tokens=max_new_tokens, length_penalty=length_penalty)
    decoding.join(range(len(prompt_lengths)), embeds_BTH, prompt_lengths, prompt_again=prompt_again)
    answers: dict[int, list[int]] = {}
    while len(decoding):
        answers |= decoding.step()
    return [answers[example] for example in range(len(prompt_lengths))]


class Decoding:
    """Examples that are decoded together, a token at each step, whenever they joined. Each is known by a number."""

    def __init__(self, llm: Any, *, eos: int, num_beams: int, max_new_tokens: int, length_penalty: float = 1.0) -> None:
        """Begin without an example.

        Args:
            llm: In evaluation mode.
            eos: The token that ends an answer.
            num_beams: 1 takes the likeliest token at each step; more search for the likeliest answer.
            max_new_tokens: Longest answer, its end token included.
            length_penalty: An answer's log-probability is divided by its length to this power; of no account for 1
                beam.

        Raises:
            LLMError: As `require_decoding`, if a number is not 1 or more, or if the LLM has too few tokens for so many
                beams.
        """
        for name, number in (("num_beams", num_beams), ("max_new_tokens", max_new_tokens)):
            if number < 1:
                raise LLMError(f"{name}={number}: must be 1 or more")
        tokens = llm.config.get_text_config(decoder=True).vocab_size
        if num_beams > 1 and tokens <= 2 * num_beams:
            raise LLMError(
                f"num_beams={num_beams}: needs more than {2 * num_beams} tokens to choose from, not {tokens}"
            )
        self._eos, self._num_beams = eos, num_beams
        self._max_new_tokens, self._length_penalty = max_new_tokens, length_penalty
        self._llm, self._windows = AdaptedLLM(llm), windows_of(llm)
        self._embed = llm.get_input_embeddings()
        is_float32 = all(weights.dtype == torch.float32 for weights in llm.parameters())
        self._is_judged = is_float32 and not any(name.endswith("experts") for name, _ in llm.named_modules())
        self._trees = Trees(num_beams, self._windows)
        self._search: Greedy | Beams | None = None
        self._logits_RV: Tensor  # of the next tokens of those who search
        self._begun: list[tuple[Prompts, Greedy | Beams]] = []
        self._asked: dict[int, _Asked] = {}
        self.near_ties = 0
        """How often float64 decided."""

    def __len__(self) -> int:
        """Return how many examples have no answer yet."""
        return len(self._asked)

    @torch.no_grad()
    def join(
        self,
        examples: Sequence[int],
        embeds_BTH: Tensor,
        prompt_lengths: list[int],
        most_tokens: Sequence[int] | None = None,
        *,
        adapter: str = "",
        prompt_again: Callable[[int], Callable[[], Tensor]] | None = None,
    ) -> None:
        """Send the prompts of more examples through the LLM.

        Args:
            examples: [B] Their numbers, none of them in use.
            embeds_BTH: The prompts, padded in front.
            prompt_lengths: [B] Positions of each that are not padding.
            most_tokens: [B] Longest answer of each, at most `max_new_tokens`; None: that.
            adapter: Name of the LoRA that adds to the LLM for these examples, whichever others have; empty: all
                examples have the one in use.
            prompt_again: Called when float64 is to decide about one of the B; returns what computes its prompt anew,
                alone, [1, T, H], which runs in float64, while the call itself may read and write what it needs. None:
                the prompt is what it is here.
        """
        most = [self._max_new_tokens] * len(examples) if most_tokens is None else list(most_tokens)
        common: dict[str, Any] = {"eos": self._eos, "device": embeds_BTH.device}
        if self._is_judged:
            common["judge"] = self._judge
        search: Greedy | Beams
        if self._num_beams == 1:
            search = Greedy(examples, most, **common)
        else:
            search = Beams(
                examples,
                most,
                self._num_beams,
                max_new_tokens=self._max_new_tokens,
                length_penalty=self._length_penalty,
                **common,
            )
        self._begun.append((read_prompts(self._llm, embeds_BTH, prompt_lengths, adapter), search))
        for place, (example, length) in enumerate(zip(examples, prompt_lengths, strict=True)):
            prompt = embeds_BTH[place : place + 1, -length:] if prompt_again is None else partial(prompt_again, place)
            self._asked[example] = _Asked(prompt, adapter)

    @torch.no_grad()
    def step(self) -> dict[int, list[int]]:
        """Take every example one token further; return the answers of those that are done, without end tokens."""
        answers: dict[int, list[int]] = {}
        tokens_BK = []
        if self._search is not None:
            step = self._search.take(self._logits_RV)
            answers |= self._search.take_answers()
            self._trees.select(step)
            tokens_BK.append(step.tokens)
        for prompts, search in self._begun:
            step = search.take(prompts.logits)
            answers |= search.take_answers()
            self._trees.join(prompts, step.examples)
            tokens_BK.append(step.tokens)
            if self._search is None:
                self._search = search
            else:
                self._search.join(search)  # type: ignore[arg-type]  # all searches of a decoding are of one kind
        self._begun = []
        if len(self._trees.adapters):
            self._logits_RV = self._trees.advance(self._llm, torch.cat(tokens_BK))
        else:
            self._search, self._trees = None, Trees(self._num_beams, self._windows)
        for example in answers:
            del self._asked[example]
        return answers

    def drop(self, example: int) -> None:
        """Forget an example; nothing is computed for it any more."""
        self._asked.pop(example, None)
        for search in self._searches():
            search.drop(example)

    @torch.no_grad()
    def settled(self) -> dict[int, list[int]]:
        """Return of each example without an answer the tokens with which it will begin, whatever is found."""
        found = {example: tokens for search in self._searches() for example, tokens in search.settled().items()}
        return {example: tokens for example, tokens in found.items() if example in self._asked}

    def _judge(self, example: int, sequences: Sequence[Sequence[int]]) -> Likelihoods:
        self.near_ties += 1
        asked = self._asked[example]
        prompt = asked.prompt if isinstance(asked.prompt, Tensor) else asked.prompt()  # which may read from a cache
        with InFloat64():  # type: ignore[no-untyped-call]  # the library's
            forward = partial(self._llm, [asked.adapter])
            asked.prompt = prompt if isinstance(prompt, Tensor) else prompt()
            return likelihoods(forward, self._embed, self._windows, asked.prompt.double(), sequences)

    def _searches(self) -> list[Greedy | Beams]:
        begun = [search for _, search in self._begun]
        return begun if self._search is None else [self._search, *begun]


@dataclass
class _Asked:
    """What is known of an example for the case that float64 is to decide."""

    prompt: Tensor | Callable[[], Callable[[], Tensor]]
    """[1, T, H], or, until it is needed first, what returns what computes it."""
    adapter: str
