"""What the LLM knows of the examples at work: keys and values of their prompts, and of the beams that continue them.

Letters: B examples still at work, K beams, T positions of the prompts, H LLM width, V vocabulary, C columns of the
cache.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, DynamicCache

from llm.decoding.layers import masks
from llm.decoding.searches import Step
from llm.lora import lora_by_row, lora_layers, use_lora

_ROOM = 16
"""Tokens for which an example is given room at a time."""


class AdaptedLLM:
    """An LLM whose rows may have LoRA of different names."""

    def __init__(self, llm: Any) -> None:
        self._llm, self._lora = llm, lora_layers(llm)

    def __call__(self, adapters: list[str], **inputs: Any) -> Tensor:
        """Return the logits in float32; `adapters` has a name for each row."""
        is_mixed = len(set(adapters)) > 1
        if not is_mixed and adapters[0]:
            use_lora(self._llm, adapters[0])
        with lora_by_row(self._lora, adapters) if is_mixed else nullcontext():
            logits: Tensor = self._llm(**{"use_cache": True, **inputs}).logits
        return logits.float()


@dataclass(frozen=True)
class Prompts:
    """Prompts that went through the LLM."""

    layers: list[list[Tensor]]
    """Of each layer keys and values [B, heads, T, width], each prompt ending in the last column."""
    lengths: list[int]
    adapter: str
    logits: Tensor
    """[B, V] Of each one's next token."""


def read_prompts(llm: AdaptedLLM, embeds_BTH: Tensor, lengths: list[int], adapter: str) -> Prompts:
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
    return Prompts([[layer.keys, layer.values] for layer in layers], lengths, adapter, logits_B1V[:, -1])


class Trees(Cache):
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

    def select(self, step: Step) -> None:
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

    def join(self, prompts: Prompts, examples: list[int]) -> None:
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

    def advance(self, llm: AdaptedLLM, tokens_BK: Tensor) -> Tensor:
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
        width = max(self._used)
        queries_BK, dtype = next_B1.expand(-1, self._num_beams), self._layers[0][0].dtype
        return masks(self._windows, self._has_BKC[:, :, :width], queries_BK, self._positions_BC[:, :width], dtype)

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
