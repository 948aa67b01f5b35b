"""The process that has the models is killed among requests: those fail cleanly, a client that tries again gets the
right answer, and the service is back by itself.

Kept out of the quick tests: `make chaos`.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import psutil
import pytest
import soundfile
from openai import OpenAI

from pipelines.inference import Listener
from tests import ROOT
from tests.pipelines.builders import config_of, fill, make_worker, prepare_tones, train_here
from tests.pipelines.inference.serving.builders import TOKEN, about, free_port
from tests.toy import RATE_HZ, tone

pytestmark = [pytest.mark.chaos, pytest.mark.ray]
KILLS, CLIENTS = 3, 4


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of a few steps."""
    folder = tmp_path_factory.mktemp("run")
    manifest = prepare_tones(folder, num_clips=8)
    fill(folder / "c", manifest, make_worker(folder / "c"))
    train_here(config_of((manifest, str(folder / "c")), folder / "unbroken"))
    return folder / "unbroken"


@pytest.fixture(scope="module")
def server(unbroken: Path) -> Iterator[tuple[str, psutil.Process]]:
    port = free_port()
    words = ["serve", f"run={unbroken}", f"port={port}", "threads=1", "max_new_tokens=40"]
    command = [sys.executable, "-m", "pipelines", *words]
    environment = {**os.environ, "SALMONN_TOKEN": TOKEN}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert any(line.startswith("page: ") for line in process.stdout)
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143


def replicas(server: psutil.Process) -> list[psutil.Process]:
    return [child for child in server.children(recursive=True) if "ServeReplica" in " ".join(child.cmdline())]


def test_killed_among_requests_it_fails_them_cleanly_and_is_back_by_itself(server, unbroken, tmp_path) -> None:
    address, process = server
    listener = Listener.from_run(str(unbroken), device="cpu")
    paths = [tmp_path / f"{number}.wav" for number in range(3)]
    for number, path in enumerate(paths):
        soundfile.write(path, tone(1.5, hertz=300.0 * (number + 1)), RATE_HZ)
    expected = [listener.answer(path, "Who?", max_new_tokens=40).text for path in paths]
    ends: Counter[str] = Counter()
    is_over = False

    def keep_asking(number: int, retries: int) -> None:
        client = OpenAI(base_url=f"{address}/v1", api_key=TOKEN, max_retries=retries, timeout=60)
        asked = {"model": unbroken.name, "messages": about([paths[number % 3]], "Who?")}
        while not is_over:
            try:
                text = client.chat.completions.create(**asked).choices[0].message.content
                ends["right" if text == expected[number % 3] else "wrong"] += 1
            except (openai.InternalServerError, openai.APIConnectionError) as error:
                ends[f"failed, tried {retries} times again: {type(error).__name__}"] += 1
                time.sleep(0.1)

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(keep_asking, number, 8 * (number % 2)) for number in range(CLIENTS)]
        try:
            for _ in range(KILLS):
                time.sleep(4)
                (replica,) = replicas(process)
                assert replica.nice() == 0  # as whatever else runs on the machine
                replica.kill()
                before, end = ends["right"], time.monotonic() + 90
                time.sleep(1)
                while not replicas(process) or ends["right"] <= before + CLIENTS:
                    assert time.monotonic() < end, ends
                    time.sleep(0.5)
        finally:
            is_over = True
    for client in clients:
        client.result()
    print(dict(ends))
    assert ends["wrong"] == 0 and ends["right"] > KILLS * CLIENTS
    assert not [end for end in ends if "tried 8 times" in end]
