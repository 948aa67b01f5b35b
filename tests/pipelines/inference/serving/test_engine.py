import asyncio
import threading
import time

import pytest
import torch

from pipelines.errors import UserError
from pipelines.inference.listening.listener import Listener
from pipelines.inference.listening.waves import Wave
from pipelines.inference.serving.engine import Answered, Asked, Engine, EngineError, QueueFullError, Ticket
from tests.toy import tone


@pytest.fixture
def listener(alone) -> Listener:
    return alone["unbroken"]


def wave(number: int) -> Wave:
    return Wave(torch.from_numpy(tone(1.0, hertz=200.0 + 90.0 * number, seed=number)), 1.0)


def asked(number: int, *, question: str = "What can be heard?", most_tokens: int = 40, streamed: bool = False) -> Asked:
    return Asked("one", question, wave(number), str(number), streamed, most_tokens)


def engine_of(listener: Listener, **keys: int) -> Engine:
    sizes = {"num_beams": 2, "max_new_tokens": 40, "batch_examples": 3, "most_waiting": 50, "kept_clips": 2}
    return Engine({"one": listener}, **(sizes | keys), threads=1)


async def answer_to(ticket: Ticket) -> Answered:
    while not isinstance(event := await ticket.next(), Answered):
        pass
    return event


def test_more_questions_than_fit_get_the_answers_that_each_gets_alone(listener):
    engine = engine_of(listener)
    expected = [
        listener.answer(wave(number % 4), "What can be heard?", num_beams=2, max_new_tokens=40) for number in range(12)
    ]

    async def ask() -> list[Answered]:
        tickets = [engine.submit(asked(number % 4, streamed=number % 2 == 0)) for number in range(12)]
        return await asyncio.gather(*map(answer_to, tickets))

    found = asyncio.run(ask())
    engine.close()
    assert [one.answer for one in found] == expected
    assert (engine.waiting, engine.running, len(engine._kept)) == (0, 0, 2)


def held(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let the engine stand still before its next step until the event is set."""
    go_on, step = threading.Event(), engine._step
    monkeypatch.setattr(engine, "_step", lambda: (go_on.wait(20), step()))
    return go_on


def test_no_more_questions_wait_than_may_and_cancelled_ones_are_never_begun(listener, monkeypatch):
    engine = engine_of(listener, most_waiting=2, batch_examples=1)
    go_on = held(engine, monkeypatch)
    begun = []
    begin = engine._begin
    monkeypatch.setattr(engine, "_begin", lambda tickets: (begun.extend(t.number for t in tickets), begin(tickets)))

    async def ask() -> None:
        first = engine.submit(asked(0))
        while engine.running == 0:
            await asyncio.sleep(0.01)
        second, third = engine.submit(asked(1)), engine.submit(asked(2))
        with pytest.raises(QueueFullError, match="2 questions wait already"):
            engine.submit(asked(3))
        engine.cancel(second)
        go_on.set()
        await asyncio.gather(answer_to(first), answer_to(third))
        await answer_to(engine.submit(asked(3)))

    asyncio.run(ask())
    engine.close()
    assert begun == [0, 2, 4]


def test_those_at_work_go_on_as_long_as_they_stood_still_and_who_comes_meanwhile_is_begun_together(
    listener, monkeypatch
):
    engine = engine_of(listener)
    begun, begin, step = [], engine._begin, engine._step

    def slowly(tickets: list[Ticket]) -> None:
        begun.append([ticket.number for ticket in tickets])
        time.sleep(0.3)
        begin(tickets)

    monkeypatch.setattr(engine, "_begin", slowly)
    monkeypatch.setattr(engine, "_step", lambda: (time.sleep(0.02), step()))

    async def ask() -> None:
        tickets = [engine.submit(asked(0))]
        while engine.running == 0:
            await asyncio.sleep(0.01)
        for number in (1, 2):
            tickets.append(engine.submit(asked(number)))
            await asyncio.sleep(0.05)
        await asyncio.gather(*map(answer_to, tickets))

    asyncio.run(ask())
    engine.close()
    assert begun == [[0], [1, 2]]


def test_a_cancelled_question_leaves_the_others_their_answers(listener, monkeypatch):
    engine = engine_of(listener)
    go_on = held(engine, monkeypatch)
    expected = listener.answer(wave(1), "What can be heard?", num_beams=2, max_new_tokens=40)

    async def ask() -> Answered:
        with engine._changed:  # so that both are begun together
            gone, stays = engine.submit(asked(0)), engine.submit(asked(1))
        while engine.running < 2:
            await asyncio.sleep(0.01)
        engine.cancel(gone)
        go_on.set()
        found = await answer_to(stays)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(gone.next(), 0.2)
        return found

    assert asyncio.run(ask()).answer == expected
    engine.close()


def test_a_question_that_has_no_room_is_refused_and_the_others_are_answered(listener):
    engine = engine_of(listener)

    async def ask() -> None:
        tickets = [engine.submit(asked(0, question="Who? " * 2000)), engine.submit(asked(1))]
        with pytest.raises(UserError, match="the question is too long"):
            await tickets[0].next()
        await answer_to(tickets[1])

    asyncio.run(ask())
    engine.close()


def test_a_broken_engine_fails_all_that_wait_and_takes_no_more(listener, monkeypatch, caplog):
    engine = engine_of(listener, batch_examples=1)
    go_on = held(engine, monkeypatch)
    monkeypatch.setattr(engine, "_tell", lambda told: 1 / 0)

    async def ask() -> None:
        tickets = [engine.submit(asked(number, streamed=True)) for number in range(3)]
        go_on.set()
        for ticket in tickets:
            with pytest.raises(EngineError, match="broke while this was answered"):
                await answer_to(ticket)
        with pytest.raises(EngineError, match="is broken"):
            engine.submit(asked(0))

    asyncio.run(ask())
    assert engine.is_broken and "ZeroDivisionError" in caplog.text
    engine.close()
