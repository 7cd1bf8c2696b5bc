"""PaddleSeg 2.8's MaskFormer returns in eval mode the logits of the last image of the batch alone.

Affected: evaluation and distillation with more than one image a batch. All images come back, from one pass.
"""

from collections.abc import Callable
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from paddleseg_ext.compat.patch import wrap


def apply() -> None:
    wrap("paddleseg.models.maskformer:MaskFormer.forward", _every_image)


def _every_image(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, x: Tensor) -> list[Any]:
        if self.training:
            return original(self, x)
        outputs = self.seghead(self.backbone(x))
        masks = F.interpolate(outputs["pred_masks"], size=x.shape[-2:], mode="bilinear", align_corners=False)
        classes = F.softmax(outputs["pred_logits"], axis=-1)[..., :-1]  # the last one is "no object"
        return [paddle.einsum("nqc,nqhw->nchw", classes, F.sigmoid(masks))]

    return forward
