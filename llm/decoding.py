"""Greedy and beam search from embedded prompts, for LLMs of transformers that attend, without work that nobody reads.

A prompt goes through the LLM once, however many beams continue it, an example that is done leaves the batch, and a new
one joins at any step. The answers are those of transformers' `generate` with `early_stopping=False`, which is
SALMONN's, example by example.

Letters: B examples still at work, K beams, R = B · K rows, T positions of the prompts, H LLM width, V vocabulary,
N most new tokens, C columns of the cache.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, DynamicCache
from transformers.cache_utils import get_layer_types_and_kwargs

from llm.errors import LLMError
from llm.lora import lora_by_row, lora_layers, use_lora

_NEVER = -1.0e9
"""The score of a continuation that may not be taken: below all others, and finite, so that sums of it stay numbers."""
_ROOM = 16
"""Tokens for which an example is given room at a time."""


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

        Raises:
            LLMError: As `require_decoding`.
        """
        self._eos, self._num_beams = eos, num_beams
        self._max_new_tokens, self._length_penalty = max_new_tokens, length_penalty
        self._llm, self._windows = _AdaptedLLM(llm), _windows(llm)
        self._trees = _Trees(num_beams, self._windows)
        self._search: _Greedy | _Beams | None = None
        self._logits_RV: Tensor  # of the next tokens of those who search
        self._begun: list[tuple[_Prompts, _Greedy | _Beams]] = []
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
        self._begun.append((_read_prompts(self._llm, embeds_BTH, prompt_lengths, adapter), search))
        self._examples.update(examples)

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
            self._search, self._trees = None, _Trees(self._num_beams, self._windows)
        self._examples -= answers.keys()
        return answers

    def drop(self, example: int) -> None:
        """Forget an example; nothing is computed for it any more."""
        self._examples.discard(example)
        for search in self._searches():
            search.drop(example)

    @torch.no_grad()
    def settled(self) -> dict[int, list[int]]:
        """Return of each example without an answer the tokens with which it will begin, whatever is found."""
        found = {example: tokens for search in self._searches() for example, tokens in search.settled().items()}
        return {example: tokens for example, tokens in found.items() if example in self._examples}

    def _searches(self) -> "list[_Greedy | _Beams]":
        begun = [search for _, search in self._begun]
        return begun if self._search is None else [self._search, *begun]


class _AdaptedLLM:
    """An LLM whose rows may have LoRA of different names."""

    def __init__(self, llm: Any) -> None:
        self._llm, self._lora = llm, lora_layers(llm)

    def __call__(self, adapters: list[str], **inputs: Any) -> Tensor:
        """Return the logits in float32; `adapters` has a name for each row."""
        is_mixed = len(set(adapters)) > 1
        if not is_mixed and adapters[0]:
            use_lora(self._llm, adapters[0])
        with lora_by_row(self._lora, adapters) if is_mixed else nullcontext():
            logits: Tensor = self._llm(use_cache=True, **inputs).logits
        return logits.float()


@dataclass(frozen=True)
class _Prompts:
    """Prompts that went through the LLM."""

    layers: list[list[Tensor]]
    """Of each layer keys and values [B, heads, T, width], each prompt ending in the last column."""
    lengths: list[int]
    adapter: str
    logits: Tensor
    """[B, V] Of each one's next token."""


def _read_prompts(llm: _AdaptedLLM, embeds_BTH: Tensor, lengths: list[int], adapter: str) -> _Prompts:
    """Send prompts through the LLM; its arguments are `Decoding.join`'s."""
    padding_B1 = embeds_BTH.shape[1] - torch.tensor(lengths, device=embeds_BTH.device).unsqueeze(1)
    columns_T = torch.arange(embeds_BTH.shape[1], device=embeds_BTH.device)
    cache = DynamicCache()
    logits_B1V = llm(
        [adapter] * len(lengths),
        inputs_embeds=embeds_BTH,
        position_ids=(columns_T - padding_B1).clamp(min=0),
        attention_mask=(columns_T >= padding_B1).long() if min(lengths) < embeds_BTH.shape[1] else None,
        past_key_values=cache,
        logits_to_keep=1,
    )
    layers: list[Any] = cache.layers
    return _Prompts([[layer.keys, layer.values] for layer in layers], lengths, adapter, logits_B1V[:, -1])


