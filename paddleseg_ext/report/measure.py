"""What models do, measured here: classes of every image, time of one, size."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from paddleseg_ext.config import TestConfig
from paddleseg_ext.distill.adaptor import AdaptorBase
from paddleseg_ext.distill.connector import as_map
from paddleseg_ext.distill.recorder import Recorder
from paddleseg_ext.engine.evaluate import pixel_counts, predict

# Of timing: so many rounds, or what fits into the seconds, but at least the fewest.
_ROUNDS, _FEWEST_ROUNDS, _SECONDS = 200, 10, 20
_CONVOLUTIONS = (nn.Conv1D, nn.Conv2D, nn.Conv3D)
_TRANSPOSED = (nn.Conv1DTranspose, nn.Conv2DTranspose, nn.Conv3DTranspose)


@dataclass(frozen=True)
class Size:
    """Parameters, and the multiply-adds of convolutions and linear layers for one image."""

    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Latency:
    """Of one image, seconds: median and 95th percentile of `rounds`."""

    median: float
    p95: float
    rounds: int


@paddle.no_grad()
def size_of(model: nn.Layer, shape: Sequence[int]) -> Size:
    """The size of a model in eval mode; `shape` is of its input, [1, C, H, W].

    Not `paddle.flops`, which counts no synchronised batch norm, fails on layers in train mode and then leaves its hooks behind.
    """
    total = 0

    def count(layer: nn.Layer, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        weight = layer.weight
        if isinstance(layer, nn.Linear):
            total += _elements(output) * weight.shape[0]
        else:  # a kernel for each output, and of a transposed convolution for each input
            over = output if isinstance(layer, _CONVOLUTIONS) else inputs[0]
            total += _elements(over) * _elements(weight[0])

    counted = [layer for layer in model.sublayers() if isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear))]
    hooks = [layer.register_forward_post_hook(count) for layer in counted]
    try:
        model(paddle.zeros(list(shape)))
    finally:
        for hook in hooks:
            hook.remove()
    return Size(sum(_elements(p) for p in model.parameters()), total)


def _elements(x: Tensor) -> int:
    return int(np.prod(x.shape))


@paddle.no_grad()
def latencies(models: Mapping[str, nn.Layer], shape: Sequence[int], seconds: float = _SECONDS) -> dict[str, Latency]:
    """The models one after the other, round by round, so that a slow moment of the machine meets all alike."""
    image = paddle.to_tensor(np.random.default_rng(0).normal(0, 1, shape).astype("float32"))
    taken: dict[str, list[float]] = {name: [] for name in models}
    begun = time.perf_counter()
    for number in range(_ROUNDS + 1):  # the first warms up
        if number > _FEWEST_ROUNDS and time.perf_counter() - begun > seconds:
            break
        for name, model in models.items():
            started = time.perf_counter()
            model(image)[0].numpy()  # waits for the device
            taken[name].append(time.perf_counter() - started)
    return {
        name: Latency(statistics.median(values[1:]), float(np.percentile(values[1:], 95)), len(values) - 1)
        for name, values in taken.items()
    }


@dataclass(frozen=True)
class Judged:
    """One model on a data set: a confusion matrix (label, prediction) for each image, int64 [images, C, C]."""

    confusion: np.ndarray

    @property
    def class_iou(self) -> np.ndarray:
        """float64 [C]; nan for a class that neither occurs nor is predicted."""
        return iou(self.confusion.sum(axis=0))

    @property
    def miou(self) -> float:
        """The mean over all classes; one that neither occurs nor is predicted counts as 0, as in PaddleSeg."""
        return float(np.nan_to_num(self.class_iou).mean())

    @property
    def image_miou(self) -> np.ndarray:
        """Of each image, the mean IoU of the classes that occur in its label, float64 [images]; 0 without any."""
        occurs = self.confusion.sum(axis=2) > 0
        values = np.where(occurs, np.nan_to_num(iou(self.confusion)), 0.0)
        return values.sum(axis=1) / np.maximum(occurs.sum(axis=1), 1)


def iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of each class; matrices [..., C, C] to [..., C]."""
    both = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    either = confusion.sum(axis=-2) + confusion.sum(axis=-1) - both
    return np.divide(both, either, out=np.full(both.shape, np.nan), where=either > 0)


def judge(
    models: Mapping[str, nn.Layer],
    dataset: Any,
    test_config: TestConfig,
    indices: Sequence[int],
    seen: Callable[[], object],
) -> dict[str, Judged]:
    """Every model on every image, each image read once; `seen` is called after each.

    Raises:
        DataError: a label that is no class.
    """
    counts: dict[str, list[np.ndarray]] = {name: [] for name in models}
    for index in indices:
        sample = dataset[index]
        for name, model in models.items():
            counts[name].append(pixel_counts(dataset, index, sample, predict(model, sample, test_config)))
        seen()
    return {name: Judged(np.stack(values)) for name, values in counts.items()}


@paddle.no_grad()
def activity(model: nn.Layer, layers: Sequence[str], image: np.ndarray) -> dict[str, np.ndarray]:
    """How strongly layers answer an image [C, H, W]: mean over channels of the absolute value, float32 [h, w], 0..1.

    Raises:
        ConfigError: a layer that the model does not have.
        ValueError: a tensor that is no map.
    """
    batch = paddle.to_tensor(image).unsqueeze(0)
    with Recorder(AdaptorBase(model), layers) as caught:
        model(batch)
        features = caught.take()
    size = (image.shape[1], image.shape[2])
    return {
        name: _within_one(as_map(features[name], size).abs().mean(axis=1)[0].astype("float32").numpy())
        for name in layers
    }


@paddle.no_grad()
def certainty(model: nn.Layer, output: int, image: np.ndarray) -> np.ndarray | None:
    """The largest probability of an output at each place, float32 [h, w]; None for an output that it has in training only."""
    outputs = model(paddle.to_tensor(image).unsqueeze(0))
    if output >= len(outputs):
        return None
    return nn.functional.softmax(outputs[output].astype("float32"), axis=1).max(axis=1)[0].numpy()


def _within_one(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return ((values - low) / max(high - low, 1e-12)).astype(np.float32)
