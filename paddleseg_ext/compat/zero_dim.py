"""Since Paddle 2.5 a scalar is a 0-D tensor and not one of shape [1]; PaddleSeg 2.8 concatenates scalars.

Affected: metrics.calculate_area and with it core.evaluate, the point head of PointRend in eval mode (which also mixes
int32 with int64), and MaskFormerLoss, which is of shape [1] and has no gradient where every label is ignored.
core.train, which takes element 0 of every loss, stays as it is: this project has its own trainer.
"""

from collections.abc import Callable, Sequence
from typing import Any

import paddle
from paddle import Tensor

from paddleseg_ext.compat.patch import overlay, wrap


def apply() -> None:
    overlay("paddleseg.utils.metrics", "paddle", concat=concat)
    overlay("paddleseg.models.pointrend", "paddle", concat=concat)
    wrap("paddleseg.models.losses.maskformer_loss:MaskFormerLoss.forward", _scalar)


def concat(x: Sequence[Tensor], axis: int = 0) -> Tensor:
    """`paddle.concat` that takes scalars as [1] and, where integer types differ, makes them all int64."""
    tensors = [item.reshape([1]) if item.ndim == 0 else item for item in x]
    if {item.dtype for item in tensors} == {paddle.int32, paddle.int64}:
        tensors = [item.astype("int64") for item in tensors]
    return paddle.concat(tensors, axis)


def _scalar(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, logits: dict[str, Any], targets: dict[str, Tensor]) -> Tensor:
        return original(self, logits, targets).reshape([]) + 0.0 * logits["pred_logits"].sum()

    return forward
