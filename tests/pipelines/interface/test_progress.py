"""What a pipe and a terminal are shown of a verb's work."""

import time

from pipelines.interface.progress import Progress


def test_the_last_state_is_printed_once(capsys, monkeypatch):
    monkeypatch.setattr("pipelines.interface.progress.PLAIN_SECONDS", -1.0)
    with Progress().phase("count", unit="sheep", total=3) as phase:
        for _ in range(3):
            phase.advance()
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" in ")[0] for line in lines] == [f"count: {done}/3 sheep" for done in (1, 2, 3)]


def test_the_time_left_is_judged_by_what_was_done_here(capsys, monkeypatch):
    monkeypatch.setattr("pipelines.interface.progress.PLAIN_SECONDS", -1.0)
    with Progress().phase("count", unit="sheep", total=1000) as phase:
        phase.start -= 10.0
        for done in (900, 901):
            phase.update(done)
    assert ", 99" in capsys.readouterr().err.splitlines()[-1]


def test_a_pipe_is_told_what_takes_long_and_nothing_of_what_does_not(capsys, monkeypatch):
    monkeypatch.setattr("pipelines.interface.progress.QUIET_SECONDS", 0.05)
    with Progress().opening("soon over"):
        pass
    with Progress().opening("loading"):
        time.sleep(0.3)
    assert capsys.readouterr().err == "loading …\n"
