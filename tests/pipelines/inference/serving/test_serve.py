"""Covers pipelines.inference.serving.replica."""

import socket
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest
from openai import OpenAI
from ray import serve as ray_serve

from cluster.config import RayConfig
from pipelines.cli import main
from pipelines.errors import JobIncompleteError, UserError
from pipelines.inference.listening.listener import Listener
from pipelines.inference.serving.config import ServeConfig
from pipelines.inference.serving.serve import require_one_llm, start
from pipelines.inference.serving.token import digest_of
from tests.pipelines.builders import config_of, train_here
from tests.pipelines.inference.serving.builders import TOKEN, about, counted, free_port, wait_until, write_endless_llm


@pytest.fixture(scope="module")
def endless(corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("endless")
    train_here(config_of(corpus, folder / "run", llm=write_endless_llm(folder / "llm"), steps=1))
    return folder / "run"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_ray_serve_passes_answers_on_as_they_come_and_stops_those_that_nobody_waits_for(endless, recordings) -> None:
    config = ServeConfig(run=[str(endless)], port=free_port(), num_beams=1, threads=1, device="cpu")
    address = f"http://127.0.0.1:{config.port}"
    try:
        start(config, digest_of(TOKEN))
        client = OpenAI(base_url=f"{address}/v1", api_key=TOKEN, max_retries=0)
        asked = {"model": "run", "messages": about([recordings[0]], "Who?")}
        expected = Listener.from_run(str(endless), device="cpu").answer(recordings[0], "Who?", num_beams=1)
        assert client.chat.completions.create(**asked).choices[0].message.content == expected.text
        stream = client.chat.completions.create(**asked, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(pieces) == expected.text and len(pieces) > 50
        left = client.chat.completions.create(**asked, stream=True)
        next(iter(left))
        assert counted(address, TOKEN)["salmonn_running_questions"] == 1
        left.close()
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.3).chat.completions.create(**asked)
        wait_until(lambda: counted(address, TOKEN)["salmonn_running_questions"] == 0)
        assert counted(address, TOKEN)["salmonn_answer_seconds_count"] == 2  # those left were never answered
    finally:
        ray_serve.shutdown()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_what_is_wrong_with_the_encoders_is_told_in_one_line(endless) -> None:
    config = ServeConfig(run=[str(endless)], port=free_port(), threads=1, device="cpu", beats="none")
    try:
        with pytest.raises(UserError, match=r"^these encoders' output was made with another recipe than .*$"):
            start(config, "")
    finally:
        ray_serve.shutdown()


def test_runs_over_different_llms_and_a_port_that_is_taken_are_told_before_anything_starts(
    endless, unbroken, capsys
) -> None:
    assert main(["serve", f"run=[{unbroken},{endless}]"]) == 2
    assert "is another LLM than" in capsys.readouterr().err
    require_one_llm(ServeConfig(run=[str(endless)], ray=RayConfig()))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", f"run={endless}", f"port={port}"]) == 2
    assert f"host=127.0.0.1 port={port}: Address already in use" in capsys.readouterr().err


def test_what_ended_the_process_is_told_whole_where_nobody_can_correct_it(monkeypatch) -> None:
    message = "The deployment failed to start\nTraceback:\nMemoryError: out of memory\n"
    deployments = {"Replica": SimpleNamespace(message=message)}
    status = SimpleNamespace(applications={"salmonn": SimpleNamespace(deployments=deployments)})
    monkeypatch.setattr(ray_serve, "start", lambda **_: None)
    monkeypatch.setattr(ray_serve, "run", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("Deploying failed")))
    monkeypatch.setattr(ray_serve, "status", lambda: status)
    with pytest.raises(JobIncompleteError, match=r"^the models cannot be loaded: The deployment failed to start"):
        start(ServeConfig(run=["r"], device="cpu"), "")
    deployments["Replica"] = SimpleNamespace(message="llm.errors.LLMError: llm: no tokenizer here")
    with pytest.raises(UserError, match=r"^llm: no tokenizer here$"):
        start(ServeConfig(run=["r"], device="cpu"), "")
