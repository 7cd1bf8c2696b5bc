"""PaddleSeg 2.8's PixelContrastCrossEntropyLoss interpolates integer labels, which Paddle has no CPU kernel for.

Affected: that loss (of HRNetW48Contrast) wherever the embedding is smaller than the labels, that is always. It also
divided by zero where no image has a class of more than `max_views` pixels: there is nothing to contrast then, loss 0.
"""

from collections.abc import Callable
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from paddleseg_ext.compat.patch import overlay, wrap

_MODULE = "paddleseg.models.losses.pixel_contrast_cross_entropy_loss"


def apply() -> None:
    overlay(_MODULE, "F", interpolate=_interpolate)
    wrap(f"{_MODULE}:PixelContrastCrossEntropyLoss.contrast_criterion", _zero_without_anchors)


def _interpolate(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if paddle.is_floating_point(x):
        return F.interpolate(x, *args, **kwargs)
    return F.interpolate(x.astype("float32"), *args, **kwargs).astype(x.dtype)


def _zero_without_anchors(original: Callable[..., Any]) -> Callable[..., Any]:
    def contrast_criterion(self: Any, feats: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        try:
            return original(self, feats, *args, **kwargs)
        except ZeroDivisionError:
            return 0.0 * feats.sum()

    return contrast_criterion
