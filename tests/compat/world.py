"""The small world of these tests: logits, labels with ignored pixels, and components by name."""

import numpy as np
import paddle
from paddle import Tensor

CLASSES = 4


def component(kind: str, name: str):
    from paddleseg.cvlibs import manager

    return getattr(manager, kind).components_dict[name]


def loss(name: str, **params):
    return component("LOSSES", name)(**params)


def logits(channels: int = CLASSES, size: int = 48, seed: int = 0) -> Tensor:
    values = np.random.default_rng(seed).normal(size=(2, channels, size, size)).astype("float32")
    return paddle.to_tensor(values, stop_gradient=False)


def labels(classes: int = CLASSES, size: int = 48, ignored: int = 255) -> Tensor:
    blocks = np.random.default_rng(1).integers(0, classes, (2, size // 8, size // 8))
    values = np.kron(blocks, np.ones((1, 8, 8), dtype="int64"))
    values[:, :5] = ignored
    return paddle.to_tensor(values)


def instances(label: np.ndarray) -> dict[str, Tensor]:
    """The targets of MaskFormerLoss for a batch, as PaddleSeg's transform and loader make them."""
    transform = component("TRANSFORMS", "GenerateInstanceTargets")(CLASSES)
    image = np.zeros((3, *label.shape[1:]), dtype="float32")
    items = [transform({"img": image, "label": one})["instances"] for one in label]
    return {key: paddle.to_tensor(np.stack([item[key] for item in items])) for key in ("gt_classes", "gt_masks")}
