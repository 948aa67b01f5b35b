import json
import os

import pytest

from cluster.apart import call_in_subprocess


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
