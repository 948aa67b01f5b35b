"""A server in a thread of the tests' own process, and what its clients send."""

import base64
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import uvicorn
from openai import OpenAI

from llm.loading import load_llm
from llm.tiny import write_tiny_llm
from pipelines.inference.serving.app import App
from pipelines.inference.serving.config import ServeConfig
from pipelines.inference.serving.replica import open_app
from pipelines.inference.serving.token import digest_of

TOKEN = "a token of the tests"


@dataclass(frozen=True)
class Server:
    """A server that takes requests, and the application behind it."""

    address: str
    app: App
    token: str = TOKEN

    def client(self, **keys: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.address}/v1", api_key=self.token, max_retries=0, **keys)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def served(config: ServeConfig) -> Iterator[Server]:
    """Serve in a thread, without Ray."""
    app = open_app(config, device="cpu", token_digest=digest_of(TOKEN))
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app.asgi(), host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield Server(f"http://127.0.0.1:{port}", app)
    finally:
        server.should_exit = True
        thread.join()
        app.engine.close()


def wait_until(is_so: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def sound_part(content: bytes, container: str = "wav") -> dict[str, Any]:
    data = base64.b64encode(content).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": container}}


def about(sounds: Sequence[Path | bytes], question: str) -> list[Any]:
    """Return the messages of a question about sounds."""
    contents = [sound if isinstance(sound, bytes) else sound.read_bytes() for sound in sounds]
    parts = [*map(sound_part, contents), {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


def write_endless_llm(folder: Path) -> str:
    """Write an LLM whose answers never end by themselves, slow enough to be left while it answers."""
    write_tiny_llm(["any text"], folder, width=256, num_layers=6)
    model, tokenizer = load_llm(folder)
    with torch.no_grad():
        model.get_output_embeddings().weight[tokenizer.eos_token_id] = 0  # the likeliest token is above the mean
    model.save_pretrained(folder)
    return str(folder)


def counted(address: str, token: str) -> dict[str, float]:
    """Return what a server tells Prometheus."""
    request = urllib.request.Request(f"{address}/metrics", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request) as response:
        lines = response.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}
