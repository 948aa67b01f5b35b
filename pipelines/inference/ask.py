"""`salmonn ask`: questions about recordings, answered here or by a server that is running."""

import json
import sys
from collections.abc import Iterator

from pipelines import storage
from pipelines.errors import JobIncompleteError, UserError
from pipelines.inference.config import AskConfig
from pipelines.inference.listening.answerer import Answer, Answerer
from pipelines.interface.progress import Progress
from pipelines.interface.words import counted


def ask(config: AskConfig) -> list[Answer]:
    """Print and return the answers, of several recordings each with its name.

    Without a question, questions are read from the terminal, and what was heard is kept: 6 MB a recording.

    Raises:
        FileNotFoundError: If there is no such recording or run.
        UserError: If the run learnt with other encoders, the only recording cannot be heard, or the server refuses.
        JobIncompleteError: If some of several recordings cannot be heard; the others are answered.
    """
    recordings = config.recordings()
    for recording in recordings:
        storage.open_file(recording).close()  # before the models are loaded
    answerer = _open(config)
    size = config.batch_examples
    parts = [recordings[first : first + size] for first in range(0, len(recordings), size)]
    answers: list[Answer] = []
    for question in [config.question] if config.question else _typed():
        for part in parts:
            found = answerer.answer(part, question)
            for answer in found:
                _print(answer, config, is_alone=len(recordings) == 1)
            answers += found
    unheard = {answer.recording for answer in answers if answer.error}
    if unheard:
        raise JobIncompleteError(f"{len(unheard)} of {counted(len(recordings), 'recording')} cannot be heard")
    return answers


def _open(config: AskConfig) -> Answerer:
    """Return who answers; PyTorch is imported only where that is done here."""
    if config.address:
        from pipelines.inference.serving.client import ServerAnswerer

        return ServerAnswerer(config)
    with Progress().opening("ask: loading the model and the encoders"):
        from pipelines.inference.listening.recordings import LocalAnswerer

        return LocalAnswerer(config)


def _print(answer: Answer, config: AskConfig, *, is_alone: bool) -> None:
    if answer.error and is_alone:
        raise UserError(f"{answer.recording}: {answer.error}")
    if config.json:
        print(json.dumps(_told(answer), ensure_ascii=False), flush=True)
    elif answer.error:
        print(f"{answer.recording}: {answer.error}", file=sys.stderr)
    else:
        print(answer.answer if is_alone else f"{answer.recording}: {answer.answer}", flush=True)
        for note in notes(answer):
            print(f"note: {answer.recording}: {note}", file=sys.stderr)


def _told(answer: Answer) -> dict[str, object]:
    about: dict[str, object] = {"recording": answer.recording, "question": answer.question}
    if answer.error:
        return {**about, "error": answer.error}
    seconds = {"heard_seconds": round(answer.heard_seconds, 3), "given_seconds": round(answer.given_seconds, 3)}
    return {**about, "answer": answer.answer, **seconds, "is_cut": answer.is_cut}


def notes(answer: Answer) -> Iterator[str]:
    """Yield what a reader of the answer must know: that not all was heard, or not all is said."""
    if answer.heard_seconds < answer.given_seconds:
        yield f"heard are the first {answer.heard_seconds:g} s of {answer.given_seconds:.1f} s"
    if answer.is_cut:
        yield "the answer is cut: it may be no longer (max_new_tokens)"


def _typed() -> Iterator[str]:
    """Yield the questions that are typed, until the input ends."""
    while True:
        print("question: ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            print(file=sys.stderr)
            return
        if line.strip():
            yield line.strip()
