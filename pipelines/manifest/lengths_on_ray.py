"""Lengths of many recordings, their headers read by a Ray cluster's workers."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import ray
from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from cluster.config import RayConfig
from cluster.connection import connect
from pipelines.manifest.lengths import UNREADABLE, Look, look_at
from pipelines.manifest.tables import Clip

PROBE_RETRIES = 10
"""Times a batch of headers is read again after its worker or machine went away."""


class HasClips(Protocol):
    @property
    def clips(self) -> Sequence[Clip]: ...


BatchT = TypeVar("BatchT", bound=HasClips)


def with_lengths_on_ray(
    batches: Iterable[BatchT], config: RayConfig, max_clip_seconds: float
) -> Iterator[tuple[BatchT, list[Look]]]:
    """Yield each batch with what `look_at` returns for its clips, in the batches' order."""
    connect(config)
    read = ray.remote(look_at).options(num_cpus=1, max_retries=PROBE_RETRIES)
    most = 2 * int(ray.cluster_resources().get("CPU", 1))
    in_flight: deque[tuple[BatchT, Any]] = deque()
    for batch in batches:
        in_flight.append((batch, read.remote(batch.clips, max_clip_seconds)))
        if len(in_flight) > most:
            yield _received(*in_flight.popleft())
    while in_flight:
        yield _received(*in_flight.popleft())


def _received(batch: BatchT, reference: Any) -> tuple[BatchT, list[Look]]:
    try:
        return batch, ray.get(reference)
    except (WorkerCrashedError, OutOfMemoryError) as error:
        reason = f"each process that read headers with it ended: {type(error).__name__}"
        return batch, [Look(None, problem=UNREADABLE, detail=reason)] * len(batch.clips)