@dataclass(frozen=True)
class _Step:
    """Which examples go on, and with which tokens."""

    examples: list[int]
    """[B] As numbered before the step."""
    beams: Tensor
    """[B, K] Which beam of its example each one continues."""
    tokens: Tensor
    """[B, K]"""


def _in_gaps(goes_on: Sequence[bool]) -> list[int]:
    """Return who goes on, in an order in which few have another place than before: the last fill the gaps."""
    kept = [place for place, stays in enumerate(goes_on) if stays]
    last = [place for place in kept if place >= len(kept)]
    return [place if goes_on[place] else last.pop() for place in range(len(kept))]


def require_decoding(llm: Any) -> None:
    """Check that the LLM can answer here.

    Raises:
        LLMError: If it has layers that keep something else than keys and values of every position they see.
    """
    _windows(llm)


def _windows(llm: Any) -> dict[str, int | None]:
    """Return how many positions back layers see, by their kind; None: all. Raises as `require_decoding`."""
    config = llm.config.get_text_config(decoder=True)
    kinds, options = get_layer_types_and_kwargs(config)
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    found = f"of the kind {unknown[0]}" if unknown else ""
    if getattr(config, "num_kv_shared_layers", 0):
        found = "that take keys and values of other layers"
    elif "local" in getattr(config, "attention_layers", ()):  # GPT-Neo's, which takes a column for a position
        found = "of the kind local"
    if found:
        raise LLMError(f"language models of type {llm.config.model_type} cannot answer here: they have layers {found}")
    return {kind: option.get("sliding_window") for kind, option in zip(kinds, options, strict=True)}


