"""PaddleSeg 2.8's RandomPaddingCrop with `category_max_ratio` puts the label in the image's place.

Affected: that option; the image was the cropped label, or not cropped at all where no crop had enough variety. The first
crop that is varied enough is taken for both, or the last one that was tried.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from paddleseg_ext.compat.patch import wrap


def apply() -> None:
    wrap("paddleseg.transforms.transforms:RandomPaddingCrop.__call__", _both_cropped)


def _both_cropped(original: Callable[..., Any]) -> Callable[..., Any]:
    def __call__(self: Any, data: dict[str, Any]) -> dict[str, Any]:
        from paddleseg.transforms import functional

        if self.category_max_ratio >= 1.0 or "label" not in data:
            return original(self, data)
        data = self._padding(data)
        for _ in range(max(self.loop_times, 1)):
            box = self._get_crop_coordinates(data["img"].shape[:2])
            if _largest_share(functional.crop(data["label"], box), self.ignore_index) < self.category_max_ratio:
                break
        for key in ("img", *data.get("gt_fields", [])):
            data[key] = functional.crop(data[key], box)
        return data

    return __call__


def _largest_share(label: np.ndarray, ignore_index: int) -> float:
    """The share of the commonest class among labelled pixels; 1 where there are none."""
    classes, counts = np.unique(label, return_counts=True)
    counts = counts[classes != ignore_index]
    return counts.max() / counts.sum() if len(counts) else 1.0
