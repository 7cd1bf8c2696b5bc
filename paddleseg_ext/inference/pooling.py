"""Adaptive average pooling that engines compute alike: paddle2onnx and oneDNN give other cells where sizes do not divide."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor


@contextmanager
def exact_pooling() -> Iterator[None]:
    """Inside, adaptive average pooling of maps of a known size is written as convolutions; of others it is refused."""
    original = F.adaptive_avg_pool2d

    def pooled(x: Tensor, output_size: Any, data_format: str = "NCHW", name: str | None = None) -> Tensor:
        height, width = output_size if isinstance(output_size, list | tuple) else (output_size, output_size)
        if (height, width) == (1, 1) or data_format != "NCHW":
            return original(x, output_size, data_format)
        return _along_height(_along_height(x, height).transpose([0, 1, 3, 2]), width).transpose([0, 1, 3, 2])

    _replace(original, pooled)
    try:
        yield
    finally:
        _replace(pooled, original)


def cells(size: int, count: int) -> np.ndarray:
    """What each of `count` cells takes of `size` positions: float32 [count, size], rows add up to 1."""
    matrix = np.zeros([count, size], "float32")
    for cell in range(count):
        first, last = cell * size // count, -(-(cell + 1) * size // count)
        matrix[cell, first:last] = 1 / (last - first)
    return matrix


def _along_height(x: Tensor, count: int | None) -> Tensor:
    """[N, C, H, W] to [N, C, count, W]."""
    size = x.shape[2]
    if count is None or count == size:
        return x
    if not isinstance(size, int) or size < 1:
        raise RuntimeError("adaptive pooling can be exported for images of one size alone")
    # A convolution, which the old IR has and a product of matrices it has not.
    weight = paddle.to_tensor(cells(size, count).reshape([count, size, 1, 1]))
    return F.conv2d(x.transpose([0, 2, 1, 3]), weight).transpose([0, 2, 1, 3])


def _replace(old: Callable[..., Any], new: Callable[..., Any]) -> None:
    for module in (paddle.nn.functional, paddle.nn.functional.pooling):
        if getattr(module, "adaptive_avg_pool2d", None) is old:
            module.adaptive_avg_pool2d = new
