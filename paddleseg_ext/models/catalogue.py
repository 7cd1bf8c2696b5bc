"""Every model that PaddleSeg 2.8 registers: the smallest sensible way to build it, and the losses its outputs want.

For commands and tests that go through all models, and a place to look up which arguments one of them needs.
"""

from dataclasses import dataclass, field
from typing import Any

_R18 = {"type": "ResNet18_vd", "output_stride": 8}
_R18_PLAIN = {"type": "ResNet18_vd"}
_R50 = {"type": "ResNet50_vd", "output_stride": 8}
_HRNET = {"type": "HRNet_W18_Small_V1"}
_STDC = {"type": "STDC1"}
_VIT = {"type": "VisionTransformer", "img_size": 64, "embed_dim": 96, "depth": 4, "num_heads": 3}
_R18_PLANES = [64, 128, 256, 512]


@dataclass(frozen=True)
class Entry:
    """How to build one model.

    Attributes:
        params: arguments of the model but `type` and `num_classes`, as the `model` section of a YAML file has them.
        size: height and width of the smallest square image that it trains on.
        losses: `loss.types` for its outputs in training, in their order; a callable of the number of classes where a
            loss needs it. Empty: CrossEntropyLoss for every output.
    """

    params: dict[str, Any] = field(default_factory=dict)
    size: int = 64
    losses: tuple[str, ...] = ()
