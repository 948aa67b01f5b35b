"""`salmonn serve`: runs behind an address until they are stopped."""

import logging
import os
import socket
import sys
import time
from dataclasses import replace
from typing import Any, NoReturn

from ray import serve as ray_serve
from ray.serve.schema import LoggingConfig

from cluster.connection import cluster_device, connect
from llm.settings import is_hub_name
from pipelines import storage
from pipelines.errors import USER_ERRORS, JobIncompleteError, UserError
from pipelines.inference.serving.config import ServeConfig, names_of
from pipelines.inference.serving.replica import Replica
from pipelines.inference.serving.token import VARIABLE, digest_of, known_token, own_token, token_file
from pipelines.interface.progress import Progress
from pipelines.runs.spec import RunSpec, identified, require_same_llm

APPLICATION = "salmonn"
MOST_AT_ONCE = 10_000
"""Requests that Ray Serve passes on; the server itself says when it has too many."""


def serve(config: ServeConfig) -> None:
    """Serve until SIGINT or SIGTERM ends it.

    Raises:
        UserError: If the port is taken, the runs are over different LLMs, or their encoders are others now.
        JobIncompleteError: If the models cannot be loaded.
    """
    require_one_llm(config)
    _require_port(config)
    token = own_token() if config.require_token else ""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own 15 lets whatever else runs here go before answers
    progress = Progress()
    with progress.opening("serve: Ray is starting"):
        own_cluster = connect(config.ray)
    try:
        with progress.opening("serve: loading the models"):
            start(config, digest_of(token) if token else "")
        _say(config, token)
        while True:  # SIGINT and SIGTERM end it, as they end every verb
            time.sleep(0.5)  # one that another thread takes wakes nobody
    finally:
        if not own_cluster:  # which goes with this process
            ray_serve.delete(APPLICATION)


def start(config: ServeConfig, token_digest: str) -> None:
    """Start the application on the Ray that is connected, and return when it answers.

    Raises:
        UserError: If a run, its LLM or its encoders are not what they were.
        JobIncompleteError: If the models cannot be loaded.
    """
    device = cluster_device(config.device)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    ray_serve.start(
        proxy_location="HeadOnly", http_options={"host": config.host, "port": config.port}, logging_config=quiet
    )
    deployment = ray_serve.deployment(
        num_replicas=1,
        max_ongoing_requests=MOST_AT_ONCE,
        max_constructor_retry_count=1,  # what is wrong at the start is wrong a second later too
        ray_actor_options={"num_cpus": config.threads, "num_gpus": 1 if device == "cuda" else 0},
        logging_config=quiet,
    )(Replica)
    try:
        ray_serve.run(
            deployment.bind(_with_full_paths(config), device, token_digest), name=APPLICATION, route_prefix="/"
        )
    except RuntimeError as error:
        _say_why(error)


def _say_why(error: RuntimeError) -> NoReturn:
    """Raise what ended the process that has the models, by the last line of what Ray Serve tells of it."""
    deployments = ray_serve.status().applications[APPLICATION].deployments
    told = "\n".join(deployment.message for deployment in deployments.values())
    name, _, message = told.strip().rpartition("\n")[2].partition(": ")
    if name in {f"{kind.__module__}.{kind.__name__}" for kind in USER_ERRORS}:
        raise UserError(message) from error
    raise JobIncompleteError(f"the models cannot be loaded: {told}") from error


def require_one_llm(config: ServeConfig) -> None:
    """Check that all runs are over one LLM.

    Raises:
        UserError: Naming the run that is not.
    """
    specs = {run: identified(RunSpec.read(run), run, llm=config.llm) for run in names_of(config.run).values()}
    first, *others = specs
    for run in others:
        require_same_llm(specs[first].llm_identity, specs[run].llm_identity, of=first, llm=f"{specs[run].llm} of {run}")


def _require_port(config: ServeConfig) -> None:
    try:
        with socket.create_server((config.host, config.port), reuse_port=False):
            pass
    except OSError as error:
        raise UserError(f"host={config.host} port={config.port}: {error.strerror or error}") from None


def _with_full_paths(config: ServeConfig) -> ServeConfig:
    """Return the config with paths that mean the same in the folder of another process."""
    names = ("llm", "whisper", "beats", "manifest", "cache")
    given = {name: path for name in names if (path := getattr(config, name)) not in ("", "tiny", "none")}
    full: dict[str, Any] = {
        name: path if name == "llm" and is_hub_name(path) else storage.full_path(path) for name, path in given.items()
    }
    return replace(config, run=[storage.full_path(run) for run in config.run], **full)


def _say(config: ServeConfig, token: str) -> None:
    address = f"http://{config.host}:{config.port}"
    print(f"{', '.join(names_of(config.run))} at {address}/v1 (OpenAI's API), stopped with Ctrl-C")
    print(f"page: {address}/{f'#token={token}' if token else ''}")
    if token:
        where = f"of {VARIABLE}" if known_token() != _written() else f"in {token_file()}"
        print(f"token: the one {where}", file=sys.stderr)
    sys.stdout.flush()


def _written() -> str:
    return token_file().read_text().strip() if token_file().exists() else ""
