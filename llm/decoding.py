"""Greedy and beam search from embedded prompts, for any causal LLM of transformers, without work that nobody reads.

A prompt goes through the LLM once, however many beams continue it, an example that is done leaves the batch, and a new
one joins at any step. The answers are those of transformers' `generate` with `early_stopping=False`, which is
SALMONN's, example by example.

Letters: B examples still at work, K beams, R = B · K rows, T positions of the prompts, H LLM width, V vocabulary,
N most new tokens.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from llm.lora import lora_by_row, lora_layers, use_lora

_NEVER = -1.0e9
"""The score of a continuation that may not be taken: below all others, and finite, so that sums of it stay numbers."""
_FIRST_ROOM = 16
"""Positions that a row is given at first for its answer."""


def decode(
    llm: Any,
    embeds_BTH: Tensor,
    prompt_lengths: list[int],
    *,
    eos: int,
    num_beams: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
) -> list[list[int]]:
    """Return the token ids of each example's answer, without its end token; arguments as of `Decoding`."""
    decoding = Decoding(llm, eos=eos, num_beams=num_beams, max_new_tokens=max_new_tokens, length_penalty=length_penalty)
    decoding.join(range(len(prompt_lengths)), embeds_BTH, prompt_lengths)
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
        """
        self._llm, self._eos, self._num_beams = llm, eos, num_beams
        self._lora = lora_layers(llm)
        self._max_new_tokens, self._length_penalty = max_new_tokens, length_penalty
        self._parts: list[tuple[_Rows, _Greedy | _Beams]] = []
        self._examples: set[int] = set()

    def __len__(self) -> int:
        """Return how many examples have no answer yet."""
        return len(self._examples)

    @torch.no_grad()
    def join(
        self,
        examples: Sequence[int],
        embeds_BTH: Tensor,
        prompt_lengths: list[int],
        most_tokens: Sequence[int] | None = None,
        *,
        adapter: str = "",
    ) -> None:
        """Send the prompts of more examples through the LLM.

        Args:
            examples: [B] Their numbers, none of them in use.
            embeds_BTH: The prompts, padded in front.
            prompt_lengths: [B] Positions of each that are not padding.
            most_tokens: [B] Longest answer of each, at most `max_new_tokens`; None: that.
            adapter: Name of the LoRA that adds to the LLM for these examples, whichever others have; empty: all
                examples have the one in use.
        """
        most = [self._max_new_tokens] * len(examples) if most_tokens is None else list(most_tokens)
        search: _Greedy | _Beams
        if self._num_beams == 1:
            search = _Greedy(examples, most, eos=self._eos, device=embeds_BTH.device)
        else:
            search = _Beams(
                examples,
                most,
                self._num_beams,
                eos=self._eos,
                max_new_tokens=self._max_new_tokens,
                length_penalty=self._length_penalty,
                device=embeds_BTH.device,
            )
        self._parts.append((_Rows(self._llm, self._lora, embeds_BTH, prompt_lengths, adapter), search))
        self._examples.update(examples)

    @torch.no_grad()
    def step(self) -> dict[int, list[int]]:
        """Take every example one token further; return the answers of those that are done, without end tokens."""
        answers: dict[int, list[int]] = {}
        parts, self._parts = self._parts, []
        for rows, search in parts:
            step = search.take(rows.logits_RV)
            answers |= search.take_answers()
            if step is not None:
                rows.select(step)
                self._add(rows, search)
        for rows, _ in self._parts:
            rows.advance()
        self._examples -= answers.keys()
        return answers

    def drop(self, example: int) -> None:
        """Forget an example; nothing is computed for it any more."""
        self._examples.discard(example)
        for _, search in self._parts:
            search.drop(example)

    @torch.no_grad()
    def settled(self) -> dict[int, list[int]]:
        """Return of each example without an answer the tokens with which it will begin, whatever is found."""
        found = {example: tokens for _, search in self._parts for example, tokens in search.settled().items()}
        return {example: tokens for example, tokens in found.items() if example in self._examples}

    def _add(self, rows: "_Rows", search: "_Greedy | _Beams") -> None:
        """Go on with these rows beside the others, in one batch with them where the LLM's cache allows it.

        Their next tokens are chosen: only then has each example as many rows as there are beams.
        """
        for known_rows, known in self._parts:
            if known_rows.can_join(rows):
                known_rows.join(rows)
                known.join(search)  # type: ignore[arg-type]  # all searches of a decoding are of one kind
                return
        self._parts.append((rows, search))


class _Rows:
    """The LLM's state of every row that goes on, and the logits of the token after its last one.

    A step is `select`, then `advance`; between them rows `join`, so that new ones cost no pass through the LLM alone.
    """

    def __init__(self, llm: Any, lora: list[Any], embeds_BTH: Tensor, prompt_lengths: list[int], adapter: str) -> None:
        self._llm, self._lora = llm, lora
        self._adapters = [adapter] * len(prompt_lengths)
        self._cache = _new_cache(llm)
        lengths_R = torch.tensor(prompt_lengths, device=embeds_BTH.device)
        width = embeds_BTH.shape[1]
        self._prompt_R = self._next_R = lengths_R  # positions of the prompt, and the one that the next token takes
        is_padded = min(prompt_lengths) < width
        columns_T = torch.arange(width, device=embeds_BTH.device)
        self._mask_RT = (columns_T >= width - lengths_R.unsqueeze(1)).long() if is_padded else None
        positions_RT = (columns_T - (width - lengths_R.unsqueeze(1))).clamp(min=0)
        self.logits_RV = self._forward(positions_RT, inputs_embeds=embeds_BTH, logits_to_keep=1)

    def select(self, step: "_Step") -> None:
        """Keep some rows, each with the token that it goes on with; a row may be taken several times, or not at all."""
        grows = _growing(self._cache)
        if step.same_prompts and grows:
            for layer in grows:
                layer.select_generated(step.rows)
        else:
            self._cache.batch_select_indices(step.rows)
        if not step.same_prompts:
            self._adapters = [self._adapters[row] for row in step.rows.tolist()]
        self._prompt_R, self._next_R = self._prompt_R[step.rows], self._next_R[step.rows]
        if self._mask_RT is not None:
            self._mask_RT = self._mask_RT[step.rows]
        self._tokens_R = step.tokens

    def advance(self) -> None:
        """Send the selected tokens through the LLM."""
        if self._mask_RT is not None:
            self._mask_RT = torch.cat([self._mask_RT, self._mask_RT.new_ones(len(self._mask_RT), 1)], dim=1)
        self.logits_RV = self._forward(self._next_R.unsqueeze(1), input_ids=self._tokens_R.unsqueeze(1))
        self._next_R = self._next_R + 1

    def can_join(self, other: "_Rows") -> bool:
        """Say whether the two states can become one: not where layers see a window."""
        return all(len(_growing(rows._cache)) == len(rows._cache.layers) for rows in (self, other))

    def join(self, other: "_Rows") -> None:
        """Put another state's rows behind one's own, so that all end in the same column."""
        masks = [rows._without_padding() for rows in (self, other)]
        width = max(mask.shape[1] for mask in masks)
        self._mask_RT = torch.cat([nn.functional.pad(mask, (width - mask.shape[1], 0)) for mask in masks])
        self._prompt_R = torch.cat([self._prompt_R, other._prompt_R])
        self._next_R = torch.cat([self._next_R, other._next_R])
        self._tokens_R = torch.cat([self._tokens_R, other._tokens_R])
        self._adapters = self._adapters + other._adapters
        generated = int((self._next_R - self._prompt_R).max())
        for layer, new in zip(_growing(self._cache), _growing(other._cache), strict=True):
            layer.join(new, generated)

    def _without_padding(self) -> Tensor:
        """Drop the columns in front that all rows leave empty, and return the mask."""
        if self._mask_RT is None:
            return self._next_R.new_ones(len(self._next_R), self._cache.get_seq_length())
        if empty := int(self._mask_RT.argmax(dim=1).min()):
            self._mask_RT = self._mask_RT[:, empty:]
            for layer in _growing(self._cache):
                layer.cut_front(empty)
        return self._mask_RT

    def _forward(self, positions: Tensor, **inputs: Any) -> Tensor:
        is_mixed = len(set(self._adapters)) > 1
        if not is_mixed and self._adapters[0]:
            use_lora(self._llm, self._adapters[0])
        with lora_by_row(self._lora, self._adapters) if is_mixed else nullcontext():
            output = self._llm(
                position_ids=positions,
                attention_mask=self._mask_RT,
                past_key_values=self._cache,
                use_cache=True,
                **inputs,
            )
        logits_RV: Tensor = output.logits[:, -1].float()
        return logits_RV


@dataclass(frozen=True)
class _Step:
    """Which rows go on, and with which tokens."""

    rows: Tensor
    """[R] As numbered before the step."""
    tokens: Tensor
    """[R]"""
    same_prompts: bool
    """Whether each row continues the prompt that the row of its number continued before."""


def _new_cache(llm: Any) -> Cache:
    """Return an empty cache for the LLM; only where all of its layers see everything can it be one that grows."""
    cache = DynamicCache(config=llm.config)
    if cache.layers and all(type(layer) is DynamicLayer for layer in cache.layers):
        return Cache(layers=[_GrowingLayer() for _ in cache.layers])
    return cache


class _GrowingLayer(DynamicLayer):
    """Keys and values [R, heads, positions, width] in a buffer with room, so that a token is written and nothing moved.

    When rows change places among the beams of their prompts, what the prompt left there stays where it is.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the library's
        self._buffers: list[Tensor] = []
        self._length = self._prompt_length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take what new positions leave, and return it behind what was there."""
        new, length = (key_states, value_states), self._length + key_states.shape[2]
        if not self._buffers:
            self.lazy_initialization(*new)
            self._buffers, self._prompt_length = list(new), length
        else:
            self._make_room(length)
            for buffer, states in zip(self._buffers, new, strict=True):
                buffer[:, :, self._length : length] = states
        return self._show(length)

    def _make_room(self, length: int) -> None:
        if self._buffers[0].shape[2] < length:
            room = _room(length - self._prompt_length)
            self._buffers = [torch.cat([buffer, _empty(buffer, room)], dim=2) for buffer in self._buffers]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order."""
        self._buffers = [buffer[indices] for buffer in self._buffers]
        self._show(self._length)

    def join(self, other: "_GrowingLayer", generated: int) -> None:
        """Put another layer's rows behind one's own, all ending in the same column; none has more `generated` ones."""
        length = max(self._length, other._length)
        room, parts = _room(generated), ((self, 0), (other, len(self._buffers[0])))
        joined = []
        for place, buffer in enumerate(self._buffers):
            rows = len(buffer) + len(other._buffers[place])
            both = buffer.new_empty(rows, buffer.shape[1], length + room, buffer.shape[3])
            for part, first in parts:
                filled = both[first : first + len(part._buffers[place])]
                filled[:, :, : length - part._length] = 0  # masked, and yet a number: 0 times it must be 0
                filled[:, :, length - part._length : length] = part._buffers[place][:, :, : part._length]
            joined.append(both)
        self._buffers, self._prompt_length = joined, length - generated
        self._show(length)

    def cut_front(self, columns: int) -> None:
        """Forget the first positions."""
        self._buffers = [buffer[:, :, columns:] for buffer in self._buffers]
        self._show(self._length - columns)

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        keys, values = (buffer[:, :, :length] for buffer in self._buffers)
        self._length, self.keys, self.values = length, keys, values
        return keys, values

    def select_generated(self, indices: Tensor) -> None:
        """Keep these rows where each of them has the same prompt as the row that was in its place."""
        for buffer in self._buffers:
            generated = buffer[:, :, self._prompt_length : self._length]
            generated.copy_(generated[indices])


