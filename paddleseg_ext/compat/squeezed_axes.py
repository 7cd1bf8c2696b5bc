"""PaddleSeg 2.8's SECrossEntropyLoss squeezes axis 2 and then axis 3 of [N, C, 1, 1], which by then has no axis 3.

Affected: the semantic encoding loss of ENCNet and FastFCN where it gets a 4-D tensor. It gets [N, C].
"""

from collections.abc import Callable
from typing import Any

from paddle import Tensor

from paddleseg_ext.compat.patch import wrap


def apply() -> None:
    wrap("paddleseg.models.losses.semantic_encode_cross_entropy_loss:SECrossEntropyLoss.forward", _flat)


def _flat(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, logit: Tensor, label: Tensor) -> Tensor:
        return original(self, logit.flatten(1), label)

    return forward
