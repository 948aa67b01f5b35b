"""A function called in a process of its own, which takes what it imported and loaded with it when it ends."""

import importlib
import multiprocessing
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any


def call_apart(module: str, function: str, *, spared: str, **keys: Any) -> Any:
    """Return what a function gives, or raise what it raises; its module is imported in a process of its own.

    A process that has imported `spared` already, the package for whose sake that is done, calls the function itself.

    Raises:
        ChildProcessError: If the process ended without an answer.
    """
    if spared in sys.modules:
        return _call(module, function, keys)
    context = multiprocessing.get_context("spawn")
    answers, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, module, function, keys), daemon=True)
    process.start()
    sender.close()  # the process's own is now the only one, so that its death is an end of file
    with answers:
        try:
            value, error, trace = answers.recv()
        except EOFError:
            process.join()
            raise ChildProcessError(
                f"the process that calls {module}.{function} ended with exit code {process.exitcode}"
            ) from None
    process.join()
    if error is not None:
        error.add_note(trace)
        raise error
    return value


def _call(module: str, function: str, keys: dict[str, Any]) -> Any:
    return getattr(importlib.import_module(module), function)(**keys)


def _answer(sender: Connection, module: str, function: str, keys: dict[str, Any]) -> None:
    value, error, trace = None, None, ""
    try:
        value = _call(module, function, keys)
    except Exception as raised:  # it is raised again where the answer is asked for
        error, trace = raised, traceback.format_exc()
    sender.send((value, error, trace))
