"""HTML pages of numbers, tables and pictures: nothing is loaded from elsewhere, and a report is a single file."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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
    links: Sequence[tuple[str, str]] = ()
    """(text, address): of what lies beside the page."""


def write_report(
    uri: str, *, title: str, lead: str, tiles: Sequence[Tile], sections: Sequence[Section], footer: str
) -> None:
    """Write a report, a page without a script."""
    write_page(uri, "report.html", title=title, lead=lead, tiles=tiles, sections=sections, footer=footer)


def write_page(uri: str, template: str, *, package: str = "pipelines.interface", **values: Any) -> None:
    """Write a page from a template in a package's folder `templates`; all texts are escaped.

    A template of another package may extend `report.html`, and takes its values too.
    """
    packages = dict.fromkeys((package, "pipelines.interface"))
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in packages]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    storage.write_bytes(uri, environment.get_template(template).render(**values).encode())
