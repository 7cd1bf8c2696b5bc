"""Every model that PaddleSeg 2.8 registers: a light way to build it, a small image it trains on, and its losses.

For commands and tests that go through all models, and a place to look up which arguments one of them needs.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

NUM_CLASSES = "<number of classes>"
"""Stands for the number of classes where an argument other than the model's `num_classes` repeats it."""

_R18 = {"type": "ResNet18_vd"}
_R18_OS8 = {"type": "ResNet18_vd", "output_stride": 8}
_R50_OS8 = {"type": "ResNet50_vd", "output_stride": 8}
_R18_CHANNELS = [64, 128, 256, 512]
_HRNET = {"type": "HRNet_W18_Small_V1"}
_STDC = {"type": "STDC1"}
_VIT = {"type": "VisionTransformer", "img_size": 64, "embed_dim": 96, "depth": 4, "num_heads": 3}
_SWIN = {"type": "SwinTransformer", "embed_dim": 32, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}

_CE = {"type": "CrossEntropyLoss"}
_EDGE = {"type": "BCELoss", "edge_label": True}
_DETAIL = {"type": "DetailAggregateLoss"}
_CODES = {"type": "SECrossEntropyLoss"}


@dataclass(frozen=True)
class Entry:
    """How to build and train one model.

    Attributes:
        params: its arguments but `type` and `num_classes`, as in the `model` section of a YAML file.
        size: height and width in pixels of a small image that it is known to train on, with two in a batch.
        losses: `loss.types` for its outputs in training, one each, in their order; None: CrossEntropyLoss for each.
    """

    params: dict[str, Any] = field(default_factory=dict)
    size: int = 64
    losses: tuple[dict[str, Any], ...] | None = None


def model_config(name: str, num_classes: int) -> dict[str, Any]:
    """The `model` section of a YAML file for a registered model, `pretrained` left at null."""
    params = _with_classes(CATALOGUE[name].params, num_classes)
    return {"type": name, "num_classes": num_classes, **params}


def loss_config(name: str, num_classes: int, outputs: int) -> list[dict[str, Any]]:
    """The `loss.types` for a registered model that has so many outputs in training."""
    losses = CATALOGUE[name].losses
    return _with_classes(list(losses) if losses is not None else [_CE] * outputs, num_classes)


def _with_classes(value: Any, num_classes: int) -> Any:
    if isinstance(value, dict):
        return {key: _with_classes(item, num_classes) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_classes(item, num_classes) for item in value]
    return num_classes if value == NUM_CLASSES else copy.copy(value)


def _on(backbone: dict[str, Any], size: int = 64, losses: Any = None, **params: Any) -> Entry:
    return Entry({"backbone": backbone, **params}, size, losses)


