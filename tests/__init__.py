"""The tests; the tree is that of the packages."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
"""Reference numbers, real recordings and small real weights, which are no part of this repository. Tests that read them
are marked `weights`; they are skipped where the folder is not there."""
