"""The tests; the tree is that of the packages."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
