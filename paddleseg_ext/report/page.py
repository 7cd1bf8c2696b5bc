"""The page: everything in one HTML file that needs no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

COLOURS = {
    "teacher": ("#5b74e8", "#9561d8", "#3f9fd8"),
    "student alone": ("#e38b29", "#c4a000", "#bd6b45", "#d9a066"),
    "trained alone": ("#8a8f98", "#b0857f", "#7f9a86"),
    "distilled": ("#0fa58a", "#d6487e", "#4c9a2a", "#c0504d", "#2b8cbe"),
}
"""By what a model is; seen on white and on black alike."""


@dataclass(frozen=True)
class Figure:
    """One of the figures at the top: a short text in large letters over what it is."""

    value: str
    meaning: str


@dataclass(frozen=True)
class Row:
    """One line of the table of models. Cells are text, ready to be read."""

    name: str
    role: str
    colour: str
    miou: str
    best_iteration: str
    parameters: str
    multiply_adds: str
    median: str
    p95: str
    trained: str


@dataclass(frozen=True)
class Chart:
    """A drawing of ours with its title."""

    title: str
    svg: str


@dataclass(frozen=True)
class ClassRow:
    """A class's IoU, %, by model, and what distillation changed, in points; None where it cannot be said."""

    name: str
    colour: str
    iou: Sequence[float | None]
    change: float | None


@dataclass(frozen=True)
class Cell:
    """Pictures one below the other, each with what it is, under a heading."""

    heading: str
    pictures: Sequence[tuple[str, str]]  # (what it is, its data: URI)


@dataclass(frozen=True)
class Example:
    """Cells side by side."""

    name: str
    note: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Origin:
    """What a run was made of, as pairs of a word and a text."""

    name: str
    facts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Page:
    """What the page shows, from top to bottom. Lists that are empty leave their section out."""

    lead: str
    figures: Sequence[Figure]
    rows: Sequence[Row]
    notes: Sequence[str]
    charts: Sequence[Chart]
    class_heads: Sequence[str]
    class_rows: Sequence[ClassRow]
    helped: Sequence[Example]
    hurt: Sequence[Example]
    others: Sequence[Example]
    features: Sequence[Example]
    origins: Sequence[Origin]


def render(page: Page) -> str:
    """The page as HTML. Every text is escaped; drawings are ours."""
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    changes = [abs(row.change) for row in page.class_rows if row.change is not None]
    return template.render(
        page=page, widest=max(changes, default=None), style=(folder / "page.css").read_text(encoding="utf-8")
    )


def colours_of(roles: Mapping[str, str]) -> Mapping[str, str]:
    """A colour for each name by its role, the same everywhere on the page."""
    seen: dict[str, int] = {}
    found = {}
    for name, role in roles.items():
        shades = COLOURS[role]
        found[name] = shades[seen.get(role, 0) % len(shades)]
        seen[role] = seen.get(role, 0) + 1
    return found
