from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
import torch

from pipelines.inference.listening.listener import Listener
from pipelines.inference.serving.config import ServeConfig
from tests.pipelines.builders import config_of, train_here
from tests.pipelines.inference.serving.builders import Server, served
from tests.toy import RATE_HZ, tone


@pytest.fixture(scope="session")
def other(corpus, tmp_path_factory) -> Path:
    """A second run over the same LLM, whose LoRA is of another rank."""
    run = tmp_path_factory.mktemp("runs") / "other"
    train_here(config_of(corpus, run, seed=7, steps=2))
    return run


@pytest.fixture(scope="session")
def recordings(tmp_path_factory) -> list[Path]:
    """Six different tones."""
    folder = tmp_path_factory.mktemp("recordings")
    paths = [folder / f"tone {number}.wav" for number in range(6)]
    for number, path in enumerate(paths):
        soundfile.write(path, tone(1.0 + 0.3 * number, hertz=150.0 + 170.0 * number, seed=number), RATE_HZ)
    return paths


@pytest.fixture(scope="session")
def server(corpus, unbroken, other) -> Iterator[Server]:
    """Both runs, and the corpus's examples."""
    torch.set_num_threads(1)
    keys = {"manifest": corpus[0], "cache": corpus[1], "examples": 4, "max_new_tokens": 40}
    with served(
        ServeConfig(
            run=[str(unbroken), str(other)], **keys, most_waiting=100, most_megabytes=2.0, most_seconds=60.0, threads=1
        )
    ) as found:
        yield found


@pytest.fixture(scope="session")
def alone(unbroken, other) -> dict[str, Listener]:
    """Each run by its name, loaded for itself."""
    return {run.name: Listener.from_run(str(run), device="cpu") for run in (unbroken, other)}
