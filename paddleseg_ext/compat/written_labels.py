"""PaddleSeg 2.8's DiceLoss writes class 0 over the ignored pixels of the labels it is given.

Affected: every loss that sees the same labels after it, as in a MixedLoss. It gets a copy.
"""

from collections.abc import Callable
from typing import Any

from paddle import Tensor

from paddleseg_ext.compat.patch import wrap


def apply() -> None:
    wrap("paddleseg.models.losses.dice_loss:DiceLoss.forward", _on_a_copy)


def _on_a_copy(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, logits: Tensor, labels: Tensor) -> Tensor:
        return original(self, logits, labels.clone())

    return forward
