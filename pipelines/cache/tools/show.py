"""`salmonn cache show`: a clip's wave and what the encoders made of it, as a picture. Letters: T frames, C channels."""

import hashlib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

from encoders.audio import AudioError
from encoders.features import FRAME_RATE_HZ
from encoders.sound.clips import load_clip
from pipelines import storage
from pipelines.cache.plan import read_units
from pipelines.cache.reader import FeatureCache
from pipelines.cache.tools.config import CacheShowConfig
from pipelines.errors import UserError
from pipelines.interface.figures import INK, SOFT, STYLE
from pipelines.manifest.tables import Clip, corpus_roots

BANDS = 128
"""Rows of a stream's picture: neighbours among the ordered channels are averaged."""
ENVELOPE_POINTS = 1_500


def cache_show(config: CacheShowConfig) -> None:
    """Draw a clip's wave, if its recording is still there, above its streams.

    Raises:
        FileNotFoundError: If there is no cache.
        UserError: If no clip, or more than one, is called so.
    """
    cache = FeatureCache(config.cache)
    position = _find(cache, config.clip)
    row = cache.row(position)
    roots = corpus_roots(config.manifest) if config.manifest else {}
    number = int(row["shard"].partition(".")[0])
    units = (unit for unit in read_units(config.cache, roots=roots) if unit.unit == number)
    clip = next(clip for unit in units for clip in unit.clips if clip.clip_id == row["clip_id"])
    try:
        wave = load_clip(
            clip.located(),
            channel=cache.recipe.channel,
            max_clip_seconds=cache.recipe.max_clip_seconds,
            open_file=storage.open_file,
        )
        digest = hashlib.blake2b(wave.numpy().tobytes(), digest_size=16).hexdigest()
        note = "" if digest == row["source_digest"] else "the recording has changed since it was encoded"
    except AudioError as error:
        wave, note = None, f"no wave: {error}"
    recipe = f"recipe {cache.recipe.digest[:16]}, {cache.recipe.codec}, {cache.recipe.precision}"
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": row["clip_id"]}):
        figure = _draw(wave, cache.read(position), row, title=_title(clip, row), footer=f"{recipe}   {note}".rstrip())
        suffix = PurePosixPath(config.out.partition("?")[0]).suffix.removeprefix(".")
        with storage.staged_file(config.out) as path:
            metadata = {"Date": None} if suffix == "svg" else {}
            figure.savefig(path, format=suffix, dpi=150, metadata=metadata)
    print(f"{config.out}: clip {row['clip_id']}, {row['seconds']:.2f} s{', ' + note if note else ''}")


def _find(cache: FeatureCache, clip: str) -> int:
    found = cache.positions_from(clip)
    if len(found) != 1:
        names = ", ".join(cache.clip_id(place) for place in found[:3])
        several = f"{len(found)} clips begin so ({names}, …)"
        raise UserError(f"clip={clip}: {several if len(found) else f'{cache.uri} holds no such clip'}")
    return int(found[0])


def _title(clip: Clip, row: Mapping[str, Any]) -> str:
    recordings = ", ".join(clip.recordings)
    recordings = recordings if len(recordings) <= 70 else recordings[:69] + "…"
    return f"clip {clip.clip_id}   {row['seconds']:.2f} s\n{clip.corpus}, {clip.split}: {recordings}"


def _draw(
    wave: Tensor | None, streams: Mapping[str, Tensor], row: Mapping[str, Any], *, title: str, footer: str
) -> Figure:
    seconds = row["seconds"]
    heights = [1.0] * (wave is not None) + [2.2] * len(streams)
    figure = Figure(figsize=(11, 1.2 + 1.25 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, linespacing=1.5, parse_math=False)
    if wave is not None:
        low, high = _envelope(wave)
        times = torch.arange(len(low)) * (seconds / len(low))
        axes[0].fill_between(times, low, high, color=INK, linewidth=0.4)
        axes[0].set(ylabel="wave", yticks=[])
    for axis, (name, frames_TC) in zip(axes[-len(streams) :], streams.items(), strict=True):
        heard_TC = frames_TC[: max(1, round(seconds * FRAME_RATE_HZ))]
        extent = (0.0, len(heard_TC) / FRAME_RATE_HZ, 0.0, 1.0)
        image = axis.imshow(
            channel_bands(heard_TC).T, aspect="auto", origin="lower", cmap="RdBu_r", vmin=-2.5, vmax=2.5, extent=extent
        )
        axis.set(ylabel=f"{name}, {frames_TC.shape[1]} channels", yticks=[])
        shape = f"{len(heard_TC)} of {len(frames_TC)} frames lie in the clip"
        axis.set_title(shape, loc="right", fontsize=8, color=SOFT)
    axes[-1].set_xlabel(f"seconds\n{footer}", parse_math=False)
    axes[-1].set(xlim=(0, seconds))
    label = "standard deviations from the band's mean"
    figure.colorbar(image, ax=list(axes[-len(streams) :]), label=label, shrink=0.6, pad=0.01, aspect=30)
    return figure


def _envelope(wave: Tensor) -> tuple[Tensor, Tensor]:
    """Return least and largest sample of up to `ENVELOPE_POINTS` stretches of equal length."""
    stretches = wave[: len(wave) - len(wave) % ENVELOPE_POINTS].view(ENVELOPE_POINTS, -1)
    return stretches.amin(dim=1), stretches.amax(dim=1)


def channel_bands(frames_TC: Tensor) -> Tensor:
    """Return frames as a picture, [T, at most BANDS]: channels standardised, side by side where they vary alike.

    The order is the angle of a channel in the plane of the clip's first two principal components; neighbours are
    averaged, and each band is standardised again.
    """
    scaled_TC = _standardised(frames_TC)
    _, _, axes_QC = torch.linalg.svd(scaled_TC, full_matrices=False)
    if len(axes_QC) > 1:
        scaled_TC = scaled_TC[:, torch.atan2(axes_QC[1], axes_QC[0]).argsort()]
    if scaled_TC.shape[1] > BANDS:
        scaled_TC = adaptive_avg_pool1d(scaled_TC, BANDS)
    return _standardised(scaled_TC)


def _standardised(frames_TC: Tensor) -> Tensor:
    return (frames_TC - frames_TC.mean(dim=0)) / (frames_TC.std(dim=0, correction=0) + 1e-6)
