"""One self-contained web page from a `Report`: no file beside it, no network, videos inside."""

import base64
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from common.files import write_text
from eval.report import drawing as figures
from eval.report.items import (
    Cell,
    Column,
    Comparison,
    Curve,
    Fact,
    Gallery,
    Item,
    PublishedRow,
    Report,
    Section,
    Table,
)
from eval.report.views import view

__all__ = [
    "Cell",
    "Column",
    "Comparison",
    "Curve",
    "Fact",
    "Gallery",
    "Item",
    "PublishedRow",
    "Report",
    "Section",
    "Table",
    "build_report",
    "render_report",
]

TEMPLATES = Path(__file__).with_name("templates")


def build_report(report: Report, path: str | Path) -> None:
    """Write `report` as one HTML file, whole or not at all; an older file at `path` is replaced.

    Equal reports give equal bytes.

    Raises:
        ValueError: `path` does not end in .html. Content is checked when the items are made.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{path}: a report's name ends in .html.")
    page = render_report(report)
    write_text(path, page)


def render_report(report: Report) -> str:
    """The page's HTML; videos, style and script are inside, and its policy forbids any request."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = figures.format_number
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    anchors = _Anchors()
    return environment.get_template("report.html").render(
        report=report,
        opening=report.opening and {**view(report.opening), "anchor": anchors.name("pictures")},
        sections=[
            {
                "title": section.title,
                "anchor": anchors.name(section.title),
                "intro": section.intro,
                "scores": _shared_scores(section),
                "items": [
                    {**view(item), "anchor": anchors.name(item.title)} for item in section.items
                ],
            }
            for section in report.sections
        ],
        provenance={
            key: figures.MISSING if value is None else str(value)
            for key, value in report.provenance.items()
        },
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


def _shared_scores(section: Section) -> list[str]:
    """Metrics that readers can choose the section's scenes by: those that several have."""
    scored = [item.scores for item in section.items if isinstance(item, Comparison) and item.scores]
    return [name for name in scored[0] if all(name in s for s in scored)] if scored[1:] else []


@dataclass
class _Anchors:
    """Readable, unique fragment names; those of the template itself are taken."""

    taken: set[str] = field(default_factory=lambda: {"content", "how-this-page-was-made"})

    def name(self, title: str) -> str:
        stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "part"
        anchor, number = stem, 2
        while anchor in self.taken:
            anchor, number = f"{stem}-{number}", number + 1
        self.taken.add(anchor)
        return anchor
