"""What an extraction leaves in `jobs/`: a record per unit, written in chunks while it runs, and a page at its end."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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


@dataclass(frozen=True)
class Forecast:
    """What a job was to do, known before it began; a worker's clips per second are 0 where nobody has forecast them."""

    clips: int
    hours: float
    nbytes: int
    clips_per_second: float

    def seconds(self, workers: int) -> float:
        """Return how long the job was to take, 0 where that was not forecast."""
        return self.clips / (workers * self.clips_per_second) if self.clips_per_second else 0.0


def write_closing_report(
    uri: str,
    units: pa.Table,
    *,
    forecast: Forecast,
    workers: int,
    seconds: float,
    parts: Mapping[str, float],
    devices: Sequence[str],
    command: str,
) -> None:
    """Write the page of a job that committed units: what was forecast and what came, speed over time, time by part."""
    from pipelines.interface.figures import draw_shares
    from pipelines.interface.page import Section, Tile, draw_throughput, write_report

    clips, rejects = (int(np.sum(units[name].to_numpy())) for name in ("clips", "rejects"))
    hours, nbytes = np.sum(units["audio_seconds"].to_numpy()) / 3600, int(np.sum(units["nbytes"].to_numpy()))
    expected_seconds = forecast.seconds(workers)
    expected = 3600 * forecast.hours / expected_seconds if expected_seconds else None
    rows = [
        ("clips", f"{forecast.clips}", f"{clips + rejects}, of which {rejects} rejected"),
        ("hours of audio", f"{forecast.hours:.2f}", f"{hours:.2f}"),
        ("GB of shards", f"{forecast.nbytes / 1e9:.3f}", f"{nbytes / 1e9:.3f}"),
        ("seconds", f"{expected_seconds:.0f}" if expected else "not forecast", f"{seconds:.0f}"),
    ]
    speed = draw_throughput(
        units["ended_seconds"].to_numpy(),
        units["audio_seconds"].to_numpy(),
        units["nbytes"].to_numpy(),
        expected=expected,
        caption="Speed while the job ran, by the shards that were finished in each span.",
    )
    shares = draw_shares(parts, caption="Where the workers' time went; decoding and encoding overlap with writing.")
    lowest_snr_db = pc.min(units["lowest_snr_db"]).as_py()
    tiles = [
        Tile("clips", f"{clips:,}"),
        Tile("hours of audio", f"{hours:,.2f}"),
        Tile("× real time", f"{3600 * hours / max(seconds, 1e-9):,.0f}"),
        Tile("GB", f"{nbytes / 1e9:,.2f}"),
        Tile("rejected clips", f"{rejects:,}"),
        Tile("shards", f"{units.num_rows:,}"),
        Tile("dB, the worst clip sampled", "–" if lowest_snr_db is None else f"{lowest_snr_db:.1f}"),
    ]
    sections = [
        Section("Forecast and outcome", columns=("", "forecast", "came"), rows=rows),
        Section("Speed", pictures=[speed]),
        Section("Time by part", pictures=[shares]),
    ]
    write_report(
        uri,
        title="Feature extraction",
        lead=f"Workers: {workers}. Devices: {', '.join(devices)}.",
        tiles=tiles,
        sections=sections,
        footer=command,
    )
