"""How good a model is on a data set: mIoU, accuracy, kappa, dice, per-class IoU."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddleseg.core import infer
from paddleseg.utils import metrics

from paddleseg_ext.config import TestConfig
from paddleseg_ext.engine import env
from paddleseg_ext.engine.trainer import autocast
from paddleseg_ext.errors import DataError


@dataclass(frozen=True)
class Metrics:
    """Figures of one evaluation, all from one confusion matrix over all valid pixels; the formulas are PaddleSeg's.

    `chance` is the mIoU of the best constant prediction: the commonest class's share of the pixels over the number of
    classes.
    """

    miou: float
    accuracy: float
    kappa: float
    dice: float
    class_iou: tuple[float, ...]
    chance: float
    images: int
    seconds: float

    def record(self) -> dict[str, Any]:
        """For metrics.jsonl."""
        return {
            **{"mIoU": self.miou, "accuracy": self.accuracy, "kappa": self.kappa, "dice": self.dice},
            **{"class_iou": list(self.class_iou), "images": self.images, "seconds": round(self.seconds, 3)},
        }

    def __str__(self) -> str:
        return (
            f"mIoU {self.miou:.4f}, accuracy {self.accuracy:.4f}, kappa {self.kappa:.4f}, dice {self.dice:.4f}, "
            f"IoU by class {' '.join(f'{v:.3f}' for v in self.class_iou)} ({self.images} images, {self.seconds:.1f} s)"
        )


def evaluate(
    model: nn.Layer,
    dataset: paddle.io.Dataset,
    test_config: TestConfig,
    *,
    precision: str = "fp32",
    num_workers: int = 0,
    limit: int | None = None,
    seen: Callable[[int], object] = lambda count: None,
) -> Metrics:
    """Evaluate a model, image by image, shared over the ranks: rank r takes images r, r+N, ...

    The counts are whole numbers and summed exactly, so the figures do not depend on the number of ranks.

    Args:
        dataset: a PaddleSeg data set in 'val' mode.
        limit: only so many images, spread evenly over the set.
        seen: told how many images this rank has finished.
    """
    started = time.perf_counter()
    indices = spread(len(dataset), limit)
    classes = dataset.num_classes
    confusion = np.zeros([classes, classes], np.int64)
    was_training = model.training
    model.eval()
    try:
        mine = indices[env.rank() :: env.world_size()]
        for count, (index, sample) in enumerate(prefetched(dataset, mine, num_workers)):
            prediction = predict(model, sample, test_config, precision)
            confusion += pixel_counts(dataset, index, sample, prediction)
            seen(count + 1)
    finally:
        if was_training:
            model.train()
    return _metrics(env.sum_over_ranks(confusion), len(indices), started)


def pixel_counts(dataset: Any, index: int, sample: Mapping[str, Any], prediction: np.ndarray) -> np.ndarray:
    """How many valid pixels of one sample have which label (row) and which prediction (column), int64 [C, C].

    Raises:
        DataError: a label that is no class.
    """
    classes = dataset.num_classes
    label = np.asarray(sample["label"]).reshape(prediction.shape).astype(np.int64)
    valid = label != dataset.ignore_index
    if label[valid].size and not 0 <= label[valid].min() <= label[valid].max() < classes:
        raise DataError(f"{dataset.file_list[index][1]}: a label is not within 0..{classes - 1}")
    flat = np.bincount(label[valid] * classes + prediction[valid], minlength=classes * classes)
    return flat.reshape(classes, classes)


def spread(length: int, limit: int | None) -> list[int]:
    """Up to `limit` indices, evenly spread over `length`; all where limit is None."""
    if limit is None or limit >= length:
        return list(range(length))
    return [i * length // limit for i in range(limit)]


def predict(model: nn.Layer, sample: dict[str, Any], test_config: TestConfig, precision: str = "fp32") -> np.ndarray:
    """The classes [H, W] of one sample, at its original size, by PaddleSeg's own inference."""
    return _infer(model, sample, test_config, precision)[0].numpy()[0, 0]


def predict_probabilities(
    model: nn.Layer, sample: dict[str, Any], test_config: TestConfig, precision: str = "fp32"
) -> np.ndarray:
    """The probability of each class, float32 [C, H, W], whose largest `predict` gives."""
    scores = _infer(model, sample, test_config, precision)[1][0].astype("float32")
    return paddle.nn.functional.softmax(scores, axis=0).numpy()


class _InFloat32:
    """A model whose outputs are float32: PaddleSeg adds up windows in NumPy, which has no bfloat16 and would add their bits."""

    def __init__(self, model: nn.Layer) -> None:
        self._model = model

    def __call__(self, image: paddle.Tensor) -> list[Any]:
        outputs = self._model(image)
        return [outputs[0].astype("float32"), *outputs[1:]]  # the first is all that is used

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@paddle.no_grad()
def _infer(
    model: nn.Layer, sample: dict[str, Any], test_config: TestConfig, precision: str
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """PaddleSeg's prediction [1, 1, H, W] and scores [1, C, H, W]."""
    image = paddle.to_tensor(sample["img"]).unsqueeze(0)
    slide = {"is_slide": test_config.is_slide, "crop_size": test_config.crop_size, "stride": test_config.stride}
    with autocast(precision):
        if not test_config.aug_eval:
            return infer.inference(_InFloat32(model), image, trans_info=sample["trans_info"], **slide)
        return infer.aug_inference(
            _InFloat32(model),
            image,
            trans_info=sample["trans_info"],
            scales=list(test_config.scales),
            flip_horizontal=test_config.flip_horizontal,
            flip_vertical=test_config.flip_vertical,
            **slide,
        )


def prefetched(dataset: Any, indices: list[int], num_workers: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Samples in order, read by threads a few ahead; decoding releases the interpreter's lock."""
    ahead = 2 * max(num_workers, 1)
    with ThreadPoolExecutor(max(num_workers, 1)) as pool:
        queue = [(i, pool.submit(dataset.__getitem__, i)) for i in indices[:ahead]]
        for position in range(len(indices)):
            index, future = queue.pop(0)
            if position + ahead < len(indices):
                following = indices[position + ahead]
                queue.append((following, pool.submit(dataset.__getitem__, following)))
            yield index, future.result()


def _metrics(confusion: np.ndarray, images: int, started: float) -> Metrics:
    areas = (np.diagonal(confusion), confusion.sum(0), confusion.sum(1))  # intersection, predicted, labelled
    tensors = [paddle.to_tensor(np.ascontiguousarray(a)) for a in areas]
    class_iou, miou = metrics.mean_iou(*tensors)
    accuracy, _, _ = metrics.class_measurement(*tensors)
    _, dice = metrics.dice(*tensors)
    total = max(int(confusion.sum()), 1)
    return Metrics(
        miou=float(miou),
        accuracy=float(accuracy),
        kappa=float(metrics.kappa(*tensors)),
        dice=float(dice),
        class_iou=tuple(float(v) for v in class_iou),
        chance=float(areas[2].max()) / total / len(confusion),
        images=images,
        seconds=time.perf_counter() - started,
    )
