"""Which engine decodes, checked before anything starts."""

import json
import subprocess
from typing import Literal

from llm.settings import Precision
from pipelines.errors import UserError, shorten

Engine = Literal["own", "vllm"]


class EngineGoneError(OSError):
    """An engine's process has ended: nothing more can be decoded by it."""


def require_greedy(engine: Engine, python: str, *, num_beams: int) -> None:
    """Check that the keys of an engine fit each other.

    Raises:
        UserError: Naming the key that does not fit.
    """
    if engine == "own" and python:
        raise UserError(f"engine_python={python}: only engine=vllm runs in a Python of its own")
    if engine == "vllm" and not python:
        raise UserError(
            "engine=vllm: engine_python=… is needed, the Python of an environment in which vLLM is installed"
        )
    if engine == "vllm" and num_beams != 1:
        raise UserError(
            f"num_beams={num_beams}: engine=vllm decodes greedily; num_beams=1 does so, engine=own has beams"
        )


def engine_name(engine: Engine, python: str, precision: Precision) -> str | None:
    """Return the engine with its version, as it stands in what determined an answer; None for our own.

    Raises:
        UserError: If the Python has no vLLM, or the run's LLM is quantised.
    """
    if engine == "own":
        return None
    if precision in ("int8", "int4"):
        raise UserError(
            f"engine=vllm: LoRA cannot be merged into an LLM of precision={precision}; engine=own decodes it"
        )
    asked = "import json, vllm; print(json.dumps(vllm.__version__))"
    try:
        done = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"engine_python={python}: cannot be run: {error.strerror}") from None
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise UserError(f"engine_python={python}: cannot import vLLM: {shorten(last)}")
    return f"vllm {json.loads(done.stdout.splitlines()[-1])}"
