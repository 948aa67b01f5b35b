"""A self-contained HTML page of numbers, tables and pictures: no script, nothing loaded from elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import jinja2

from pipelines import storage
from pipelines.interface.figures import (
    Picture,
)


@dataclass(frozen=True)
class Tile:
    """One number and what it counts."""

    name: str
    value: str


@dataclass(frozen=True)
class Section:
    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    pictures: Sequence[Picture] = field(default_factory=tuple)


def write_report(
    uri: str, *, title: str, lead: str, tiles: Sequence[Tile], sections: Sequence[Section], footer: str
) -> None:
    """Write the page; all texts are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipelines.interface"), autoescape=True, trim_blocks=True
    )
    page = environment.get_template("report.html").render(
        title=title, lead=lead, tiles=tiles, sections=sections, footer=footer
    )
    storage.write_bytes(uri, page.encode())
