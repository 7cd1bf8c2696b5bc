"""PaddleSeg 2.8's ESPNetV1 has a layer for as many channels as Cityscapes has classes, and gives it one for each class.

Affected: ESPNetV1 with another number of classes than 19, which failed at its first forward.
"""

from collections.abc import Callable
from typing import Any

from paddleseg_ext.compat.patch import wrap


def apply() -> None:
    wrap("paddleseg.models.espnetv1:ESPNetV1.__init__", _channels_of_classes)


def _channels_of_classes(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, num_classes: int, *args: Any, **kwargs: Any) -> None:
        from paddleseg.models import layers

        original(self, num_classes, *args, **kwargs)
        in_channels = self.out_proj.state_dict()["_conv.weight"].shape[1]
        if in_channels != 2 * num_classes:
            self.out_proj = layers.ConvBNPReLU(2 * num_classes, num_classes, 3, padding="same", stride=1)

    return __init__
