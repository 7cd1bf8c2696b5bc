"""PaddleSeg 2.8's transformers compute their drop rates with paddle.linspace, whose numbers a static program does not know.

Affected: MixVisionTransformer (SegFormer), TopTransformer, HRFormer and the StrideFormer backbones, built after
paddle.enable_static().
"""

from typing import Any

import numpy as np

from paddleseg_ext.compat.patch import overlay


class _Number(float):
    """A number that can be asked for itself as an element of a tensor can."""

    def numpy(self) -> float:
        return float(self)

    item = numpy


def apply() -> None:
    for module in ("mix_transformer", "top_transformer", "hrformer", "strideformer"):
        overlay(f"paddleseg.models.backbones.{module}", "paddle", linspace=_numbers)


def _numbers(start: float, stop: float, num: Any) -> list[_Number]:
    return [_Number(x) for x in np.linspace(start, stop, int(num), dtype="float32")]
