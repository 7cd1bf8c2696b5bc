"""Since Paddle 2.5 a scalar is a 0-D tensor and not one of shape [1]; PaddleSeg 2.8 concatenates and indexes scalars.

Affected: metrics.calculate_area and with it core.evaluate, the point head of PointRend in eval mode, and core.train,
which takes element 0 of every loss.
"""

from collections.abc import Callable, Sequence
from typing import Any

import paddle
from paddle import Tensor

from paddleseg_ext.compat.patch import overlay, wrap


def apply() -> None:
    overlay("paddleseg.utils.metrics", "paddle", concat=concat)
    overlay("paddleseg.models.pointrend", "paddle", concat=concat)
    wrap("paddleseg.core.train:loss_computation", _one_element)


def concat(x: Sequence[Tensor], axis: int = 0) -> Tensor:
    """`paddle.concat` that takes scalars as [1] and, where integer types differ, makes them all int64."""
    tensors = [item.reshape([1]) if item.ndim == 0 else item for item in x]
    if {item.dtype for item in tensors} == {paddle.int32, paddle.int64}:
        tensors = [item.astype("int64") for item in tensors]
    return paddle.concat(tensors, axis)


def _one_element(original: Callable[..., Any]) -> Callable[..., Any]:
    def loss_computation(*args: Any, **kwargs: Any) -> list[Tensor]:
        return [loss.reshape([1]) for loss in original(*args, **kwargs)]

    return loss_computation
