"""The page: everything in one HTML file that needs no network."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import jinja2
import numpy as np

from paddleseg_ext.engine.pictures import palette

_WIDTH = 320  # pixels of a picture


@dataclass(frozen=True)
class Picture:
    """What is seen, and a data: URI of it."""

    title: str
    uri: str


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
    seconds: str


@dataclass(frozen=True)
class ClassRow:
    """A class's IoU, %, by model, and what distillation changed, in points; None where it cannot be said."""

    number: int
    iou: Sequence[float | None]
    change: float | None


@dataclass(frozen=True)
class Example:
    """An image as input, label and predictions, with what is said of it."""

    name: str
    note: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Page:
    """What the page shows, from top to bottom."""

    title: str
    lead: str
    rows: Sequence[Row]
    miou: str
    losses: Sequence[str]
    class_heads: Sequence[str]
    class_rows: Sequence[ClassRow]
    helped: Sequence[Example]
    hurt: Sequence[Example]
    others: Sequence[Example]
    features: Sequence[Example] = field(default_factory=tuple)
    notes: Sequence[str] = field(default_factory=tuple)


def render(page: Page) -> str:
    """The page as HTML. Every text is escaped; drawings are ours."""
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    widest = max([abs(row.change) for row in page.class_rows if row.change is not None] or [1.0]) or 1.0
    return environment.from_string(template).render(page=page, widest=widest)


def photo(bgr: np.ndarray, title: str) -> Picture:
    """An image as it is on the disk."""
    return Picture(title, _uri(".jpg", _scaled(bgr, cv2.INTER_AREA), [cv2.IMWRITE_JPEG_QUALITY, 82]))


def classes(values: np.ndarray, title: str) -> Picture:
    """A map of classes [H, W] in PaddleSeg's colours."""
    colours = palette()[values.astype(np.uint8)][..., ::-1]
    return Picture(title, _uri(".png", _scaled(colours, cv2.INTER_NEAREST)))


def errors(given: np.ndarray, label: np.ndarray, ignore_index: int, title: str) -> Picture:
    """Right in dark grey, wrong in red, ignored in light grey."""
    drawn = np.full([*label.shape, 3], (70, 64, 60), np.uint8)
    drawn[given != label] = (48, 48, 232)
    drawn[label == ignore_index] = (170, 170, 170)
    return Picture(title, _uri(".png", _scaled(drawn, cv2.INTER_NEAREST)))


def heat(values: np.ndarray, title: str) -> Picture:
    """Values [h, w] from 0 (dark) to 1 (bright)."""
    drawn = cv2.applyColorMap((255 * np.clip(values, 0, 1)).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    return Picture(title, _uri(".png", _scaled(drawn, cv2.INTER_NEAREST)))


def _scaled(picture: np.ndarray, interpolation: int) -> np.ndarray:
    height = max(round(picture.shape[0] * _WIDTH / picture.shape[1]), 1)
    return cv2.resize(np.ascontiguousarray(picture), (_WIDTH, height), interpolation=interpolation)


def _uri(suffix: str, picture: np.ndarray, options: Sequence[int] = ()) -> str:
    data = base64.b64encode(cv2.imencode(suffix, picture, list(options))[1].tobytes()).decode()
    return f"data:image/{'jpeg' if suffix == '.jpg' else 'png'};base64,{data}"


def colours_of(names: Sequence[str], colours: Sequence[str]) -> Mapping[str, str]:
    """A colour for each name, the same in table and curves."""
    return {name: colours[position % len(colours)] for position, name in enumerate(names)}
