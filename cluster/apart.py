"""A function called apart: in a process, which takes what it loaded with it when it ends, or in a thread."""

import ctypes
import importlib
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from threading import Thread
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")
LOOK_SECONDS = 0.5
"""Longest that an interrupt goes unnoticed."""


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


def call_in_thread(function: Callable[[], ResultT], *, stop_seconds: float = 0.0) -> ResultT:
    """Return what a function gives, or raise what it raises; an interrupt comes through at once, to the caller.

    A library takes signals for itself only in the main thread. The thread does not keep the process from ending. With
    `stop_seconds` an interrupt ends it too, at its next Python instruction, which is waited for so long: what still
    calls Ray when that is shut down makes Ray's own code end the process.
    """
    future: Future[ResultT] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    thread = Thread(target=call, daemon=True)
    try:
        thread.start()
        # A signal that another thread takes, or that comes just before this one waits, wakes nobody.
        while not wait([future], LOOK_SECONDS).done:
            pass
        return future.result()
    except (KeyboardInterrupt, SystemExit):
        if stop_seconds:
            raise_in_thread = ctypes.pythonapi.PyThreadState_SetAsyncExc
            raise_in_thread(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
            thread.join(stop_seconds)
        raise
