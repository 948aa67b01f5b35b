"""Caches, manifests and runs with files that say something else: what comes of it, in which time and memory.

`python -m benchmarks.mutations [cases [first]]`: cases over all kinds of `tests/pipelines/mutations.py`, 5,000 by
default; of each kind those from number `first` on, so that a later run can try other ones.
Exits with 1 if any case ended otherwise than in right data or one line.
"""

import contextlib
import io
import sys
import tempfile
from pathlib import Path

from tests.pipelines.mutations import KINDS, Outcome, try_kind, write_whole


def main() -> int:
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    cases = range(first, first - (-total // len(KINDS)))
    outcomes: dict[str, Outcome] = {}
    quiet = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        whole = write_whole(Path(folder) / "whole")
        for kind in KINDS:
            outcomes[kind] = try_kind(kind, whole, Path(folder) / "case", cases)
    print("| kind | cases | refused | right data | wrong | slowest, s | peak, MB |\n|---|---|---|---|---|---|---|")
    for kind, one in outcomes.items():
        numbers = (len(cases), one.refused, one.read, len(one.wrong), f"{one.slowest[0]:.2f}", f"{one.peak_mb:.0f}")
        print(f"| {kind} | {' | '.join(map(str, numbers))} |")
    wrong = [line for one in outcomes.values() for line in one.wrong]
    seconds, slowest = max(one.slowest for one in outcomes.values())
    print(f"{len(cases) * len(KINDS)} cases, {len(wrong)} wrong; the slowest took {seconds:.2f} s: {slowest}")
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
