"""Whoever reads the reference numbers says so: those tests, and no others, are skipped where the numbers are not."""

import ast
from collections.abc import Iterator

import pytest

from tests import ROOT


def unmarked_readers(source: str) -> Iterator[str]:
    """Yield the tests that read the reference folder, themselves or by a helper or fixture, and are not marked."""
    body, readers = ast.parse(source).body, {"SHARED"}
    uses = {node: _names_used(node) for node in body}
    known = 0
    while known < len(readers):  # names of names, as many steps as there are between them
        known = len(readers)
        for node in body:
            if uses[node] & readers:
                readers |= {target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)}
                readers |= {node.name} if isinstance(node, ast.FunctionDef | ast.ClassDef) else set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in readers:
            marks = [ast.unparse(decorator) for decorator in node.decorator_list]
            if node.name.lower().startswith("test") and "pytest.mark.weights" not in marks:
                yield node.name


def _names_used(node: ast.AST) -> set[str]:
    inner = list(ast.walk(node))
    return {name.id for name in inner if isinstance(name, ast.Name)} | {
        argument.arg for argument in inner if isinstance(argument, ast.arg)
    }


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
