"""Distillation losses, registered with PaddleSeg under their own names. Our KLLoss takes the place of PaddleSeg's."""

from paddleseg.cvlibs import manager

from paddleseg_ext.losses.attention import AttnFDLoss
from paddleseg_ext.losses.base import Loss
from paddleseg_ext.losses.cross_image import CIRKDLoss
from paddleseg_ext.losses.feature import (
    AttentionTransferLoss,
    HintLoss,
    MGDLoss,
    NormalizedFeatureLoss,
    SegChannelwiseLoss,
)
from paddleseg_ext.losses.logit import BPKDLoss, DISTLoss, DKDLoss, DMLLoss, KLLoss, PixelwiseKLLoss
from paddleseg_ext.losses.relation import FSPLoss, IFVDLoss, RKDLoss, SegPairWiseLoss

DISTILLATION: tuple[type[Loss], ...] = (
    *(KLLoss, PixelwiseKLLoss, DISTLoss, DKDLoss, BPKDLoss, DMLLoss),
    *(SegChannelwiseLoss, HintLoss, NormalizedFeatureLoss, MGDLoss, AttentionTransferLoss),
    *(SegPairWiseLoss, IFVDLoss, CIRKDLoss, RKDLoss, FSPLoss, AttnFDLoss),
)

# Not by add_component: it warns of KLLoss, which is meant to be replaced.
manager.LOSSES.components_dict.update({cls.__name__: cls for cls in DISTILLATION})

__all__ = ["DISTILLATION", "Loss"]
