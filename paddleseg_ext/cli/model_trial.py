"""One of PaddleSeg's models put through its paces, for the `models` command."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from paddleseg_ext import registry
from paddleseg_ext.config import Component
from paddleseg_ext.losses.task import TaskLoss, WeightedLoss
from paddleseg_ext.models.build import build_model
from paddleseg_ext.models.catalogue import CATALOGUE, loss_config, model_config
from paddleseg_ext.types import Batch

_NUM_CLASSES = 5


@dataclass
class Trial:
    """What came of it; fields after a failure keep their defaults."""

    name: str
    backbone: str = ""
    size: int = 0
    parameters: int = 0
    train_outputs: str = ""
    losses: str = ""
    eval_outputs: str = ""
    stride: str = ""
    idle: int = 0
    """Trainable tensors that got no gradient; data-parallel training must be told of them."""
    failure: str = ""


def attempt(name: str) -> Trial:
    """Build a registered model, train it for one step with its losses and let it predict."""
    trial = Trial(name)
    try:
        _run(trial)
    except Exception as error:
        trial.failure = " ".join(str(error).split())[:300] or type(error).__name__
    return trial


def _run(trial: Trial) -> None:
    paddle.seed(0)
    config = model_config(trial.name, _NUM_CLASSES)
    trial.size = CATALOGUE[trial.name].size
    trial.backbone = _described(config["backbone"]) if "backbone" in config else "its own"
    model, _ = build_model(component(config, "model"), _NUM_CLASSES)
    trial.parameters = sum(parameter.size for parameter in model.parameters())
    batch = _batch(trial.size)

    model.train()
    outputs = model(batch.images)
    trial.train_outputs = _kinds(outputs)
    configs = loss_config(trial.name, _NUM_CLASSES, len(outputs))
    trial.losses = ", ".join(dict.fromkeys(item["type"] for item in configs))
    losses = [WeightedLoss(registry.build(component(item, "loss"), "loss"), 1.0) for item in configs]
    values = TaskLoss(losses, model, "loss")(outputs, batch)
    paddle.add_n(list(values.values())).backward()
    _check_finite("loss", values)
    trained = [parameter for parameter in model.parameters() if not parameter.stop_gradient]
    _check_finite("gradient", {p.name: p.grad for p in trained if p.grad is not None})
    trial.idle = sum(parameter.grad is None for parameter in trained)

    model.eval()
    with paddle.no_grad():
        outputs = model(batch.images)
    trial.eval_outputs = _kinds(outputs)
    trial.stride = f"{batch.images.shape[-1] / outputs[0].shape[-1]:g}"


def _batch(size: int) -> Batch:
    """Two noise images; blocks of every class below a strip that is ignored; edges; MaskFormer's instances."""
    generator = np.random.default_rng(0)
    images = generator.normal(size=(2, 3, size, size)).astype("float32")
    blocks = generator.integers(0, _NUM_CLASSES, (2, size // 16, size // 16))
    labels = np.kron(blocks, np.ones((1, 16, 16), dtype="int64")).astype("int64")
    labels[:, :4] = 255
    targets = registry.build(
        Component("GenerateInstanceTargets", {"num_classes": _NUM_CLASSES}, "transform"), "transform"
    )
    instances = [
        targets({"img": image, "label": label})["instances"] for image, label in zip(images, labels, strict=True)
    ]
    extra = {
        "edge": paddle.to_tensor((np.diff(labels, axis=2, append=labels[:, :, -1:]) != 0).astype("int64")),
        "instances": {
            key: paddle.to_tensor(np.stack([item[key] for item in instances])) for key in ("gt_classes", "gt_masks")
        },
    }
    return Batch(paddle.to_tensor(images), paddle.to_tensor(labels), extra=extra)


def component(config: dict[str, Any], where: str) -> Component:
    params = {
        key: component(value, f"{where}.{key}") if isinstance(value, dict) and "type" in value else value
        for key, value in config.items()
        if key != "type"
    }
    return Component(config["type"], params, where)


def _described(backbone: dict[str, Any]) -> str:
    arguments = ", ".join(f"{key} {value}" for key, value in backbone.items() if key != "type")
    return backbone["type"] + (f" ({arguments})" if arguments else "")


def _kinds(outputs: Any) -> str:
    if all(isinstance(output, paddle.Tensor) for output in outputs):
        return str(len(outputs))
    return f"{len(outputs)}: {', '.join(_kind(output) for output in outputs)}"


def _kind(output: Any) -> str:
    if isinstance(output, paddle.Tensor):
        return "tensor"
    if isinstance(output, dict):
        return "{" + ", ".join(output) + "}"
    return f"({', '.join(_kind(item) for item in output)})"


def _check_finite(what: str, tensors: dict[str, paddle.Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(paddle.isfinite(tensor).all()):
            raise FloatingPointError(f"the {what} of {name} is not finite")
