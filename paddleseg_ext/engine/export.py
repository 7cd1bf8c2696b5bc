"""A trained model as a Paddle inference model, and the proof that it gives the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.base.layer_helper import LayerHelper

OUTPUTS = ("argmax", "softmax", "none")


class Exported(nn.Layer):
    """The model's first output, as class numbers int32 [N, H, W], probabilities or logits [N, C, H, W]."""

    def __init__(self, model: nn.Layer, output_op: str) -> None:
        super().__init__()
        self.model, self.output_op = model, output_op

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)[0]
        if self.output_op == "argmax":
            return _argmax(logits)
        if self.output_op == "softmax":
            return paddle.nn.functional.softmax(logits, axis=1)
        return logits


def _argmax(logits: Tensor) -> Tensor:
    """paddle.argmax over classes, which Paddle 3.3.1 refuses to write into programs of the old IR: there, its operator."""
    if paddle.in_dynamic_mode() or not uses_old_ir():
        return paddle.argmax(logits, axis=1, dtype="int32")
    helper = LayerHelper("arg_max")
    classes = helper.create_variable_for_type_inference("int32")
    attributes = {"axis": 1, "keepdims": False, "flatten": False, "dtype": paddle.base.core.VarDesc.VarType.INT32}
    helper.append_op(type="arg_max", inputs={"X": [logits]}, outputs={"Out": [classes]}, attrs=attributes)
    return classes


@dataclass(frozen=True)
class Agreement:
    """How an exported model compares with the Paddle layer: largest difference, and share of pixels of equal class."""

    difference: float
    same_class: float


def uses_old_ir() -> bool:
    """Whether this process builds programs of Paddle's old IR (FLAGS_enable_pir_api=0 when it was started)."""
    return not paddle.get_flags("FLAGS_enable_pir_api")["FLAGS_enable_pir_api"]


def export(layer: nn.Layer, folder: Path, shape: list[int | None]) -> str:
    """Write `model.pdmodel` (old IR) or `model.json` (PIR) with `model.pdiparams`; returns the name of the first.

    Args:
        layer: in eval mode, such as Exported.
        shape: [N, C, H, W] of its input, None for what may change.
    """
    paddle.jit.save(static_layer(layer, shape), str(folder / "model"))
    return "model.pdmodel" if uses_old_ir() else "model.json"


def static_layer(layer: nn.Layer, shape: list[int | None]) -> Any:
    """A layer to be traced for inputs of this shape."""
    layer.eval()
    specification = [paddle.static.InputSpec(shape, "float32", name="x")]
    return paddle.jit.to_static(layer, input_spec=specification, full_graph=True)


def predictor(model_file: Path, params_file: Path) -> Any:
    """paddle.inference's predictor on the CPU; oneDNN where the model is of the old IR, whose passes it takes."""
    from paddle.inference import Config, create_predictor

    config = Config(str(model_file), str(params_file))
    config.disable_gpu()
    config.disable_glog_info()
    if model_file.suffix == ".json":
        config.disable_mkldnn()
    return create_predictor(config)


def run_predictor(predictor: Any, image: np.ndarray) -> list[np.ndarray]:
    """Its outputs for an image float32 [N, C, H, W]."""
    handle = predictor.get_input_handle(predictor.get_input_names()[0])
    handle.reshape(image.shape)
    handle.copy_from_cpu(np.ascontiguousarray(image))
    predictor.run()
    return [predictor.get_output_handle(name).copy_to_cpu() for name in predictor.get_output_names()]


@paddle.no_grad()
def agreement(layer: nn.Layer, image: np.ndarray, given: Sequence[np.ndarray]) -> Agreement:
    """Compare the outputs of an exported layer with its own for the same image; the first are classes [N, H, W] or logits."""
    outputs = layer(paddle.to_tensor(image))
    wanted = [x.numpy() for x in (outputs if isinstance(outputs, list | tuple) else [outputs])]
    if [x.shape for x in wanted] != [x.shape for x in given]:
        return Agreement(float("inf"), 0.0)
    difference = max(_difference(a, b) for a, b in zip(wanted, given, strict=True))
    classes = [x.argmax(1) if x.dtype.kind == "f" else x for x in (wanted[0], given[0])]
    return Agreement(difference, float((classes[0] == classes[1]).mean()))


def _difference(wanted: np.ndarray, given: np.ndarray) -> float:
    """The largest; of class numbers 0, since how far apart two of them are says nothing."""
    return float(np.abs(wanted.astype(np.float64) - given).max()) if wanted.dtype.kind == "f" else 0.0
