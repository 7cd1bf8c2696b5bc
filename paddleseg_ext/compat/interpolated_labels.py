"""PaddleSeg 2.8's ScalePadding resizes labels by cubic interpolation, which invents classes along every edge.

Affected: ScalePadding. The label is padded as the image is and resized by the nearest pixel.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from paddleseg_ext.compat.patch import wrap


def apply() -> None:
    wrap("paddleseg.transforms.transforms:ScalePadding.__call__", _nearest_label)


def _nearest_label(original: Callable[..., Any]) -> Callable[..., Any]:
    def __call__(self: Any, data: dict[str, Any]) -> dict[str, Any]:
        import cv2

        fields = data.get("gt_fields", [])
        data = original(self, {**data, "gt_fields": []})
        data["gt_fields"] = fields
        for key in fields:
            padded = _padded_to_square(data[key], self.label_padding_value)
            data[key] = cv2.resize(padded, tuple(self.target_size), interpolation=cv2.INTER_NEAREST)
        return data

    return __call__


def _padded_to_square(label: np.ndarray, value: int) -> np.ndarray:
    height, width = label.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.full((side, side), value, label.dtype)
    square[top : top + height, left : left + width] = label
    return square