class _Trees(Cache):
    """What the LLM knows of the examples at work: a tree each, which begins with the prompt and branches into beams.

    A token's keys and values stay in the column where they were written, whichever beams continue it, and a mask says
    which columns each beam has. So a prompt is kept once, and nothing moves when beams change places. An example's
    columns depend on no other's: where one leaves, the next one writes.
    """

    def __init__(self, num_beams: int, windows: dict[str, int | None]) -> None:
        super().__init__(layers=[])
        self._num_beams, self._windows = num_beams, windows
        self.adapters: list[str] = []  # of each example
        self._used: list[int] = []  # columns of each
        self._next: list[int] = []  # the position that each one's next token takes
        self._layers: list[list[Tensor]] = []  # of each layer keys and values [places, heads, columns, width]
        self._has_BKC: Tensor  # whether a beam has a column
        self._positions_BC: Tensor  # which position a column is of

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Write what the beams' tokens leave in a layer, and return all that is known there."""
        for buffer, new in zip(self._layers[layer_idx], (key_states, value_states), strict=True):
            buffer[self._rows_B1, :, self._columns_BK] = new.transpose(1, 2)
        keys, values = (buffer[: len(self._used), :, : max(self._used)] for buffer in self._layers[layer_idx])
        return keys, values

    def select(self, step: _Step) -> None:
        """Let each beam continue the one that the step names, in the examples that go on."""
        for place, old in enumerate(step.examples):
            if place != old:
                for buffer in chain(*self._layers):
                    _write(buffer[place], buffer[old, :, : self._used[old]])
        self.adapters = [self.adapters[old] for old in step.examples]
        self._used, self._next = ([known[old] for old in step.examples] for known in (self._used, self._next))
        old_B = torch.tensor(step.examples, device=step.beams.device, dtype=torch.long)
        self._has_BKC = self._has_BKC[old_B.unsqueeze(1), step.beams]
        self._positions_BC = self._positions_BC[old_B]

    def join(self, prompts: _Prompts, examples: list[int]) -> None:
        """Go on with some of the prompts too; their beams have the whole of them."""
        if not examples:
            return
        first, lengths = len(self._used), [prompts.lengths[example] for example in examples]
        if not first:
            self._begin(prompts.layers)
        self._fit(first + len(examples), max(lengths))
        for buffer, states in zip(chain(*self._layers), chain(*prompts.layers), strict=True):
            for place, example, length in zip(count(first), examples, lengths, strict=False):
                _write(buffer[place], states[example, :, -length:])
        columns_C = torch.arange(self._positions_BC.shape[1], device=self._positions_BC.device)
        has_BC = columns_C < torch.tensor(lengths, device=columns_C.device).unsqueeze(1)
        self._has_BKC = torch.cat([self._has_BKC, has_BC.unsqueeze(1).expand(-1, self._num_beams, -1)])
        self._positions_BC = torch.cat([self._positions_BC, columns_C.expand(len(examples), -1)])
        self.adapters = self.adapters + [prompts.adapter] * len(examples)
        self._used, self._next = self._used + lengths, self._next + lengths

    def _begin(self, layers: list[list[Tensor]]) -> None:
        some = layers[0][0]
        self._layers = [[states[:0, :, :0] for states in layer] for layer in layers]
        self._has_BKC = torch.zeros(0, self._num_beams, 0, dtype=torch.bool, device=some.device)
        self._positions_BC = torch.zeros(0, 0, dtype=torch.long, device=some.device)

    def advance(self, llm: _AdaptedLLM, tokens_BK: Tensor) -> Tensor:
        """Send each beam's token through the LLM and return the logits of the next, [B · K, V]."""
        self._fit(len(self._used), 0)
        device = tokens_BK.device
        used_B1, next_B1 = torch.tensor([self._used, self._next], device=device).unsqueeze(2)
        beams_K = torch.arange(self._num_beams, device=device)
        self._rows_B1, self._columns_BK = torch.arange(len(tokens_BK), device=device).unsqueeze(1), used_B1 + beams_K
        self._has_BKC[self._rows_B1, beams_K, self._columns_BK] = True
        self._positions_BC[self._rows_B1, self._columns_BK] = next_B1
        self._used = [used + self._num_beams for used in self._used]
        self._next = [position + 1 for position in self._next]
        logits_BKV = llm(
            self.adapters,
            input_ids=tokens_BK,
            position_ids=next_B1.expand(-1, self._num_beams),
            attention_mask=self._mask(next_B1),
            past_key_values=self,
        )
        return logits_BKV.flatten(0, 1)

    def _mask(self, next_B1: Tensor) -> Tensor | dict[str, Tensor]:
        """Return what is added to attention's logits, [B, 1, K, columns]; by the layers' kinds if there are two."""
        width, dtype, masks = max(self._used), self._layers[0][0].dtype, {}
        for kind, window in self._windows.items():
            has_BKC = self._has_BKC[:, :, :width]
            if window is not None:
                has_BKC = has_BKC & (self._positions_BC[:, :width] > next_B1 - window).unsqueeze(1)
            # A number for each column: whoever computes attention, by `sdpa` or not, takes that.
            open_BKC = torch.zeros_like(has_BKC, dtype=dtype)
            masks[kind] = open_BKC.masked_fill_(~has_BKC, torch.finfo(dtype).min).unsqueeze(1)
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _fit(self, examples: int, columns: int) -> None:
        """Make room for so many examples and columns of a new one, and for a token of each beam; not much more."""
        places, room = self._layers[0][0].shape[0], self._positions_BC.shape[1]
        most, spare = max([columns, *self._used]), self._num_beams * _ROOM
        if examples <= places <= 2 * examples and most + self._num_beams <= room <= 2 * (most + spare):
            return
        own_BC = self._has_BKC.any(dim=1)  # what no beam continues is left out
        self._used = own_BC.sum(dim=1).tolist()
        kept_BC = own_BC.int().argsort(dim=1, descending=True, stable=True)[:, : max(self._used, default=0)]
        room = max([columns, *self._used]) + spare
        empty = room - kept_BC.shape[1]
        rows_B1 = torch.arange(len(kept_BC), device=kept_BC.device).unsqueeze(1)
        self._has_BKC = pad(self._has_BKC.gather(2, kept_BC.unsqueeze(1).expand(-1, self._num_beams, -1)), (0, empty))
        self._positions_BC = pad(self._positions_BC.gather(1, kept_BC), (0, empty))
        for layer in self._layers:
            for part, buffer in enumerate(layer):
                layer[part] = buffer.new_zeros(examples, buffer.shape[1], room, buffer.shape[3])
                layer[part][: len(kept_BC), :, : kept_BC.shape[1]] = buffer[rows_B1, :, kept_BC].transpose(1, 2)