CATALOGUE: dict[str, Entry] = {
    "ANN": _on(_R18_OS8),
    "AttentionUNet": Entry(),
    "BiSeNetV2": Entry(),
    "BiseNetV1": _on(_R18),
    "CCNet": _on(_R18_OS8),
    "DANet": _on(_R18_OS8, backbone_indices=[2, 3]),
    "DDRNet_23": Entry({"enable_auxiliary_loss": True}),
    "DMNet": _on(_R18_OS8, mid_channels=64),
    "DNLNet": _on(_R50_OS8),
    "DecoupledSegNet": _on(
        _R18_OS8, losses=(_CE, {"type": "RelaxBoundaryLoss"}, _EDGE, {"type": "OhemEdgeAttentionLoss"})
    ),
    "DeepLabV3": _on(_R18_OS8),
    "DeepLabV3P": _on(_R18_OS8),
    "EMANet": _on(_R50_OS8),
    "ENCNet": _on(_R18_OS8, losses=(_CE, _CE, _CODES), mid_channels=64),
    "ENet": Entry(),
    "ESPNetV1": Entry(),
    "ESPNetV2": Entry(),
    "FCN": _on(_HRNET),
    "FastFCN": _on(_R18, losses=(_CE, _CE, _CODES), mid_channels=64),
    "FastSCNN": Entry(),
    "GCNet": _on(_R18_OS8),
    "GINet": _on(_R50_OS8),
    "GSCNN": _on(_R18_OS8, losses=(_CE, {"type": "EdgeAttentionLoss"}, _EDGE, {"type": "DualTaskLoss"})),
    "GloRe": _on(_R18_OS8),
    "HRNetW48Contrast": _on(
        _HRNET,
        size=128,  # below it no class has the hundred pixels that the contrast needs
        losses=(_CE, {"type": "PixelContrastCrossEntropyLoss"}),
        bb_channels=240,
        drop_prob=0.1,
        proj_dim=64,
    ),
    "HarDNet": Entry(),
    "ISANet": _on(_R50_OS8),
    "KNet": _on(
        _R18,
        backbone_indices=[3],
        num_stages=2,
        kernel_generate_head_params={
            "head_layer": "FCNKernelHead",
            "in_channels": 512,
            "channels": 64,
            "num_classes": NUM_CLASSES,
        },
        kernel_update_head_params={
            "num_classes": NUM_CLASSES,
            "feedforward_channels": 128,
            "in_channels": 64,
            "out_channels": 64,
            "conv_kernel_size": 1,
            "kernel_updator_cfg": {"in_channels": 64, "feat_channels": 64, "out_channels": 64, "input_feat_shape": 3},
        },
    ),
    "LPSNet": Entry({"depths": [1, 3, 3, 10, 10], "channels": [8, 24, 48, 96, 96], "scale_ratios": [1.0, 0.25]}),
    "LRASPP": _on({"type": "MobileNetV3_small_x0_35"}),
    "LinearSegmenter": _on(_VIT),
    "MLATransformer": _on(_SWIN, in_channels=[32, 64, 128, 256], mlahead_channels=32),
    "MaskFormer": _on(
        {"type": "SwinTransformer_tiny_patch4_window7_224_maskformer"},
        losses=({"type": "MaskFormerLoss", "num_classes": NUM_CLASSES},),
    ),
    "MaskSegmenter": _on(_VIT, h_embed_dim=96, h_depth=1, h_num_heads=3),
    "MobileSeg": _on({"type": "MobileNetV2_x0_25"}),
    "MscaleOCRNet": _on(_HRNET),
    "OCRNet": _on(_HRNET, backbone_indices=[0]),
    "PFPNNet": _on(_R18, backbone_indices=[0, 1, 2, 3], channels=128, fpn_inplanes=_R18_CHANNELS),
    "PPHumanSegLite": Entry(),
    "PPLiteSeg": _on(_STDC),
    "PPMobileSeg": _on({"type": "MobileSeg_Tiny", "inj_type": "AAMSx8", "out_feat_chs": [32, 64, 128]}),
    "PSPNet": _on(_R18_OS8),
    "PointRend": _on(
        _R18, losses=(_CE, {"type": "PointCrossEntropyLoss"}), backbone_indices=[0, 1, 2, 3], fpn_inplanes=_R18_CHANNELS
    ),
    "PortraitNet": _on({"type": "MobileNetV2_x1_0"}),
    "RTFormer": Entry(),
    "SFNet": _on(_R18, backbone_indices=[0, 1, 2, 3]),
    "SINet": Entry(),
    "STDCSeg": _on(_STDC, losses=(_CE, _CE, _CE, _DETAIL)),
    "SegFormer": _on({"type": "MixVisionTransformer_B0"}, embedding_dim=64),
    "SegNeXt": _on(
        {"type": "MSCAN_T"},
        decoder_cfg={"channels": 64, "ham_channels": 64, "num_groups": 16, "ham_kwargs": {"MD_R": 16}},
    ),
    "SegNet": Entry(),
    "SegmentationTransformer": _on(_VIT, backbone_indices=[0, 1, 2, 3]),
    "TopFormer": _on({"type": "TopTransformer_Tiny"}),
    "U2Net": Entry(),
    "U2Netp": Entry(),
    "UNet": Entry(),
    "UNet3Plus": Entry(),
    "UNetPlusPlus": Entry(),
    "UPerNet": _on(_R18, backbone_indices=[0, 1, 2, 3], channels=64),
    "UPerNetCAE": _on(
        {"type": "CAE", "img_size": 64, "depth": 4},
        backbone_indices=[0, 1, 2, 3],
        channels=64,
        fpn_channels=64,
        head_channels=768,
        channels_fpn=[768, 768, 768, 768],
    ),
    "UPerNetViTAdapter": _on({"type": "ViTAdapter_Tiny"}, backbone_indices=[0, 1, 2, 3]),
}
