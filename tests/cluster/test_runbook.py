"""Every message that ends a job with exit code 1 has an entry, and every entry has a test that makes it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT
from tests.sources import sources

TEXT = (ROOT / "cluster" / "RUNBOOK.md").read_text()
ENTRIES = {part.splitlines()[0]: part for part in re.split(r"^### ", TEXT, flags=re.MULTILINE)[1:]}
LONG_ENOUGH = 12
"""Characters of a message, between the values in it, that tell it from others."""


def raises(path: Path) -> Iterator[tuple[str, str]]:
    """Yield, of each raised JobIncompleteError, the function around it and the longest fixed part of its message."""
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            call = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "JobIncompleteError":
                texts = [part.value for part in ast.walk(call) if isinstance(part, ast.Constant)]
                yield function.name, max((text for text in texts if isinstance(text, str)), key=len, default="")


def test_every_message_with_exit_code_1_has_an_entry_that_names_its_place() -> None:
    found = [(path.relative_to(ROOT).as_posix(), *one) for path in sources().values() for one in raises(path)]
    assert len(found) > 10
    for path, function, message in found:
        entries = [entry for entry in ENTRIES.values() if f"`{path}:{function}`" in entry]
        assert entries, f"cluster/RUNBOOK.md has no entry for {path}:{function} ({message!r})"
        if len(message) >= LONG_ENOUGH:
            assert any(message.strip() in entry for entry in entries), f"{path}:{function}: no entry holds {message!r}"


def test_every_place_that_is_named_still_says_something() -> None:
    said = {f"{path.relative_to(ROOT).as_posix()}:{name}" for path in sources().values() for name, _ in raises(path)}
    named = set(re.findall(r"`((?:pipelines|cluster)/[\w/]+\.py:\w+)`", TEXT))
    assert named <= said


@pytest.mark.parametrize("title", ENTRIES)
def test_an_entry_has_a_cause_a_command_and_a_test_that_is_there(title: str) -> None:
    entry = ENTRIES[title]
    for part in ("- Cause: ", "- Command: ", "- Test: "):
        assert entry.count(part) == 1, f"{title}: {part}"
    named = re.search(r"- Test: `(tests/[\w/]+\.py)((?:::\w+)+)`", entry)
    assert named, f"{title} names no test"
    place: ast.AST = ast.parse((ROOT / named[1]).read_text())
    for name in named[2].strip(":").split("::"):
        definitions = [node for node in ast.walk(place) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        inner = [node for node in definitions if node.name == name]
        assert inner, f"{title}: {named[1]} has no {name}"
        place = inner[0]
