import json
import os
import signal
import time
from threading import Event, Thread, get_ident

import pytest

from cluster.apart import call_in_subprocess, call_in_thread


def test_answer_comes_from_another_process_and_its_imports_stay_there():
    assert call_in_subprocess("os", "getpid", heavy="absent") != os.getpid()
    assert call_in_subprocess("os", "getpid", heavy="json") == os.getpid()


def test_what_the_function_raises_is_raised_here():
    with pytest.raises(json.JSONDecodeError, match="line 1 column 2") as raised:
        call_in_subprocess("json", "loads", heavy="absent", s="{")
    assert "in raw_decode" in str(raised.value.__cause__)


def test_process_that_dies_is_an_error():
    with pytest.raises(ChildProcessError, match=r"calls os\._exit was killed"):
        call_in_subprocess("os", "_exit", heavy="absent", status=3)


@pytest.mark.parametrize("taken_by", ["the process", "another thread"])
def test_an_interrupt_ends_the_thread_too_where_that_is_asked_for(taken_by: str) -> None:
    ended, running = Event(), Event()

    def work() -> None:
        try:
            while True:
                running.set()
                time.sleep(0.01)
        finally:
            ended.set()

    def interrupt() -> None:
        running.wait(10)
        if taken_by == "the process":
            os.kill(os.getpid(), signal.SIGINT)
        else:
            time.sleep(0.2)  # the caller waits by then, and nothing interrupts that
            signal.pthread_kill(get_ident(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            call_in_thread(work, stop_seconds=10)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.is_set()
