"""The packages' sources, and what they import."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests import ROOT

LEAVES = ("encoders", "qformer", "llm", "cluster")
OURS = ("pipelines", *LEAVES)


@cache
def sources() -> dict[str, Path]:
    """Module -> file, of all packages."""
    files = (path for package in OURS for path in sorted((ROOT / package).rglob("*.py")))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imported(path: Path, *, everywhere: bool = True) -> Iterator[str]:
    """Yield what a file imports by full name; only what its import runs if not `everywhere`."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in sources() else str(node.module)


def imports_of(path: Path) -> set[str]:
    """Top-level packages a file imports anywhere in it."""
    return {name.partition(".")[0] for name in imported(path)}
