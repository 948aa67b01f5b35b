"""The page at an extraction's end: what was forecast and what came."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure

from pipelines.cache.cost import EncodingCost, encoding_cost_of
from pipelines.extraction.messages import Forecast
from pipelines.interface.figures import (
    ACCENT,
    STYLE,
    FloatArray,
    Picture,
    as_picture,
    draw_shares,
)
from pipelines.interface.page import Section, Tile, write_report
from pipelines.interface.version import written_now
from pipelines.interface.words import counted


def draw_throughput(
    ended_seconds: FloatArray,
    audio_seconds: FloatArray,
    nbytes: FloatArray,
    *,
    expected: float | None,
    caption: str,
) -> Picture:
    """Draw speed over time from what was finished when, in up to 60 spans.

    Args:
        ended_seconds: Of each piece of work since the beginning.
        audio_seconds: Of each piece.
        nbytes: Of each piece.
        expected: The forecast in × real time, drawn as a line; None draws none.
        caption: The line below the picture.
    """
    edges = np.linspace(0, float(ended_seconds.max()), 1 + min(60, max(1, len(ended_seconds) // 4)))
    hours = edges / 3600 if edges[-1] > 7200 else edges
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.2), layout="constrained")
        for axis, values, title in zip(
            figure.subplots(1, 2), (audio_seconds, nbytes / 1e6), ("× real time", "MB/s of shards"), strict=True
        ):
            sums, _ = np.histogram(ended_seconds, edges, weights=values)
            axis.stairs(sums / np.diff(edges), hours, fill=True, color=ACCENT, alpha=0.8)
            if expected and title == "× real time":
                axis.axhline(expected, color="#b45309", label="forecast")
                axis.legend(frameon=False)
            axis.set(title=title, xlabel="hours" if edges[-1] > 7200 else "seconds", ylim=(0, None))
        return as_picture(figure, caption)


def write_closing_report(
    uri: str,
    units: pa.Table,
    *,
    forecast: Forecast,
    workers: int,
    seconds: float,
    parts: Mapping[str, float],
    devices: Sequence[str],
    cache: str,
    encoders: Mapping[str, str],
    command: str,
    examples_per_clip: float,
    price_per_hour: float,
) -> None:
    """Write the page of a job that committed units: forecast and outcome, speed over time, time by part, cost."""
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
    heard = ", ".join(f"{name} {path}" for name, path in encoders.items())
    sections = [
        Section("Forecast and outcome", columns=("", "forecast", "came"), rows=rows),
        Section("Speed", pictures=[speed]),
        Section("Time by part", pictures=[shares]),
    ]
    cost = encoding_cost_of(clips, parts, devices)
    if cost and cost.encode_seconds:
        examples = round(clips * examples_per_clip)
        sections.append(_cost(cost, examples, device_hours=workers * seconds / 3600, price_per_hour=price_per_hour))
    write_report(
        uri,
        title="Feature extraction",
        lead=f"Cache {cache}. Encoders: {heard}. {counted(workers, 'worker')} on {', '.join(devices)}. {written_now()}",
        tiles=tiles,
        sections=sections,
        footer=command,
    )


def _cost(cost: EncodingCost, examples: int, *, device_hours: float, price_per_hour: float) -> Section:
    """Compare what the job cost with encoders that run in every step of a training, at the job's own rate."""
    online = cost.online_hours(examples)
    rows = [
        (name, f"{hours:,.4g}", f"{hours * price_per_hour:,.2f}" if price_per_hour else "")
        for name, hours in (("this job", device_hours), ("the encoders in every step, an epoch", online))
    ]
    text = (
        f"A training without the cache would encode the {examples:,} examples of these clips anew in every epoch, at "
        f"{cost.encode_seconds:.3g} s a clip as measured here ({cost.devices}). "
        f"The job has paid for itself after {device_hours / online:,.2f} epochs."
    )
    money = f"money at {price_per_hour:g} an hour" if price_per_hour else ""
    return Section("What it cost", text, ("", "device hours", money), rows)
