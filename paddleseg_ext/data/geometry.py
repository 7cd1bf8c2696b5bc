"""Where the pixels of a transformed image come from, followed through PaddleSeg's transforms.

What they do along each axis is to scale, mirror, shift and cut, and to add padding; four numbers describe any sequence of that.
"""

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from paddleseg_ext.errors import ConfigError

KEY = "geometry"  # of a sample: NumPy float64 [2, 5], the fields of `Axis` for y and x

_STAY = ("Normalize", "RandomDistort", "RandomBlur", "RandomNoise", "GenerateInstanceTargets")
_RESIZE = ("Resize", "ResizeByLong", "ResizeByShort", "LimitLong", "ResizeRangeScaling", "ResizeStepScaling")
_MOVE = (
    *("RandomHorizontalFlip", "RandomVerticalFlip", "RandomPaddingCrop", "RandomCenterCrop", "RandomScaleAspect"),
    *("Padding", "PaddingByAspectRatio"),
)
_FIRST = 1 << 16  # number of the first row or column in a probe; above whatever labels are padded with

Data = dict[str, Any]
Step = Callable[[Any, Data], tuple["Axis", "Axis"]]


@dataclass(frozen=True)
class Axis:
    """One axis of a transformed image of `size` pixels.

    Positions are lengths from the image's edge, so that pixel i reaches from i to i + 1 and has its centre at i + 1/2. What is
    at u, low <= u <= high, was at scale * u + shift before; the rest is padding. A mirrored axis has a negative scale.
    """

    scale: float
    shift: float
    low: float
    high: float
    size: float

    def then(self, step: "Axis") -> "Axis":
        """This one followed by another, as one."""
        ends = sorted((end - step.shift) / step.scale for end in (self.low, self.high))
        return Axis(
            self.scale * step.scale,
            self.scale * step.shift + self.shift,
            max(step.low, ends[0]),
            min(step.high, ends[1]),
            step.size,
        )

    def before(self, positions: np.ndarray) -> np.ndarray:
        """Where they were; in padding, where the nearest pixel of the image was."""
        return self.scale * positions.clip(self.low, self.high) + self.shift

    def after(self, positions: np.ndarray) -> np.ndarray:
        """The inverse of `before`; what was cut off is put at the edge."""
        return ((positions - self.shift) / self.scale).clip(self.low, self.high)


def untouched(size: int) -> Axis:
    """The axis of an image as it was read."""
    return Axis(1.0, 0.0, 0.0, float(size), float(size))


def follow(dataset: Any, where: str) -> None:
    """Let a data set add to each sample, under `KEY`, how its image was transformed. Images and random draws stay the same.

    Args:
        dataset: of PaddleSeg, or such a one with unlabelled images; its list of transforms is changed.
        where: the list's place in the configuration, for messages.

    Raises:
        ConfigError: a transform that cannot be followed.
    """
    compose = getattr(getattr(dataset, "dataset", dataset), "transforms", None)
    listed = getattr(compose, "transforms", None)
    if not isinstance(listed, list):
        raise ConfigError(f"{where}: a data set whose transforms are a list is expected")
    if not (listed and isinstance(listed[0], _Start)):
        listed[:] = [_Start(), *(_followed(op, f"{where}[{index}]") for index, op in enumerate(listed))]


def _followed(op: Any, where: str) -> Any:
    name = type(op).__name__
    if getattr(op, "keeps_pixels", False):
        return op
    if type(op).__module__ == "paddleseg.transforms.transforms":
        if name in _STAY:
            return op
        if name in _RESIZE:
            return _Followed(op, _resized)
        if name in _MOVE:
            return _Followed(op, _moved)
    raise ConfigError(
        f"{where}: {name} cannot be followed, so stored outputs of a teacher cannot be brought to where it moves pixels; "
        "leave it out, or train with the teacher itself (one of your own that moves no pixel says so by an attribute "
        "keeps_pixels = True)"
    )


class _Start:
    def __call__(self, data: Data) -> Data:
        data[KEY] = np.array([astuple(untouched(size)) for size in data["img"].shape[:2]])
        return data


class _Followed:
    """A transform and, after it, the sample's geometry brought up to date."""

    def __init__(self, op: Any, step: Step) -> None:
        self.op, self.step = op, step

    def __call__(self, data: Data) -> Data:
        earlier = data[KEY]
        steps = self.step(self.op, data)
        data[KEY] = np.array([astuple(Axis(*axis).then(step)) for axis, step in zip(earlier, steps, strict=True)])
        return data


def _resized(op: Any, data: Data) -> tuple[Axis, Axis]:
    """A resize is known by the sizes before and after it."""
    old = data["img"].shape[:2]
    op(data)
    y, x = (
        Axis(before / after, 0.0, 0.0, after, after) for before, after in zip(old, data["img"].shape[:2], strict=True)
    )
    return y, x


def _moved(op: Any, data: Data) -> tuple[Axis, Axis]:
    """Flips, crops and padding treat a probe of numbered rows and columns as they treat the label."""
    height, width = data["img"].shape[:2]
    rows, columns = (np.arange(_FIRST, _FIRST + size, dtype="float32") for size in (height, width))
    data["_rows"] = np.broadcast_to(rows[:, None], (height, width))
    data["_columns"] = np.broadcast_to(columns, (height, width))
    fields = data.get("gt_fields", [])
    data["gt_fields"] = [*fields, "_rows", "_columns"]
    op(data)
    data["gt_fields"] = fields
    return _line(data.pop("_rows")[:, 0]), _line(data.pop("_columns")[0])


def _line(probe: np.ndarray) -> Axis:
    """The step that a probe's first line tells. An enlarged window begins and ends with its own ends."""
    numbers = probe[probe >= _FIRST] - _FIRST
    kept = len(numbers)
    if kept == 0 or not (probe[:kept] >= _FIRST).all():
        raise RuntimeError("padding before the image; PaddleSeg's transforms add it behind alone")
    first, last = float(numbers[0]), float(numbers[-1])
    window = abs(last - first) + 1
    if first > last:
        return Axis(-window / kept, first + 1, 0.0, kept, len(probe))
    return Axis(window / kept, first, 0.0, kept, len(probe))
