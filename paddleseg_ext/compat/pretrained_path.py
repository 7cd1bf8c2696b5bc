"""PaddleSeg 2.8's VisionTransformer and CAE load a pretrained file to resize its position embedding, even without one.

Affected: SegmentationTransformer (SETR), LinearSegmenter, MaskSegmenter and UPerNetCAE: they could not be built
with `pretrained: null`, in any version of Paddle.
"""

from collections.abc import Callable
from typing import Any

from paddleseg_ext.compat.patch import wrap


def apply() -> None:
    for backbone in ("vision_transformer:VisionTransformer", "cae:CAE"):
        wrap(f"paddleseg.models.backbones.{backbone}.init_weight", _only_if_given)


def _only_if_given(original: Callable[..., Any]) -> Callable[..., Any]:
    def init_weight(self: Any) -> None:
        if self.pretrained is not None:
            original(self)

    return init_weight
