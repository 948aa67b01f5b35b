"""How near stored frames are to others of the same clips. Letters: T frames, C channels."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoders.codecs import dequantise, measure_fidelity
from encoders.features import STORED_TYPES, Fidelity
from pipelines.cache.bounds import NPY_HEADER_NBYTES
from pipelines.cache.index import member_name
from pipelines.cache.recipe import Recipe
from pipelines.interface.words import counted


def stored_frames(members: Mapping[str, bytes], row: Mapping[str, Any], recipe: Recipe) -> dict[str, Tensor]:
    """Return a stored clip's streams, float32 [T, C], from its .npy files and its row of a checked index."""
    stored, streams = STORED_TYPES[recipe.codec], {}
    dtypes = {"": stored.dtype, "scale": "float32"}
    for stream, about in recipe.streams.items():
        parts = {}
        for part in stored.parts:
            values = bytearray(memoryview(members[member_name(stream, part)])[NPY_HEADER_NBYTES:])
            shape = (row[f"{stream}_frames"], about.width) if part == "" else (about.width,)
            parts[part] = torch.from_numpy(np.frombuffer(values, dtypes[part]).reshape(shape))
        streams[stream] = dequantise(parts, recipe.codec)
    return streams


class Nearness:
    """The measures of clips, by stream."""

    def __init__(self) -> None:
        self._measured: dict[str, list[Fidelity]] = {}

    def add(self, wanted: Mapping[str, Tensor], there: Mapping[str, Tensor], *, tolerance_db: float) -> Sequence[str]:
        """Measure the streams [T, C] that a clip has in both, and return in words which are too far apart."""
        faults = []
        for stream in sorted(wanted.keys() & there.keys()):
            wanted_TC, there_TC = wanted[stream], there[stream]
            if wanted_TC.shape != there_TC.shape:
                faults.append(f"{stream} is {_shape(there_TC)} there, not {_shape(wanted_TC)}")
                continue
            measured = measure_fidelity(wanted_TC, there_TC)
            self._measured.setdefault(stream, []).append(measured)
            if not measured.snr_db >= tolerance_db:  # of what is no number, too
                faults.append(
                    f"{stream} has an SNR of {measured.snr_db:.1f} dB, worst cosine {measured.worst_cosine:.4f}"
                )
        return faults

    def lines(self) -> Sequence[str]:
        """Return a line for each stream."""
        lines = []
        for stream, measured in sorted(self._measured.items()):
            snrs, worst = [one.snr_db for one in measured], min(one.worst_cosine for one in measured)
            lines.append(
                f"{stream}: {counted(len(snrs), 'clip')} compared, SNR {median(snrs):.1f} dB (median), "
                f"{min(snrs):.1f} dB (lowest); worst cosine {worst:.6f}"
            )
        return lines


def _shape(frames_TC: Tensor) -> str:
    return " x ".join(map(str, frames_TC.shape))