def _growing(cache: Cache) -> list[_GrowingLayer]:
    return [layer for layer in cache.layers if isinstance(layer, _GrowingLayer)]


def _room(generated: int) -> int:
    """Return for how many positions there is to be room behind a prompt and so many generated ones."""
    return 2 * generated + _FIRST_ROOM


def _empty(buffer: Tensor, positions: int) -> Tensor:
    return buffer.new_empty(*buffer.shape[:2], positions, buffer.shape[3])


class _Greedy:
    def __init__(self, examples: Sequence[int], most_tokens: Sequence[int], *, eos: int, device: torch.device) -> None:
        self._rows = list(examples)
        self._most_tokens = dict(zip(examples, most_tokens, strict=True))
        self._tokens: dict[int, list[int]] = {example: [] for example in examples}
        self._answers: dict[int, list[int]] = {}
        self._eos, self._device = eos, device

    def take(self, logits_RV: Tensor) -> _Step | None:
        """Choose the next tokens; None when no example is left."""
        tokens = logits_RV.argmax(dim=-1).tolist()
        kept = [row for row, token in enumerate(tokens) if self._goes_on(self._rows[row], token)]
        self._rows = [self._rows[row] for row in kept]
        if not kept:
            return None
        chosen = torch.tensor([kept, [tokens[row] for row in kept]], device=self._device)
        return _Step(chosen[0], chosen[1], same_prompts=len(kept) == len(tokens))

    def _goes_on(self, example: int, token: int) -> bool:
        if example not in self._tokens:  # dropped
            return False
        answer = self._tokens[example]
        if token != self._eos:
            answer.append(token)
            if len(answer) < self._most_tokens[example]:
                return True
        self._answers[example] = self._tokens.pop(example)
        return False

    def take_answers(self) -> dict[int, list[int]]:
        """Return the answers that came since the last call."""
        answers, self._answers = self._answers, {}
        return answers

    def join(self, other: "_Greedy") -> None:
        self._rows += other._rows
        self._most_tokens |= other._most_tokens
        self._tokens |= other._tokens

    def drop(self, example: int) -> None:
        self._tokens.pop(example, None)

    def settled(self) -> dict[int, list[int]]:
        return {example: list(tokens) for example, tokens in self._tokens.items()}


