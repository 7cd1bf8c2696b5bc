"""PaddleSeg 2.8's PixelContrastCrossEntropyLoss divides by zero where no image has enough pixels of any class.

Affected: that loss, of HRNetW48Contrast, with small crops or mostly ignored labels: a class takes part with more than
`max_views` pixels at the size of the embedding. Where none does there is nothing to contrast, and the loss is 0.
"""

from collections.abc import Callable
from typing import Any

from paddle import Tensor

from paddleseg_ext.compat.patch import wrap

_LOSS = "paddleseg.models.losses.pixel_contrast_cross_entropy_loss:PixelContrastCrossEntropyLoss"


def apply() -> None:
    wrap(f"{_LOSS}.contrast_criterion", _zero_without_anchors)


def _zero_without_anchors(original: Callable[..., Any]) -> Callable[..., Any]:
    def contrast_criterion(self: Any, feats: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        try:
            return original(self, feats, *args, **kwargs)
        except ZeroDivisionError:
            return 0.0 * feats.sum()

    return contrast_criterion
