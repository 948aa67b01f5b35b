"""The thread that has the models: it answers the questions that wait, together, a token of each at every step."""

import asyncio
import itertools
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition, Thread

import torch

from llm.answering import Answering, Told
from llm.salmonn import Batch
from pipelines.cache.reader import ClipFeatures
from pipelines.errors import UserError
from pipelines.inference.listening.listener import Answer, Listener
from pipelines.inference.listening.waves import Wave

logger = logging.getLogger(__name__)


class QueueFullError(Exception):
    """As many questions wait as may."""


class EngineError(Exception):
    """The thread has ended; a new process must take its place."""


@dataclass(frozen=True)
class Asked:
    """A question about a sound, ready to be answered."""

    name: str
    """Of the run."""
    question: str
    sound: Wave | ClipFeatures
    digest: str
    """Of the wave's bytes: by it the features of the last waves are known again; empty: they are not kept."""
    is_streamed: bool
    most_tokens: int


@dataclass(frozen=True)
class Answered:
    """The whole answer, and how many positions its prompt took."""

    answer: Answer
    prompt_tokens: int


class Ticket:
    """Stands for a question until its answer is there: pieces of text come first, if it is streamed."""

    def __init__(self, number: int, asked: Asked) -> None:
        """Make it in the event loop that waits for the answer."""
        self.number, self.asked = number, asked
        self.is_cancelled = False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[str | Answered | Exception] = asyncio.Queue()

    def tell(self, event: str | Answered | Exception) -> None:
        """Pass on what happened; called by the engine's thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self) -> str | Answered:
        """Wait for the next piece or, at last, the answer.

        Raises:
            UserError: If the question cannot be answered.
            EngineError: If the engine broke.
        """
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return event


@dataclass
class _Running:
    ticket: Ticket
    clip: ClipFeatures
    prompt_tokens: int


class Engine:
    """Answers questions of all threads in one of its own."""

    def __init__(
        self,
        listeners: Mapping[str, Listener],
        *,
        num_beams: int,
        max_new_tokens: int,
        batch_examples: int,
        most_waiting: int,
        kept_clips: int,
        threads: int,
    ) -> None:
        """Start the thread. `listeners` are runs by their names, over one LLM; the rest as in `ServeConfig`."""
        self._listeners = listeners
        any_model = next(iter(listeners.values())).model
        self._answering = Answering(any_model, num_beams=num_beams, max_new_tokens=max_new_tokens)
        self._threads = threads
        self._batch_examples, self._most_waiting, self._kept_clips = batch_examples, most_waiting, kept_clips
        self._kept: OrderedDict[tuple[str, str], ClipFeatures] = OrderedDict()
        self._numbers = itertools.count()
        self._changed = Condition()
        self._waiting: deque[Ticket] = deque()
        self._running: dict[int, _Running] = {}
        self._owed_seconds = 0.0
        """How much longer those at work go on before the next are begun: as long as they stood still for the last ones.
        Meanwhile more may come, and to begin several takes little longer than one."""
        self._is_closed = False
        self.is_broken = False
        self._thread = Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many questions wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many questions are being answered."""
        return len(self._running)

    def submit(self, asked: Asked) -> Ticket:
        """Let a question wait for its answer; called in the event loop that waits for it.

        Raises:
            QueueFullError: If `most_waiting` do already.
            EngineError: If the engine is broken.
        """
        ticket = Ticket(next(self._numbers), asked)
        with self._changed:
            if self.is_broken:
                raise EngineError("the engine is broken")
            if len(self._waiting) >= self._most_waiting:
                raise QueueFullError(f"{self._most_waiting} questions wait already")
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Forget a question that nobody waits for; one that is answered already stays as it is."""
        with self._changed:
            ticket.is_cancelled = True
            self._changed.notify()

    def close(self) -> None:
        """End the thread after the step it is at."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        tickets: list[Ticket] | None = []
        torch.set_num_threads(self._threads)  # which holds for the thread that calls it
        try:
            while (tickets := self._next()) is not None:
                started = time.monotonic()
                if tickets:
                    self._begin(tickets)
                    self._owed_seconds = time.monotonic() - started
                    started += self._owed_seconds
                self._step()
                self._owed_seconds -= time.monotonic() - started
        except Exception:
            logger.exception("the engine broke")
            with self._changed:
                self.is_broken = True
                left = [*(tickets or ()), *self._waiting, *(running.ticket for running in self._running.values())]
            for ticket in left:
                ticket.tell(EngineError("the engine broke while this was answered"))

    def _next(self) -> list[Ticket] | None:
        """Wait for work and return the questions for which there is room; None when the engine is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._waiting or self._running)
            if self._is_closed:
                return None
            for number in [number for number, running in self._running.items() if running.ticket.is_cancelled]:
                del self._running[number]
                self._answering.drop(number)
            tickets: list[Ticket] = []
            if self._running and self._owed_seconds > 0:
                return tickets
            while self._waiting and len(self._running) + len(tickets) < self._batch_examples:
                ticket = self._waiting.popleft()
                if not ticket.is_cancelled:
                    tickets.append(ticket)
            return tickets

    def _begin(self, tickets: Sequence[Ticket]) -> None:
        for name, listener in self._listeners.items():
            own = [ticket for ticket in tickets if ticket.asked.name == name and self._has_room(listener, ticket)]
            if not own:
                continue
            clips = self._features_of(listener, own)
            batch = listener.batch(clips, [ticket.asked.question for ticket in own])
            numbers, most_tokens = [ticket.number for ticket in own], [ticket.asked.most_tokens for ticket in own]

            def one(
                place: int, listener: Listener = listener, own: list[Ticket] = own, clips: list[ClipFeatures] = clips
            ) -> Batch:
                return listener.batch([clips[place]], [own[place].asked.question])

            lengths = self._answering.join(
                numbers, batch, most_tokens, model=listener.model, adapter=listener.adapter, one=one
            )
            for ticket, clip, length in zip(own, clips, lengths, strict=True):
                self._running[ticket.number] = _Running(ticket, clip, length)

    def _has_room(self, listener: Listener, ticket: Ticket) -> bool:
        try:
            listener.require_room(ticket.asked.question, ticket.asked.most_tokens, ticket.asked.sound.seconds)
        except UserError as error:
            ticket.tell(error)
            return False
        return True

    def _features_of(self, listener: Listener, tickets: Sequence[Ticket]) -> list[ClipFeatures]:
        """Return the features of what is asked about; those of the last waves are kept."""
        keys = [(listener.encoder_run, ticket.asked.digest) for ticket in tickets]
        sounds: dict[tuple[str, str], Wave | ClipFeatures] = {}
        for key, ticket in zip(keys, tickets, strict=True):
            if isinstance(ticket.asked.sound, Wave):
                sounds[key] = self._kept.get(key, ticket.asked.sound)
        found = dict(zip(sounds, listener.features_of(list(sounds.values())), strict=True))
        for key, clip in found.items():
            self._kept[key] = clip
            self._kept.move_to_end(key)
        while len(self._kept) > self._kept_clips:
            self._kept.popitem(last=False)
        pairs = zip(keys, tickets, strict=True)
        return [
            ticket.asked.sound if isinstance(ticket.asked.sound, ClipFeatures) else found[key] for key, ticket in pairs
        ]

    def _step(self) -> None:
        streamed = [number for number, running in self._running.items() if running.ticket.asked.is_streamed]
        for told in self._answering.step(streamed):
            self._tell(told)

    def _tell(self, told: Told) -> None:
        running = self._running[told.question]
        asked = running.ticket.asked
        if told.text and asked.is_streamed:
            running.ticket.tell(told.text)
        if told.answer is not None:
            del self._running[told.question]
            answer = self._listeners[asked.name].answer_of(told.answer, running.clip, asked.most_tokens)
            running.ticket.tell(Answered(answer, running.prompt_tokens))
