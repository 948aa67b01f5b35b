"""What a unit costs the driver of an extraction, and its memory, with workers that only commit.

`python -m benchmarks.driver [units]`: the whole of `salmonn extract` but for the encoding: plan, queue, records,
progress, closing report. The workers write an index file per unit, so that the job ends as a real one does.
"""

import multiprocessing
import platform
import sys
import tempfile
import time
from pathlib import Path

import ray

from cluster.config import RayConfig
from cluster.unit_queue import Attempt
from encoders.audio import Segment
from pipelines import storage
from pipelines.cache.index import ShardInfo, index_schema
from pipelines.cache.layout import unit_name
from pipelines.cache.plan import ExtractUnit, count_units
from pipelines.extraction import extract as extract_module
from pipelines.extraction.config import ExtractConfig
from pipelines.extraction.extract import extract
from pipelines.extraction.messages import UnitStats, WorkerConfig
from pipelines.manifest.ids import clip_id
from pipelines.manifest.tables import CLIP_SCHEMA, CLIPS, EXAMPLE_SCHEMA, EXAMPLES, Clip, row_from_clip
from pipelines.storage.tables import RowTable

CLIPS_PER_UNIT = 10
CLIPS_PER_RECORDING = 50


class NoOpWorker:
    """Commits units without encoding them."""

    def __init__(self, config: WorkerConfig) -> None:
        self.index = Path(config.cache) / "index"
        storage.write_table(str(self.index / ".tmp-empty"), index_schema(config.recipe).empty_table())
        self.data = (self.index / ".tmp-empty").read_bytes()

    def ready(self) -> str:
        return "here"

    def run(self, unit: ExtractUnit, attempt: Attempt) -> UnitStats:
        (self.index / f"{unit_name(unit.unit)}.parquet").write_bytes(self.data)
        return UnitStats(
            ShardInfo(unit=unit.unit, clips=len(unit.clips), rejects=0, seconds=30.0 * len(unit.clips), nbytes=0),
            0.0,
            "none",
        )


def write_manifest(folder: str, num_clips: int) -> None:
    """Write clips of 30 s, some of each recording, and no examples."""
    with RowTable(storage.join(folder, CLIPS), CLIP_SCHEMA) as table:
        for number in range(num_clips):
            recording, place = divmod(number, CLIPS_PER_RECORDING)
            segment = Segment(f"train/{recording // 100:06d}/{recording:09d}.flac", 30.0 * place, 30.0)
            clip = Clip(
                clip_id=clip_id("made-up", [segment]),
                corpus="made-up",
                split="train",
                root="/corpora/made-up",
                segments=(segment,),
                seconds=30.0,
            )
            table.add(row_from_clip(clip))
    storage.write_table(storage.join(folder, EXAMPLES), EXAMPLE_SCHEMA.empty_table())


def megabytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) // 1024


def main(num_units: int) -> None:
    setattr(extract_module, "ExtractActor", NoOpWorker)  # noqa: B010
    with tempfile.TemporaryDirectory() as folder:
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # its memory is not the driver's
            pool.apply(write_manifest, (f"{folder}/m", CLIPS_PER_UNIT * num_units))
        before, cpu = megabytes("VmRSS"), time.process_time()
        keys = {"whisper": "tiny", "beats": "none", "shard_megabytes": 4, "workers": 2}
        ray_config = RayConfig(address="local", num_cpus=2)
        report = extract(ExtractConfig(manifest=f"{folder}/m", cache=f"{folder}/c", ray=ray_config, **keys))  # type: ignore[arg-type]
        cpu, units = time.process_time() - cpu, count_units(f"{folder}/c")
        assert report.units == units and "torch" not in sys.modules
    print(f"{units} units of {CLIPS_PER_UNIT} clips, 2 workers; {platform.machine()}, ray {ray.__version__}")
    print(f"{1000 * report.seconds / units:.2f} ms per unit from the queue's start to its end")
    print(f"{1000 * cpu / units:.2f} ms of the driver's processor time per unit, planning and Ray's start included")
    print(f"memory: {before} MB with its imports, at the end {megabytes('VmRSS')} MB, peak {megabytes('VmHWM')} MB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
