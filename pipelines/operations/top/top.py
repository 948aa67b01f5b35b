"""`salmonn top`: how extractions, trainings and evaluations stand, in a terminal, by their folders alone."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipelines.interface.terminal import COLUMNS_ELSEWHERE
from pipelines.interface.words import counted
from pipelines.operations.config import TopConfig
from pipelines.operations.top.cache import CacheLook, CacheWatch
from pipelines.operations.top.run import RunLook, RunWatch
from pipelines.storage import Holder

Row = tuple[str, str]


def top(config: TopConfig) -> None:
    """Show the folders' state, on a terminal again and again until Ctrl-C.

    Raises:
        MissingError: If a folder is no cache or no run.
    """
    watches: list[CacheWatch | RunWatch] = [*map(CacheWatch, config.cache), *map(RunWatch, config.run)]
    console = Console(markup=False, width=None if sys.stdout.isatty() else COLUMNS_ELSEWHERE)
    if config.once or not console.is_terminal:
        console.print(shown(watches, time.time()))
        return
    seen = Group()
    with suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            note = ""
            try:
                seen = shown(watches, time.time())
            except OSError as error:  # a slow store, or a file that went while it was read
                note = f"not read: {error}; trying again"
            live.update(Group(seen, Text(note, style="red")), refresh=True)
            time.sleep(config.seconds)


def shown(watches: Sequence[CacheWatch | RunWatch], now: float) -> Group:
    """Return what is seen in the folders now, `now` in seconds since 1970."""
    parts: list[Text | Table] = []
    for watch in watches:
        look = watch.look(now)
        name, rows = ("cache", cache_rows(look, now)) if isinstance(look, CacheLook) else ("run", run_rows(look, now))
        parts += [Text(f"{name} {watch.uri}", style="bold", overflow="fold"), _table(rows)]
    return Group(*parts)


def _table(rows: Iterator[Row]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", width=12)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(f"  {name}", text)
    return table


def cache_rows(look: CacheLook, now: float) -> Iterator[Row]:
    """Yield what a look at a cache says, by name."""
    yield "job", _named(look.holders)
    came = f", the last {_ago(look.newest, now)}" if look.newest else ""
    yield "shards", f"{look.shards:,} of {look.planned_shards:,}{_share(look.shards, look.planned_shards)}{came}"
    yield "clips", f"{look.clips:,} of {look.planned_clips:,}, {look.hours:,.2f} h of {look.planned_hours:,.2f} h"
    if look.is_at_work and look.clips_per_second:
        speeds = f"{_number(look.real_time)}× real time, {_number(look.clips_per_second)} clips/s"
        yield "speed", f"{speeds} over the last {_duration(look.recent_seconds)}{_left(look.seconds_left)}"
    elif look.is_at_work:
        yield "speed", f"no shard in the last {_duration(look.recent_seconds)}"
    stages = ", ".join(f"{count:,} × {stage}" for stage, count in look.rejects.items())
    share = _share(sum(look.rejects.values()), look.clips)
    yield "rejects", f"{sum(look.rejects.values()):,}{share}: {stages}" if stages else "none"
    if look.failed:
        yield "failed", f"{counted(look.failed, 'shard')} given up by the last job; its lines in jobs/ say why"


def run_rows(look: RunLook, now: float) -> Iterator[Row]:
    """Yield what a look at a run says, by name."""
    yield "job", _named(look.holders)
    line = look.line
    if line:
        of = f" of {look.steps:,}{_share(line['step'], look.steps)}" if look.steps else ""
        yield "step", f"{line['step']:,}{of}" + (f", written {_ago(look.newest, now)}" if look.newest else "")
        by_task = ", ".join(f"{task} {loss:.3f}" for task, loss in line["loss_by_task"].items())
        held_out = "" if look.valid_loss is None else f", held-out {look.valid_loss:.3f}"
        yield "loss", f"{line['loss']:.3f} ({by_task}){held_out}"
        waits = f"{line['data_wait_fraction']:.0%} waiting for data"
        yield "speed", f"{_number(line['examples_per_second'])} examples/s, {waits}{_left(look.seconds_left)}"
    else:
        yield "step", f"none of {look.steps:,} yet" if look.steps else "none: it was imported"
    if look.skipped:
        yield "skipped", counted(look.skipped, "step")
    if look.alarms:
        yield "alarms", "\n".join(look.alarms)
    if look.answers or look.answer_holders:
        yield "answers", f"{look.answers:,} stored" + _answering(look, now)
        yield "answering", _named(look.answer_holders)
    if look.failed:
        yield (
            "failed",
            f"{counted(look.failed, 'unit')} of questions given up by the last job; its lines in answers/jobs/ say why",
        )


def _named(holders: Sequence[Holder]) -> str:
    return "; ".join(map(str, holders)) or "none is at work"


def _answering(look: RunLook, now: float) -> str:
    if not look.newest_answers:
        return ""
    over = f"answers/s over the last {_duration(look.recent_seconds)}"
    speed = f"{_number(look.answers_per_second)} {over}, " if look.answers_per_second else ""
    return f", {speed}the last {_ago(look.newest_answers, now)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _share(part: int, whole: int) -> str:
    return f" ({part / whole:.1%})" if whole else ""


def _ago(then: float | None, now: float) -> str:
    return "" if then is None else f"{_duration(max(now - then, 0.0))} ago"


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f", about {_duration(seconds)} left"


def _duration(seconds: float) -> str:
    """Return a time in its two largest units, of which the smaller may be left out."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    first = next((place for place, (count, _) in enumerate(parts) if count), len(parts) - 1)
    told = [f"{count} {name}" for count, name in parts[first : first + 2] if count]
    return " ".join(told) or "0 s"
