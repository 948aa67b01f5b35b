"""What an extraction leaves in `jobs/`: a line per unit while it runs, and a page at its end."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from cluster.unit_queue import FailedUnit, UnitResult
from pipelines import storage

UNITS_PER_FILE = 1_000
UNIT_SCHEMA = pa.schema(
    [
        ("unit", pa.int64()),
        ("ended_seconds", pa.float64()),  # since the job began
        ("seconds", pa.float64()),
        ("node", pa.string()),
        ("device", pa.string()),
        ("attempt", pa.int64()),
        ("clips", pa.int64()),
        ("rejects", pa.int64()),
        ("audio_seconds", pa.float64()),
        ("nbytes", pa.int64()),
        ("lowest_snr_db", pa.float64()),
        ("parts", pa.map_(pa.string(), pa.float64())),
    ]
)


class UnitLog:
    """Lines of a job's units in `<folder>/000000.jsonl` and on, a thousand in each."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._job = folder.partition("?")[0].rpartition("/")[2]
        self._start = time.monotonic()
        self._lines = 0
        self._file: storage.LineFile | None = None

    def add(self, result: UnitResult) -> None:
        """Record a unit that is done."""
        stats = result.value
        shard = stats.shard
        self._append(
            {
                "unit": shard.unit,
                "seconds": stats.seconds,
                "node": stats.node,
                "device": stats.device,
                "attempt": result.attempt,
                "clips": shard.clips,
                "rejects": shard.rejects,
                "rejects_by_stage": stats.rejects_by_stage,
                "audio_seconds": shard.seconds,
                "nbytes": shard.nbytes,
                "lowest_snr_db": shard.lowest_snr_db,
                "parts": stats.parts,
            }
        )

    def add_failed(self, failed: FailedUnit) -> None:
        """Record a unit that was given up."""
        self._append({"unit": int(failed.unit_id), "attempt": failed.attempts, "error": failed.error})

    def _append(self, about: dict[str, Any]) -> None:
        if self._file is None or self._lines % UNITS_PER_FILE == 0:
            self.close()
            self._file = storage.LineFile(storage.join(self.folder, f"{self._lines // UNITS_PER_FILE:06d}.jsonl"))
        when = {"ended": datetime.now(UTC).isoformat(timespec="seconds")}
        self._file.append({"job": self._job, **when, "ended_seconds": time.monotonic() - self._start, **about})
        self._lines += 1

    def close(self) -> None:
        """Let all lines be where they outlive this machine."""
        if self._file:
            self._file.close()
        self._file = None


def read_unit_log(folder: str) -> pa.Table:
    """Return a job's records of the units that are done, in the order in which they ended."""
    rows = [row for row in unit_lines(folder) if "error" not in row]
    return pa.Table.from_pylist([{**row, "parts": list(row["parts"].items())} for row in rows], UNIT_SCHEMA)


def unit_lines(folder: str) -> Iterator[dict[str, Any]]:
    """Yield a job's lines of units, as they are. Raises UserError if a file is damaged."""
    for name in storage.list_names(folder, ".jsonl"):
        yield from storage.LineTail(storage.join(folder, name)).read()
