"""What models do, measured here: classes of every image, time of one, size."""

import contextlib
import io
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from paddle import nn

from paddleseg_ext.config import TestConfig
from paddleseg_ext.distill.adaptor import AdaptorBase
from paddleseg_ext.distill.connector import as_map
from paddleseg_ext.distill.recorder import Recorder
from paddleseg_ext.engine.evaluate import predict


@dataclass(frozen=True)
class Size:
    """Parameters, and multiply-adds of one image as `paddle.flops` counts them; None where it cannot."""

    parameters: int
    multiply_adds: int | None


@dataclass(frozen=True)
class Latency:
    """Of one image, seconds: median and 95th percentile."""

    median: float
    p95: float


@paddle.no_grad()
def size_of(model: nn.Layer, shape: Sequence[int]) -> Size:
    """The size of a model; `shape` is of its input, [1, C, H, W]."""
    parameters = sum(int(np.prod(p.shape)) for p in model.parameters())
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it reports layer by layer
            count = int(paddle.flops(model, list(shape)))
    except Exception:  # it knows ordinary layers only, and reads the model's code
        count = 0
    return Size(parameters, count or None)


@paddle.no_grad()
def latencies(models: Mapping[str, nn.Layer], shape: Sequence[int], rounds: int = 21) -> dict[str, Latency]:
    """The models one after the other, round by round, so that a slow moment of the machine meets all alike."""
    image = paddle.to_tensor(np.random.default_rng(0).normal(0, 1, shape).astype("float32"))
    taken: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, model in models.items():
            started = time.perf_counter()
            model(image)[0].numpy()
            taken[name].append(time.perf_counter() - started)
    # The first round warms up.
    return {
        name: Latency(statistics.median(values[1:]), float(np.percentile(values[1:], 95)))
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

    def right(self) -> np.ndarray:
        """The share of each image's valid pixels whose class is right, float64 [images]."""
        return np.trace(self.confusion, axis1=1, axis2=2) / np.maximum(self.confusion.sum(axis=(1, 2)), 1)


def iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of each class."""
    both = np.diagonal(confusion).astype(np.float64)
    either = confusion.sum(axis=0) + confusion.sum(axis=1) - both
    return np.divide(both, either, out=np.full(len(both), np.nan), where=either > 0)


def judge(
    models: Mapping[str, nn.Layer],
    dataset: Any,
    test_config: TestConfig,
    indices: Sequence[int],
    seen: Callable[[], object],
) -> dict[str, Judged]:
    """Every model on every image, each image read once. `seen` is told of each."""
    classes = dataset.num_classes
    counts: dict[str, list[np.ndarray]] = {name: [] for name in models}
    for index in indices:
        sample = dataset[index]
        label = np.asarray(sample["label"]).squeeze().astype(np.int64)
        valid = label != dataset.ignore_index
        for name, model in models.items():
            given = predict(model, sample, test_config)
            flat = np.bincount(label[valid] * classes + given[valid], minlength=classes * classes)
            counts[name].append(flat.reshape(classes, classes))
        seen()
    return {name: Judged(np.stack(values)) for name, values in counts.items()}


@paddle.no_grad()
def activity(model: nn.Layer, layers: Sequence[str], image: np.ndarray) -> dict[str, np.ndarray]:
    """How strongly layers answer an image [C, H, W]: mean over channels of the absolute value, float32 [h, w], 0..1."""
    batch = paddle.to_tensor(image).unsqueeze(0)
    with Recorder(AdaptorBase(model), layers) as caught:
        model(batch)
        features = caught.take()
    size = (image.shape[1], image.shape[2])
    return {name: _within_one(as_map(value, size).abs().mean(axis=1)[0].numpy()) for name, value in features.items()}


@paddle.no_grad()
def certainty(model: nn.Layer, output: int, image: np.ndarray) -> np.ndarray:
    """The largest probability of an output at each place, float32 [h, w]."""
    logits = model(paddle.to_tensor(image).unsqueeze(0))[output]
    return nn.functional.softmax(logits.astype("float32"), axis=1).max(axis=1)[0].numpy()


def _within_one(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return ((values - low) / max(high - low, 1e-12)).astype(np.float32)
