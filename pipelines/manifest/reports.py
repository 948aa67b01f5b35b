"""What each `prepare` added and left out: printed as it ends, kept beside the tables, and shown by `manifest info`."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

from encoders.audio import CLIP_SECONDS
from pipelines import storage
from pipelines.errors import UserError
from pipelines.interface.words import counted


@dataclass(frozen=True)
class PrepareReport:
    """What one `prepare` added to a manifest, and what it left out by reason."""

    clips: int
    examples: int
    duplicates: int
    unreadable: int
    hours: float
    skipped: Mapping[str, int]
    cut: int = 0
    """Clips longer than what is heard of one."""
    unheard_hours: float = 0.0
    max_clip_seconds: float = float(CLIP_SECONDS)
    """How much of one is heard at most; of several reports, the least."""
    respelt: Mapping[str, int] = field(default_factory=dict)
    """Emotions written in one spelling, such as `Happiness → happy`, and how many."""
    formats: Mapping[str, int] = field(default_factory=dict)
    """Channels and rates of some recordings, such as `1 channel at 16,000 Hz`, and of how many."""

    def lines(self) -> Iterator[str]:
        """Yield a line for each thing besides clips and examples that there is to say."""
        if self.cut:
            longer = f"{counted(self.cut, 'clip')} longer than {self.max_clip_seconds:g} s"
            yield f"{longer}: {self.unheard_hours:,.3f} h are not heard"
        if self.duplicates:
            yield f"{counted(self.duplicates, 'repeated example')} left out"
        if self.unreadable:
            yield f"{counted(self.unreadable, 'clip')} whose header cannot be read"
        for reason, count in sorted(self.skipped.items()):
            yield f"skipped {count:,}: {reason}"
        if self.respelt:
            told = ", ".join(f"{change} ({count:,})" for change, count in sorted(self.respelt.items()))
            yield f"emotions in one spelling: {told}"
        if self.formats:
            parts = [f"{name} ({count:,})" for name, count in sorted(self.formats.items(), key=lambda item: -item[1])]
            yield f"of {sum(self.formats.values()):,} recordings at even distances: {', '.join(parts)}"


def report_uri(manifest: str, name: str) -> str:
    """Return where the report of a `prepare` is kept, beside its config `prepare-<name>.yaml`."""
    return storage.join(manifest, f"prepare-{name}.json")


def write_report(manifest: str, name: str, report: PrepareReport) -> None:
    storage.write_bytes(report_uri(manifest, name), json.dumps(asdict(report), indent=2).encode())


def read_reports(manifest: str) -> tuple[list[PrepareReport], int]:
    """Return the reports of a manifest's prepares, and how many prepares left none, made before 2026-11-28.

    Raises:
        UserError: If one is damaged, naming it.
    """
    names = [name.removesuffix(".yaml") for name in storage.list_names(manifest, ".yaml")]
    there = {*storage.list_names(manifest, ".json")}
    reports = [_read(storage.join(manifest, f"{name}.json")) for name in names if f"{name}.json" in there]
    return reports, len(names) - len(reports)


def _read(uri: str) -> PrepareReport:
    content = storage.read_json(uri)
    known = content if isinstance(content, dict) else {}
    try:
        return PrepareReport(**{one.name: known[one.name] for one in fields(PrepareReport) if one.name in known})
    except TypeError as error:
        raise UserError(f"{uri}: damaged, not the report of a prepare ({error})") from None


def sum_of(reports: Sequence[PrepareReport]) -> PrepareReport:
    """Return one report of several."""
    return PrepareReport(
        clips=sum(report.clips for report in reports),
        examples=sum(report.examples for report in reports),
        duplicates=sum(report.duplicates for report in reports),
        unreadable=sum(report.unreadable for report in reports),
        hours=sum(report.hours for report in reports),
        skipped=_added(report.skipped for report in reports),
        cut=sum(report.cut for report in reports),
        unheard_hours=sum(report.unheard_hours for report in reports),
        max_clip_seconds=min((report.max_clip_seconds for report in reports), default=float(CLIP_SECONDS)),
        respelt=_added(report.respelt for report in reports),
        formats=_added(report.formats for report in reports),
    )


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total = Counter[str]()
    for count in counts:
        total.update(count)
    return dict(total)
