"""Greedy and beam search over examples that are decoded together: which tokens each takes next, and when it is done.

Where two continuations are closer than the rounding of float32, a judge is asked how likely they are in float64. So
what is found does not depend on what is decoded beside it.

Letters: B examples still at work, K beams, R = B · K rows (one for each example at its first step), V vocabulary,
C continuations of an example, N most new tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from llm.decoding.exact import Likelihoods

_NEVER = -1.0e9
"""The score of a continuation that may not be taken: below all others, and finite, so that sums of it stay numbers."""
_ROUNDING = 128 * torch.finfo(torch.float32).eps
"""How far the difference of two scores in float32 may be from the true one, in units of the largest logit. A score was
off by 2 to 13 eps with random LLMs of nine families, and by 39 with a trained one, 30 along answers of 80 tokens."""

Judge = Callable[[int, Sequence[Sequence[int]]], Likelihoods]
"""Tells how likely token sequences are that continue an example's prompt."""


@dataclass(frozen=True)
class Step:
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


def _rounding(logits_RV: Tensor) -> Tensor:
    """Return for each row how close two scores may be before rounding decides which is higher [R]."""
    largest_R: Tensor = torch.linalg.vector_norm(logits_RV, ord=torch.inf, dim=-1)
    return largest_R * _ROUNDING


class Greedy:
    """Takes the likeliest token of each example."""

    def __init__(
        self,
        examples: Sequence[int],
        most_tokens: Sequence[int],
        *,
        eos: int,
        device: torch.device,
        judge: Judge | None = None,
    ) -> None:
        """Begin examples of which each may have so many tokens; without a judge rounding decides near ties."""
        self._rows = list(examples)
        self._most_tokens = dict(zip(examples, most_tokens, strict=True))
        self._tokens: dict[int, list[int]] = {example: [] for example in examples}
        self._answers: dict[int, list[int]] = {}
        self._eos, self._device, self._judge = eos, device, judge

    def take(self, logits_RV: Tensor) -> Step:
        """Choose the next tokens."""
        tokens = self._likeliest(logits_RV)
        kept = _in_gaps([self._goes_on(self._rows[row], token) for row, token in enumerate(tokens)])
        self._rows = [self._rows[row] for row in kept]
        tokens_B1 = torch.tensor([tokens[row] for row in kept], device=self._device, dtype=torch.long).unsqueeze(1)
        return Step(kept, torch.zeros_like(tokens_B1), tokens_B1)

    def _likeliest(self, logits_RV: Tensor) -> list[int]:
        tokens: list[int] = logits_RV.argmax(dim=-1).tolist()
        if self._judge is None:
            return tokens
        two_R2 = logits_RV.topk(2).values
        is_near_R = two_R2[:, 0] - two_R2[:, 1] < _rounding(logits_RV)
        for row in is_near_R.nonzero().flatten().tolist():
            example = self._rows[row]
            if example in self._tokens:
                tokens[row] = int(self._judge(example, [self._tokens[example]]).logits.argmax())
        return tokens

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

    def join(self, other: "Greedy") -> None:
        """Go on with the other's examples too."""
        self._rows += other._rows
        self._most_tokens |= other._most_tokens
        self._tokens |= other._tokens

    def drop(self, example: int) -> None:
        """Forget an example; nothing happens if it is not known."""
        self._tokens.pop(example, None)

    def settled(self) -> dict[int, list[int]]:
        """Return of each example the tokens with which its answer begins, whatever comes."""
        return {example: list(tokens) for example, tokens in self._tokens.items()}


