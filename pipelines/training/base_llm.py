"""The frozen LLM of a run that starts from scratch: the tiny one is made, the width of any is measured."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from llm.loading import llm_width
from llm.prompts import PROMPTS
from llm.tiny import write_tiny_llm
from pipelines.manifest.tables import read_examples
from pipelines.runs.spec import copy_llm


def prepare_llm(*, run: str, llm: str, manifest: str) -> int:
    """Return the LLM's width; the tiny one is made from the manifest's texts and put into the run.

    Raises:
        LLMError: If the LLM is absent or its config cannot be read.
    """
    if llm != "tiny":
        return llm_width(llm)
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_llm(_texts(manifest), Path(folder))
        copy_llm(Path(folder), run)
        return llm_width(folder)


def _texts(manifest: str) -> Iterator[str]:
    for prompts in PROMPTS.values():
        yield from prompts
    for example in read_examples(manifest):
        yield from filter(None, (example.question, example.answer))
