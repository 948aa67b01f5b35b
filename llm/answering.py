"""Questions that models over one LLM answer together, told token by token; new ones join at any step."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from llm.decoding.decoding import Decoding
from llm.salmonn import Answer, Batch, Salmonn

_HALF_A_CHARACTER = "\ufffd"
"""What a tokenizer gives for bytes whose character has not come to its end."""


@dataclass(frozen=True)
class Told:
    """What a step gave for one question."""

    question: int
    """Its number."""
    text: str
    """What is new of the answer's text."""
    answer: Answer | None
    """The whole, when it is done; all `text` that was told of it makes up its own."""


class Answering:
    """Questions at work; each gets the answer that it would get alone."""

    def __init__(self, model: Salmonn, *, num_beams: int = 4, max_new_tokens: int = 200) -> None:
        """Begin without a question; `model` must be in evaluation mode and is used by one thread at a time."""
        self.model = model
        self._decoding = Decoding(
            model.llm, eos=model.tokenizer.eos_token_id, num_beams=num_beams, max_new_tokens=max_new_tokens
        )
        self._told: dict[int, tuple[int, str]] = {}
        """Of each streamed question: how many tokens were spelled, and what of their text was told."""

    def __len__(self) -> int:
        """Return how many questions have no answer yet."""
        return len(self._decoding)

    @torch.no_grad()
    def join(
        self,
        questions: Sequence[int],
        batch: Batch,
        most_tokens: Sequence[int] | None = None,
        *,
        model: Salmonn | None = None,
        adapter: str = "",
        one: Callable[[int], Batch] | None = None,
    ) -> list[int]:
        """Begin to answer the batch's questions and return how many positions each takes.

        Args:
            questions: [B] Their numbers, none of them in use.
            batch: Clips and questions.
            most_tokens: [B] Longest answers, at most `max_new_tokens`; None: that.
            model: That is asked, if it is another one over the same LLM.
            adapter: The name of its LoRA there; empty where all questions have the one in use.
            one: Makes the batch of one of them anew, by its place; None: the batch is kept for that until all are done.

        Raises:
            LLMError: If the batch has not one question per clip.
        """
        asked = model or self.model
        embeds_BTH, lengths = asked.embed_prompts(batch)
        again = partial(asked.prompt_again, one or batch.only)
        self._decoding.join(questions, embeds_BTH, lengths, most_tokens, adapter=adapter, prompt_again=again)
        return lengths

    def step(self, streamed: Collection[int] = ()) -> list[Told]:
        """Take every question a token further; return what is new of those `streamed`, and all that are done.

        Of several beams that is new in which all agree, so that nothing told is ever taken back.
        """
        done = {question: self.model.answer_of(tokens) for question, tokens in self._decoding.step().items()}
        told = [Told(question, self._rest(question, answer.text), answer) for question, answer in done.items()]
        settled = self._decoding.settled() if streamed else {}
        for question in streamed:
            if question in settled and (text := self._news(question, settled[question])):
                told.append(Told(question, text, None))
        return told

    def drop(self, question: int) -> None:
        """Forget a question that nobody waits for."""
        self._told.pop(question, None)
        self._decoding.drop(question)

    def _news(self, question: int, tokens: list[int]) -> str:
        """Return what is new of the text; not the blanks at its end, which the whole text may lack."""
        count, known = self._told.get(question, (0, ""))
        if len(tokens) == count:
            return ""
        text = self.model.spell(tokens).rstrip(_HALF_A_CHARACTER).rstrip()
        if not text.startswith(known):
            return ""
        self._told[question] = len(tokens), text
        return text[len(known) :]

    def _rest(self, question: int, text: str) -> str:
        return text.removeprefix(self._told.pop(question, (0, ""))[1])