@dataclass(frozen=True)
class _State:
    """How far examples are. Scores are log-probabilities in float64, lest they are less exact than what they sum."""

    examples: Tensor
    """[B] Their numbers."""
    most: Tensor
    """[B] Longest answer of each."""
    length: Tensor
    """[B] Tokens of each beam."""
    scores: Tensor
    """[B, K] Of the beams, best first; K is 1 until the first step."""
    tokens: Tensor
    """[B, K, N] The beams."""
    ended_scores: Tensor
    """[B, K] Of the best that have ended, over their lengths, best first; `_NEVER` where fewer have ended."""
    ended_tokens: Tensor
    """[B, K, N] These, with their end tokens."""
    ended_lengths: Tensor
    """[B, K] How many tokens they have; 0 where fewer have ended."""

    def at(self, places: list[int]) -> "_State":
        return _State(**{name: known[places] for name, known in self._parts()})

    def and_of(self, other: "_State") -> "_State":
        return _State(**{name: torch.cat([known, getattr(other, name)]) for name, known in self._parts()})

    def put(self, place: int, other: "_State") -> None:
        """Write the one example of the other in this place."""
        for name, known in self._parts():
            known[place] = getattr(other, name)[0]

    def _parts(self) -> list[tuple[str, Tensor]]:
        return [(part.name, getattr(self, part.name)) for part in fields(self)]


@dataclass(frozen=True)
class _Chosen:
    """What examples do next."""

    state: _State
    """After the step."""
    beams: Tensor
    """[B, K] Which beam each beam continues."""
    may_improve: Tensor
    """[B] Whether the beams may still become a better answer."""
    margin: Tensor
    """[B] By how much the scores would have to be wrong for another choice."""

    def put(self, place: int, other: "_Chosen") -> None:
        """Write the one example of the other in this place."""
        self.state.put(place, other.state)
        for name in ("beams", "may_improve", "margin"):
            getattr(self, name)[place] = getattr(other, name)[0]


