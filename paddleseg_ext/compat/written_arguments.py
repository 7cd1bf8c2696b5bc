"""PaddleSeg 2.8 writes to what it is given: DiceLoss to the labels, KNet to its configuration.

Affected: every loss that sees the labels after a DiceLoss, as in a MixedLoss, for it makes ignored pixels class 0; and
the second KNet from one configuration, for it removes `head_layer`. Both get a copy.
"""

from collections.abc import Callable
from typing import Any

from paddle import Tensor

from paddleseg_ext.compat.patch import wrap


def apply() -> None:
    wrap("paddleseg.models.losses.dice_loss:DiceLoss.forward", _labels_copied)
    wrap("paddleseg.models.knet:build_kernel_generate_head", _configuration_copied)


def _labels_copied(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, logits: Tensor, labels: Tensor) -> Tensor:
        return original(self, logits, labels.clone())

    return forward


def _configuration_copied(original: Callable[..., Any]) -> Callable[..., Any]:
    def build_kernel_generate_head(kwargs: dict[str, Any]) -> Any:
        return original(dict(kwargs))

    return build_kernel_generate_head