@dataclass
class _Finished:
    """The best ended answers of each example."""

    scores: Tensor
    """[B, K] Best first; `_NEVER` where fewer have ended."""
    best: Tensor
    """[B, N] The tokens of the best."""
    best_length: Tensor
    """[B] How many they are."""


class _Beams:
    """Beam search over the examples that still may find a better answer."""

    def __init__(
        self,
        examples: Sequence[int],
        most_tokens: Sequence[int],
        num_beams: int,
        *,
        eos: int,
        max_new_tokens: int,
        length_penalty: float,
        device: torch.device,
    ) -> None:
        count = len(examples)
        self._eos, self._length_penalty, self._num_beams = eos, length_penalty, num_beams
        self._answers: dict[int, list[int]] = {}
        self._dropped: set[int] = set()
        self._examples = torch.tensor(examples, device=device)
        self._most_B = torch.tensor(most_tokens, device=device)
        self._length_B = torch.zeros(count, dtype=torch.long, device=device)
        self._scores_BK = torch.zeros(count, 1, device=device)  # of the prompt, which is one row as yet
        self._tokens_BKN = torch.zeros(count, 1, max_new_tokens, dtype=torch.long, device=device)
        self._finished = _Finished(
            scores=torch.full((count, num_beams), _NEVER, device=device),
            best=torch.zeros(count, max_new_tokens, dtype=torch.long, device=device),
            best_length=torch.zeros(count, dtype=torch.long, device=device),
        )

    def take(self, logits_RV: Tensor) -> _Step | None:
        """Choose the next tokens; None when no example is left.

        Of an example's 2 K likeliest continuations at most K end it, for each beam ends in one way: K go on.
        """
        num_examples, beams = self._scores_BK.shape
        scores_RV = torch.log_softmax(logits_RV, dim=-1) + self._scores_BK.reshape(-1, 1)
        vocabulary = scores_RV.shape[1]
        scores_BC, flat_BC = scores_RV.view(num_examples, -1).topk(2 * self._num_beams)
        beams_BC, tokens_BC = flat_BC // vocabulary, flat_BC % vocabulary
        sequences_BCN = _pick(self._tokens_BKN, beams_BC)
        place_BC1 = self._length_B.view(-1, 1, 1).expand(-1, tokens_BC.shape[1], 1)
        sequences_BCN.scatter_(2, place_BC1, tokens_BC.unsqueeze(-1))
        self._length_B = self._length_B + 1
        is_last_B = self._length_B == self._most_B
        ended_BC = (tokens_BC == self._eos) | is_last_B.unsqueeze(1)
        self._finish(scores_BC, sequences_BCN, ended_BC, tokens_BC)
        self._scores_BK, chosen_BK = (scores_BC + _NEVER * ended_BC).topk(self._num_beams)
        self._tokens_BKN = _pick(sequences_BCN, chosen_BK)
        first_B1 = beams * torch.arange(num_examples, device=beams_BC.device).unsqueeze(1)
        rows_BK = beams_BC.gather(1, chosen_BK) + first_B1
        open_B = self._may_improve() & ~is_last_B
        if self._dropped:
            open_B &= ~torch.isin(self._examples, torch.tensor(list(self._dropped), device=open_B.device))
        self._leave(open_B)
        if not len(self._examples):
            return None
        return _Step(
            rows_BK[open_B].flatten(),
            tokens_BC.gather(1, chosen_BK)[open_B].flatten(),
            same_prompts=len(self._examples) == num_examples and beams == self._num_beams,
        )

    def take_answers(self) -> dict[int, list[int]]:
        """Return the answers that came since the last call."""
        answers, self._answers = self._answers, {}
        return answers

    def join(self, other: "_Beams") -> None:
        for name in ("_examples", "_most_B", "_length_B", "_scores_BK", "_tokens_BKN"):
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))
        self._dropped |= other._dropped
        own, new = self._finished, other._finished
        self._finished = _Finished(
            torch.cat([own.scores, new.scores]),
            torch.cat([own.best, new.best]),
            torch.cat([own.best_length, new.best_length]),
        )

    def drop(self, example: int) -> None:
        if example in self._examples.tolist():
            self._dropped.add(example)

    def settled(self) -> dict[int, list[int]]:
        """Return where all beams agree with each other and with the best answer that has ended."""
        first_BN, done = self._tokens_BKN[:, 0], self._finished
        columns_N = torch.arange(first_BN.shape[1], device=first_BN.device)
        agrees_BN = (self._tokens_BKN == first_BN.unsqueeze(1)).all(dim=1) & (columns_N < self._length_B.unsqueeze(1))
        agrees_with_best_BN = (done.best == first_BN) & (columns_N < done.best_length.unsqueeze(1))
        agrees_BN &= agrees_with_best_BN | (done.scores[:, :1] <= _NEVER / 2)
        counts_B = agrees_BN.long().cumprod(dim=1).sum(dim=1)
        rows = zip(self._examples.tolist(), first_BN.tolist(), counts_B.tolist(), strict=True)
        return {example: tokens[:count] for example, tokens, count in rows}

    def _finish(self, scores_BC: Tensor, sequences_BCN: Tensor, ended_BC: Tensor, tokens_BC: Tensor) -> None:
        """Keep what has ended among the K likeliest continuations."""
        likeliest = slice(0, self._num_beams)
        scores_BK = scores_BC[:, likeliest] / self._lengths_weighed()
        scores_BK = torch.where(ended_BC[:, likeliest], scores_BK, _NEVER)
        best_B, place_B = scores_BK.max(dim=1)
        known = self._finished
        better_B = best_B > known.scores[:, 0]
        at_best = place_B.unsqueeze(1)
        best_BN = _pick(sequences_BCN, at_best).squeeze(1)
        length_B = self._length_B - (tokens_BC.gather(1, at_best).squeeze(1) == self._eos).long()
        self._finished = _Finished(
            scores=torch.cat([known.scores, scores_BK], dim=1).topk(self._num_beams).values,
            best=torch.where(better_B.unsqueeze(1), best_BN, known.best),
            best_length=torch.where(better_B, length_B, known.best_length),
        )

    def _may_improve(self) -> Tensor:
        """Tell of each example whether K answers have ended and all are better than its best beam is by now."""
        best_running_B: Tensor = (self._scores_BK[:, :1] / self._lengths_weighed()).squeeze(1)
        return best_running_B > self._finished.scores[:, -1]

    def _lengths_weighed(self) -> Tensor:
        """Return what log-probabilities are divided by [B, 1]."""
        return self._length_B.double().pow(self._length_penalty).float().unsqueeze(1)

    def _leave(self, open_B: Tensor) -> None:
        """Take the answers of the examples that are done, and go on without them."""
        done = self._finished
        closed_B = ~open_B
        left = zip(
            self._examples[closed_B].tolist(),
            done.best[closed_B].tolist(),
            done.best_length[closed_B].tolist(),
            strict=True,
        )
        for example, tokens, length in left:
            if example in self._dropped:
                self._dropped.discard(example)
            else:
                self._answers[example] = tokens[:length]
        if not closed_B.any():
            return
        self._examples, self._most_B, self._length_B = (
            kept[open_B] for kept in (self._examples, self._most_B, self._length_B)
        )
        self._scores_BK, self._tokens_BKN = self._scores_BK[open_B], self._tokens_BKN[open_B]
        self._finished = _Finished(done.scores[open_B], done.best[open_B], done.best_length[open_B])


def _pick(sequences_BKN: Tensor, chosen_BC: Tensor) -> Tensor:
    """Return the chosen sequences of each example [B, C, N]."""
    return sequences_BKN.gather(1, chosen_BC.unsqueeze(-1).expand(-1, -1, sequences_BKN.shape[-1]))
