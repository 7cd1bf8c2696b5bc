"""Three of PaddleSeg 2.8's models take `pretrained` and never load it.

Affected: BiseNetV1, CCNet and ESPNetV1; as teachers they taught with random weights, without a word.
"""

from collections.abc import Callable
from typing import Any

from paddleseg_ext.compat.patch import unmended, wrap


def apply() -> None:
    for model in ("bisenetv1:BiseNetV1", "ccnet:CCNet", "espnetv1:ESPNetV1"):
        wrap(f"paddleseg.models.{model}.__init__", _then_load)


def _then_load(original: Callable[..., Any]) -> Callable[..., Any]:
    if "init_weight" in unmended(original).__code__.co_names:
        return original

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.init_weight()

    return __init__
