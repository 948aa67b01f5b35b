"""Whoever reads the reference numbers says so: those tests, and no others, are skipped where the numbers are not."""

import ast
from collections.abc import Iterator

import pytest

from tests import ROOT


def unmarked_readers(source: str) -> Iterator[str]:
    """Yield the tests that read the reference folder, themselves or by a helper or fixture, and are not marked."""
    body = ast.parse(source).body
    readers = {"SHARED"}
    for _ in body:  # names of names: as often as there may be steps between them
        for node in body:
            used = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
            used |= {argument.arg for argument in ast.walk(node) if isinstance(argument, ast.arg)}
            if used & readers:
                readers |= {target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)}
                readers |= {node.name} if isinstance(node, ast.FunctionDef | ast.ClassDef) else set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in readers:
            marks = [ast.unparse(decorator) for decorator in node.decorator_list]
            if node.name.lower().startswith("test") and "pytest.mark.weights" not in marks:
                yield node.name


def test_every_test_that_reads_the_reference_numbers_is_marked():
    for path in sorted((ROOT / "tests").rglob("*.py")):
        source = path.read_text()
        if path.name not in ("__init__.py", "conftest.py"):
            assert not list(unmarked_readers(source)), path
            names_it = [line for line in source.splitlines() if '"shared"' in line or "../shared" in line]
            assert not names_it or path.name == "test_reference.py", f"{path}: use tests.SHARED"


@pytest.mark.parametrize(
    "source",
    [
        "def test_a():\n    assert SHARED.exists()",
        "GOLDEN = SHARED / 'golden'\ndef test_a():\n    assert GOLDEN",
        "GOLDEN = SHARED / 'golden'\n@pytest.fixture\ndef numbers():\n    return GOLDEN\ndef test_a(numbers): ...",
        "def read():\n    return SHARED\nclass TestA:\n    def test_b(self):\n        read()",
    ],
)
def test_planted_readers_are_found(source):
    assert len(list(unmarked_readers(source))) == 1
    assert (
        not list(unmarked_readers(source.replace("def test_a", "@pytest.mark.weights\ndef test_a")))
        or "TestA" in source
    )
