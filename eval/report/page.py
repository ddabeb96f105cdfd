"""One self-contained web page of results: no file beside it, no network, videos inside."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eval.report.drawing import format_number
from eval.report.items import Comparison, Gallery, Section
from eval.report.views import view

TEMPLATES = Path(__file__).with_name("templates")


def render_page(
    title: str,
    sections: Sequence[Section],
    *,
    provenance: Mapping[str, str],
    summary: Sequence[str] = (),
    opening: Gallery | None = None,
    facts: Mapping[str, tuple[str, str]] | None = None,
) -> str:
    """The page's HTML; videos, style and script are inside, and its policy forbids any request.

    Equal content gives equal text.

    Args:
        title: of the page.
        sections: below the figures.
        provenance: how the page came to be: command, versions, date, seed, hashes.
        summary: paragraphs under the title: what was done, what came out, what it does not show.
        opening: pictures under the first paragraph, before anything else.
        facts: key figures, shown as cards: what was measured to the figure and a short note.

    Raises:
        ValueError: no title, or nothing to show.
    """
    if not title.strip():
        raise ValueError("the page's title is empty.")
    if not sections and opening is None:
        raise ValueError(f"page {title!r}: no sections, nothing to show.")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_number
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    taken = {"content", "how-this-page-was-made"}  # by the template itself

    def anchor(title: str) -> str:
        """A readable, unique fragment name."""
        stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "part"
        names = (f"{stem}-{number}" if number > 1 else stem for number in count(1))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        return name

    return environment.get_template("report.html").render(
        title=title,
        summary=summary,
        facts=facts or {},
        opening=opening and {**view(opening), "anchor": anchor("pictures")},
        sections=[
            {
                "title": section.title,
                "anchor": anchor(section.title),
                "intro": section.intro,
                "scores": _shared_scores(section),
                "items": [{**view(item), "anchor": anchor(item.title)} for item in section.items],
            }
            for section in sections
        ],
        provenance=provenance,
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


def _shared_scores(section: Section) -> list[str]:
    """Metrics that readers can choose the section's scenes by: those that several have."""
    scored = [item.scores for item in section.items if isinstance(item, Comparison) and item.scores]
    return [name for name in scored[0] if all(name in s for s in scored)] if scored[1:] else []
