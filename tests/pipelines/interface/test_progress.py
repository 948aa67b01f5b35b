"""What a pipe and a terminal are shown of a verb's work."""

import time
from types import SimpleNamespace

from pipelines.interface.progress import Progress


def test_the_last_state_is_printed_once(capsys, monkeypatch):
    monkeypatch.setattr("pipelines.interface.progress.PLAIN_SECONDS", -1.0)
    with Progress().phase("count", unit="sheep", total=3) as phase:
        for _ in range(3):
            phase.advance()
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" in ")[0] for line in lines] == [f"count: {done}/3 sheep" for done in (1, 2, 3)]


def test_the_time_left_is_judged_by_what_was_done_here_once_the_workers_had_begun(capsys, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("pipelines.interface.progress.PLAIN_SECONDS", -1.0)
    monkeypatch.setattr("pipelines.interface.progress.time", SimpleNamespace(monotonic=lambda: clock.now))
    with Progress().phase("count", unit="sheep", total=1000) as phase:
        for seconds, done in ((0, 900), (60, 902), (70, 912), (80, 922)):  # 900 before, 60 s until the first are there
            clock.now = seconds
            phase.update(done)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" s, ")[2] for line in lines[-2:]] == ["88 s left", "78 s left"]
    assert not any("left" in line for line in lines[:-2])


def test_a_pipe_is_told_what_takes_long_and_nothing_of_what_does_not(capsys, monkeypatch):
    monkeypatch.setattr("pipelines.interface.progress.QUIET_SECONDS", 0.05)
    with Progress().opening("soon over"):
        pass
    with Progress().opening("loading"):
        time.sleep(0.3)
    assert capsys.readouterr().err == "loading …\n"
