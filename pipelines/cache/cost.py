"""What the encoders cost a device: once, into a cache, or again for every example in its step."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pipelines import storage

ENCODERS = ("mel", "whisper", "fbank", "beats")
"""Parts of an extraction that each step would repeat."""
DECODE_WAIT, ENCODE_WAIT, WRITE = ALL_PARTS = ("wait for decode", "wait for encode", "write")
"""Parts of an extraction that add up to its workers' time."""


@dataclass(frozen=True)
class EncodingCost:
    """What a clip costs, measured on `clips` of them: its encoding alone, and its extraction into a cache."""

    clips: int
    encode_seconds: float
    extract_seconds: float
    devices: str

    def online_hours(self, examples: int) -> float:
        """Return the device hours of encoding each of these examples in its step."""
        return examples * self.encode_seconds / 3600

    def extract_hours(self, clips: int) -> float:
        """Return the device hours of extracting these clips, with the waits for decoding and the writing."""
        return clips * self.extract_seconds / 3600


def read_encoding_cost(cache: str) -> EncodingCost | None:
    """Return what the clips cost the jobs that filled a cache; None if it has no record of them.

    Two chunks may be under way on a GPU, each timed in full; so encoding counts as no more than the whole job.
    """
    jobs = storage.join(cache, "jobs")
    clips, encoding, extracting, devices = 0, 0.0, 0.0, set[str]()
    for name in storage.list_names(jobs, ".json"):
        report = storage.read_json(storage.join(jobs, name))["report"]
        clips += report["clips"]
        encoding += sum(report["parts"].get(part, 0.0) for part in ENCODERS)
        extracting += sum(report["parts"].get(part, 0.0) for part in ALL_PARTS)
        devices |= set(report["devices"])
    return _cost(clips, encoding, extracting, devices)


def encoding_cost_of(clips: int, parts: Mapping[str, float], devices: Collection[str]) -> EncodingCost | None:
    """Return what the clips cost one job, by its seconds of each part; None if it encoded none."""
    encoding, extracting = (sum(parts.get(part, 0.0) for part in names) for names in (ENCODERS, ALL_PARTS))
    return _cost(clips, encoding, extracting, devices)


def _cost(clips: int, encoding: float, extracting: float, devices: Collection[str]) -> EncodingCost | None:
    if not clips:
        return None
    return EncodingCost(clips, min(encoding, extracting) / clips, extracting / clips, ", ".join(sorted(devices)))


def break_even_epochs(device_hours: float, storage_hours: float, examples_per_clip: float) -> float:
    """Return after how many epochs over the examples extracting once costs as much as encoding in each step.

    Online, an epoch encodes every example: E·r device hours for r examples per clip; once costs E, and storage worth S
    device hours. n·E·r = E + S gives n = (1 + S/E) / r. Reading features in training is taken to be hidden.
    """
    return (1 + storage_hours / device_hours) / examples_per_clip if device_hours else 0.0
