"""A function called in a process of its own, which takes what it imported and loaded with it when it ends."""

import importlib
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any


def call_in_subprocess(module: str, function: str, *, heavy: str, **keys: Any) -> Any:
    """Return what a function gives, or raise what it raises; its module is imported in a process of its own.

    A process that has imported the `heavy` package already, which the caller wants to do without, calls the function
    itself.

    Raises:
        ChildProcessError: If the process ended without an answer.
    """
    if heavy in sys.modules:
        return _call(module, function, keys)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_call, module, function, keys).result()
        except BrokenProcessPool:
            raise ChildProcessError(f"the process that calls {module}.{function} was killed or crashed") from None


def _call(module: str, function: str, keys: dict[str, Any]) -> Any:
    return getattr(importlib.import_module(module), function)(**keys)
