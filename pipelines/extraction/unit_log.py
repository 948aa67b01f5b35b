"""What an extraction leaves in `jobs/`: a record per unit, written in chunks while it runs, and a page at its end."""

import time
from typing import Any

import pyarrow as pa

from cluster.unit_queue import UnitResult
from pipelines import storage

UNITS_PER_FILE = 1_000
UNIT_SCHEMA = pa.schema(
    [
        ("unit", pa.int64()),
        ("ended_seconds", pa.float64()),  # since the job began
        ("seconds", pa.float64()),
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
    """Records of a job's units in `<folder>/000000.parquet` and on, a thousand in each: so many are held at most."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._start = time.monotonic()
        self._rows: list[dict[str, Any]] = []
        self._files = 0

    def add(self, result: UnitResult) -> None:
        """Record a unit that is done."""
        stats = result.value
        shard = stats.shard
        self._rows.append(
            {
                "unit": shard.unit,
                "ended_seconds": time.monotonic() - self._start,
                "seconds": stats.seconds,
                "device": stats.device,
                "attempt": result.attempt,
                "clips": shard.clips,
                "rejects": shard.rejects,
                "audio_seconds": shard.seconds,
                "nbytes": shard.nbytes,
                "lowest_snr_db": shard.lowest_snr_db,
                "parts": list(stats.parts.items()),
            }
        )
        if len(self._rows) == UNITS_PER_FILE:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        if self._rows:
            table = pa.Table.from_pylist(self._rows, schema=UNIT_SCHEMA)
            storage.write_table(storage.join(self.folder, f"{self._files:06d}.parquet"), table)
            self._files += 1
            self._rows.clear()


def read_unit_log(folder: str) -> pa.Table:
    """Return a job's records of units, in the order in which they ended."""
    tables = [UNIT_SCHEMA.empty_table()]
    for name in storage.list_names(folder, ".parquet"):
        with storage.open_parquet(storage.join(folder, name)) as file:
            tables.append(file.read())
    return pa.concat_tables(tables)
