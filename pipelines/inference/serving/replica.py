"""The process that has the models; Ray Serve starts it, sends it requests, and starts another one when it dies."""

import torch
from ray import serve
from starlette.applications import Starlette

from encoders.audio import MIN_CLIP_SAMPLES, SAMPLE_RATE_HZ
from pipelines.inference.listening.listener import Listener
from pipelines.inference.serving.app import App
from pipelines.inference.serving.config import ServeConfig, names_of
from pipelines.inference.serving.engine import Engine
from pipelines.inference.serving.examples import Examples


def open_app(config: ServeConfig, *, device: str, token_digest: str) -> App:
    """Load the runs, start what answers, and hear a second of silence with each run's encoders.

    Raises:
        UserError: If a run, its LLM or its encoders are not what they were.
    """
    runs = names_of(config.run)
    loaded = Listener.from_runs(
        list(runs.values()),
        checkpoint=config.checkpoint,
        llm=config.llm,
        whisper=config.whisper,
        beats=config.beats,
        device=device,
    )
    for listener in loaded:
        listener.features((torch.zeros(MIN_CLIP_SAMPLES), SAMPLE_RATE_HZ))
    listeners = dict(zip(runs, loaded, strict=True))
    engine = Engine(
        listeners,
        num_beams=config.num_beams,
        max_new_tokens=config.max_new_tokens,
        batch_examples=config.batch_examples,
        most_waiting=config.most_waiting,
        kept_clips=config.kept_clips,
        threads=config.threads,
    )
    examples = Examples(config.manifest, config.cache, count=config.examples) if config.cache else None
    return App(config, listeners, engine, token_digest, examples)


@serve.ingress()
class Replica:
    """The application in a process of Ray Serve."""

    def __init__(self, config: ServeConfig, device: str, token_digest: str) -> None:
        """Load the models; raises as `open_app`."""
        torch.set_num_threads(config.threads)
        self._app = open_app(config, device=device, token_digest=token_digest)

    def __serve_build_asgi_app__(self) -> Starlette:  # Ray Serve's name
        """Return the application to Ray Serve."""
        return self._app.asgi()

    def check_health(self) -> None:
        """Let Ray Serve start another process where this one cannot answer any more.

        Raises:
            RuntimeError: If that is so.
        """
        if self._app.engine.is_broken:
            raise RuntimeError("the engine is broken")
