"""Distillation losses, registered with PaddleSeg under their own names. Our KLLoss takes the place of PaddleSeg's."""

from paddleseg.cvlibs import manager

from paddleseg_ext.losses.base import Loss
from paddleseg_ext.losses.feature import SegChannelwiseLoss
from paddleseg_ext.losses.logit import KLLoss

# Not by add_component: it warns of KLLoss, which is meant to be replaced.
manager.LOSSES.components_dict.update({cls.__name__: cls for cls in (KLLoss, SegChannelwiseLoss)})

__all__ = ["KLLoss", "Loss", "SegChannelwiseLoss"]