class Beams:
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
        judge: Judge | None = None,
    ) -> None:
        """Begin examples; arguments as of `Greedy` and `Decoding`."""
        count = len(examples)
        self._eos, self._length_penalty, self._num_beams, self._judge = eos, length_penalty, num_beams, judge
        self._answers: dict[int, list[int]] = {}
        self._dropped: set[int] = set()
        exact: dict[str, Any] = {"dtype": torch.float64, "device": device}
        whole: dict[str, Any] = {"dtype": torch.long, "device": device}
        self._state = _State(
            examples=torch.tensor(examples, **whole),
            most=torch.tensor(most_tokens, **whole),
            length=torch.zeros(count, **whole),
            scores=torch.zeros(count, 1, **exact),  # of the prompt, which is one row as yet
            tokens=torch.zeros(count, 1, max_new_tokens, **whole),
            ended_scores=torch.full((count, num_beams), _NEVER, **exact),
            ended_tokens=torch.zeros(count, num_beams, max_new_tokens, **whole),
            ended_lengths=torch.zeros(count, num_beams, **whole),
        )

    def take(self, logits_RV: Tensor) -> Step:
        """Choose the next tokens."""
        chosen = self._choose(self._state, logits_RV)
        if self._judge is not None:
            rounding_B = _rounding(logits_RV).view(len(chosen.margin), -1).amax(dim=1)
            for place in (chosen.margin < rounding_B).nonzero().flatten().tolist():
                if int(self._state.examples[place]) not in self._dropped:
                    chosen.put(place, self._choose_exactly(place, self._judge))
        state = chosen.state
        open_B = chosen.may_improve & (state.length != state.most)
        if self._dropped:
            open_B &= ~torch.isin(state.examples, torch.tensor(list(self._dropped), device=open_B.device))
        goes_on = open_B.tolist()
        self._answer(state.at([place for place, stays in enumerate(goes_on) if not stays]))
        kept = _in_gaps(goes_on)
        self._state = state if kept == list(range(len(goes_on))) else state.at(kept)
        latest_BK1 = (self._state.length - 1).view(-1, 1, 1).expand(-1, self._num_beams, 1)
        return Step(kept, chosen.beams[kept], self._state.tokens.gather(2, latest_BK1).squeeze(2))

    def take_answers(self) -> dict[int, list[int]]:
        """Return the answers that came since the last call."""
        answers, self._answers = self._answers, {}
        return answers

    def join(self, other: "Beams") -> None:
        """Go on with the other's examples too."""
        self._state = self._state.and_of(other._state)
        self._dropped |= other._dropped

    def drop(self, example: int) -> None:
        """Forget an example; nothing happens if it is not known."""
        if example in self._state.examples.tolist():
            self._dropped.add(example)

    def settled(self) -> dict[int, list[int]]:
        """Return where all beams agree with each other and with the best answer that has ended."""
        state = self._state
        first_BN = state.tokens[:, 0]
        columns_N = torch.arange(first_BN.shape[1], device=first_BN.device)
        agrees_BN = (state.tokens == first_BN.unsqueeze(1)).all(dim=1) & (columns_N < state.length.unsqueeze(1))
        agrees_with_best_BN = (state.ended_tokens[:, 0] == first_BN) & (columns_N < state.ended_lengths[:, :1])
        agrees_BN &= agrees_with_best_BN | (state.ended_scores[:, :1] <= _NEVER / 2)
        counts_B = agrees_BN.long().cumprod(dim=1).sum(dim=1)
        rows = zip(state.examples.tolist(), first_BN.tolist(), counts_B.tolist(), strict=True)
        return {example: tokens[:count] for example, tokens, count in rows}

    def _choose(self, state: _State, logits_RV: Tensor) -> _Chosen:
        """Choose K continuations of each example.

        Of its 2 K likeliest at most K end it, for each beam ends in one way: K go on.
        """
        num_beams, num_examples = self._num_beams, len(state.scores)
        most = 2 * num_beams + 1  # and the next, which shows how near it is
        logits_RC, tokens_RC = logits_RV.topk(most)
        scores_R1 = state.scores.reshape(-1, 1) - logits_RV.logsumexp(dim=-1, keepdim=True)
        scores_BC, places_BC = (logits_RC + scores_R1).view(num_examples, -1).topk(most)
        beams_BC, tokens_BC = places_BC // most, tokens_RC.view(num_examples, -1).gather(1, places_BC)
        sequences_BCN = _pick(state.tokens, beams_BC)
        sequences_BCN.scatter_(2, state.length.view(-1, 1, 1).expand(-1, most, 1), tokens_BC.unsqueeze(-1))
        length_B = state.length + 1
        is_last_B1 = (length_B == state.most).unsqueeze(1)
        ended_BC = (tokens_BC == self._eos) | is_last_B1
        after, ended_margin_B = self._end(state, length_B, scores_BC, sequences_BCN, ended_BC)
        running_BC, chosen_BC = (scores_BC + _NEVER * ended_BC).topk(num_beams + 1)
        chosen_BK = chosen_BC[:, :num_beams]
        after = replace(after, scores=running_BC[:, :num_beams], tokens=_pick(sequences_BCN, chosen_BK))
        best_B = running_BC[:, 0] / self._weight(length_B)
        worst_ended_B = after.ended_scores[:, -1]
        gaps_B4 = torch.stack(
            [
                ended_margin_B,
                torch.where(is_last_B1.squeeze(1), torch.inf, running_BC[:, -2] - running_BC[:, -1]),
                torch.where(ended_BC[:, : num_beams + 1].any(dim=1), _gap(scores_BC, num_beams), torch.inf),
                (best_B - worst_ended_B).abs() * self._shortest(after),
            ],
            dim=1,
        )
        return _Chosen(after, beams_BC.gather(1, chosen_BK), best_B > worst_ended_B, gaps_B4.amin(dim=1))

    def _end(
        self, state: _State, length_B: Tensor, scores_BC: Tensor, sequences_BCN: Tensor, ended_BC: Tensor
    ) -> tuple[_State, Tensor]:
        """Keep what has ended among the K likeliest continuations; return also by how much the choice is sure [B]."""
        likeliest = slice(0, self._num_beams)
        new_BK = scores_BC[:, likeliest] / self._weight(length_B).unsqueeze(1)
        new_BK = torch.where(ended_BC[:, likeliest], new_BK, _NEVER)
        new_lengths_BK = length_B.unsqueeze(1) * ended_BC[:, likeliest]
        best_BC, places_BC = torch.cat([state.ended_scores, new_BK], dim=1).topk(self._num_beams + 1)
        places_BK = places_BC[:, likeliest]
        lengths_BC = torch.cat([state.ended_lengths, new_lengths_BK], dim=1)
        tokens_BCN = torch.cat([state.ended_tokens, sequences_BCN[:, likeliest]], dim=1)
        after = replace(
            state,
            length=length_B,
            ended_scores=best_BC[:, likeliest],
            ended_tokens=_pick(tokens_BCN, places_BK),
            ended_lengths=lengths_BC.gather(1, places_BK),
        )
        shortest_B = torch.minimum(self._shortest(state), self._weight(length_B))
        gap_B = torch.minimum(_gap(best_BC, 1), _gap(best_BC, self._num_beams)) * shortest_B
        return after, torch.where(ended_BC[:, likeliest].any(dim=1), gap_B, torch.inf)

    def _choose_exactly(self, place: int, judge: Judge) -> _Chosen:
        """Choose one example's continuations by scores in float64.

        Beams and ended answers stand in the order of their tokens meanwhile: that of their scores is rounding's, and
        decides where two are as likely as each other to the last digit.
        """
        state = self._state.at([place])
        beams = [tokens[: int(state.length)] for tokens in state.tokens[0].tolist()]
        lengths = state.ended_lengths[0].tolist()
        ended = [tokens[:length] for tokens, length in zip(state.ended_tokens[0].tolist(), lengths, strict=True)]
        order, ended_order = (sorted(range(len(known)), key=known.__getitem__) for known in (beams, ended))
        found = judge(int(state.examples), [beams[beam] for beam in order] + [ended[one] for one in ended_order])
        running_1K, ended_1K = found.scores.unsqueeze(0).split([len(beams), len(ended)], dim=1)
        lengths_1K = state.ended_lengths[:, ended_order]
        in_order = replace(
            state,
            scores=running_1K,
            tokens=state.tokens[:, order],
            ended_scores=torch.where(lengths_1K > 0, ended_1K / self._weight(lengths_1K), _NEVER),
            ended_tokens=state.ended_tokens[:, ended_order],
            ended_lengths=lengths_1K,
        )
        chosen = self._choose(in_order, found.logits[: len(beams)])
        return replace(chosen, beams=torch.tensor(order, device=chosen.beams.device)[chosen.beams])

    def _weight(self, lengths: Tensor) -> Tensor:
        """Return what log-probabilities of answers so long are divided by."""
        return lengths.clamp(min=1).double().pow(self._length_penalty)

    def _shortest(self, state: _State) -> Tensor:
        """Return the least that scores of ended answers were divided by [B]: rounding was divided by it too."""
        return torch.where(state.ended_lengths > 0, self._weight(state.ended_lengths), torch.inf).amin(dim=1)

    def _answer(self, state: _State) -> None:
        """Keep the answers of examples that are done."""
        left = zip(
            state.examples.tolist(), state.ended_tokens[:, 0].tolist(), state.ended_lengths[:, 0].tolist(), strict=True
        )
        for example, tokens, length in left:
            if example in self._dropped:
                self._dropped.discard(example)
            else:
                answer = tokens[:length]
                self._answers[example] = answer[:-1] if answer[-1:] == [self._eos] else answer


def _gap(scores_BC: Tensor, first: int) -> Tensor:
    """Return how far the best `first` are above the next [B]; infinitely far, if there are no so many or no next."""
    next_B = scores_BC[:, first]
    return torch.where(next_B <= _NEVER / 2, torch.inf, scores_BC[:, first - 1] - next_B)


def _pick(sequences_BKN: Tensor, chosen_BC: Tensor) -> Tensor:
    """Return the chosen sequences of each example [B, C, N]."""
    return sequences_BKN.gather(1, chosen_BC.unsqueeze(-1).expand(-1, -1, sequences_BKN.shape[-1]))