def _write(place: Tensor, states: Tensor) -> None:
    """Write an example's keys or values, [heads, columns, width], and zeros where another's stood behind them.

    A masked column is multiplied by 0 all the same, which not every number survives.
    """
    place[:, : states.shape[1]] = states
    place[:, states.shape[1] :] = 0


class _Greedy:
    def __init__(self, examples: Sequence[int], most_tokens: Sequence[int], *, eos: int, device: torch.device) -> None:
        self._rows = list(examples)
        self._most_tokens = dict(zip(examples, most_tokens, strict=True))
        self._tokens: dict[int, list[int]] = {example: [] for example in examples}
        self._answers: dict[int, list[int]] = {}
        self._eos, self._device = eos, device

    def take(self, logits_RV: Tensor) -> _Step:
        """Choose the next tokens."""
        tokens = logits_RV.argmax(dim=-1).tolist()
        kept = _in_gaps([self._goes_on(self._rows[row], token) for row, token in enumerate(tokens)])
        self._rows = [self._rows[row] for row in kept]
        tokens_B1 = torch.tensor([tokens[row] for row in kept], device=self._device, dtype=torch.long).unsqueeze(1)
        return _Step(kept, torch.zeros_like(tokens_B1), tokens_B1)

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

    def take(self, logits_RV: Tensor) -> _Step:
        """Choose the next tokens.

        Of an example's 2 K likeliest continuations at most K end it, for each beam ends in one way: K go on.
        """
        num_examples = len(self._scores_BK)
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
        open_B = self._may_improve() & ~is_last_B
        if self._dropped:
            open_B &= ~torch.isin(self._examples, torch.tensor(list(self._dropped), device=open_B.device))
        kept = self._leave(open_B)
        return _Step(kept, beams_BC.gather(1, chosen_BK)[kept], tokens_BC.gather(1, chosen_BK)[kept])

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

    def _leave(self, open_B: Tensor) -> list[int]:
        """Take the answers of the examples that are done, and return the order in which the others go on."""
        goes_on, done = open_B.tolist(), self._finished
        kept = _in_gaps(goes_on)
        if len(kept) == len(goes_on):
            return kept
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
        self._examples, self._most_B, self._length_B, self._scores_BK, self._tokens_BKN = (
            known[kept] for known in (self._examples, self._most_B, self._length_B, self._scores_BK, self._tokens_BKN)
        )
        self._finished = _Finished(done.scores[kept], done.best[kept], done.best_length[kept])
        return kept


def _pick(sequences_BKN: Tensor, chosen_BC: Tensor) -> Tensor:
    """Return the chosen sequences of each example [B, C, N]."""
    return sequences_BKN.gather(1, chosen_BC.unsqueeze(-1).expand(-1, -1, sequences_BKN.shape[-1]))
