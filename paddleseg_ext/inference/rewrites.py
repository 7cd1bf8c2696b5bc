"""Operations written for an export in another way, which engines take and compute alike."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor


@contextmanager
def exact_pooling() -> Iterator[None]:
    """Inside, adaptive average pooling of maps of a known size is written as convolutions; of others it is refused.

    paddle2onnx and oneDNN give other cells where sizes do not divide.
    """
    original = F.adaptive_avg_pool2d

    def pooled(x: Tensor, output_size: Any, data_format: str = "NCHW", name: str | None = None) -> Tensor:
        height, width = output_size if isinstance(output_size, list | tuple) else (output_size, output_size)
        if (height, width) == (1, 1) or data_format != "NCHW":
            return original(x, output_size, data_format)
        return _along_height(_along_height(x, height).transpose([0, 1, 3, 2]), width).transpose([0, 1, 3, 2])

    with _replaced("adaptive_avg_pool2d", original, pooled):
        yield


@contextmanager
def for_onnx() -> Iterator[None]:
    """Inside, what paddle2onnx 2.1 does not read in Paddle 3.3's PIR is written in another way.

    Both are numbers in double precision: a resize to a multiple is told the size that it comes to, and padding by a value, for
    which it would take what lies in memory, is made of blocks of that value.
    """
    interpolate, original_pad = F.interpolate, F.pad

    def resized(x: Tensor, size: Any = None, scale_factor: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        whole = isinstance(scale_factor, int | float) and scale_factor == int(scale_factor)
        if whole and x.ndim == 4 and kwargs.get("data_format") in (None, "NCHW"):
            times, known = int(scale_factor), all(isinstance(side, int) and side > 0 for side in x.shape[2:])
            size = [side * times for side in x.shape[2:]] if known else paddle.shape(x)[2:] * times
            scale_factor = None
        return interpolate(x, size, scale_factor, *args, **kwargs)

    def padded(x: Tensor, pad: Any, mode: str = "constant", value: float = 0.0, *args: Any, **kwargs: Any) -> Tensor:
        plain = isinstance(pad, list | tuple) and len(pad) == 4 and all(type(n) is int and n >= 0 for n in pad)
        if not plain or mode != "constant" or x.ndim != 4 or args or kwargs.get("data_format") not in (None, "NCHW"):
            return original_pad(x, pad, mode, value, *args, **kwargs)
        left, right, top, bottom = pad
        return _between(_between(x, top, bottom, value, axis=2), left, right, value, axis=3)

    with _replaced("interpolate", interpolate, resized), _replaced("pad", original_pad, padded):
        yield


def _between(x: Tensor, before: int, after: int, value: float, axis: int) -> Tensor:
    """[N, C, H, W] with so many positions of a value before and after it on an axis."""
    block = paddle.full_like(x[:, :, :1] if axis == 2 else x[:, :, :, :1], value)
    times = [1, 1, 1, 1]

    def blocks(count: int) -> list[Tensor]:
        times[axis] = count
        return [block.tile(times)] if count else []

    return paddle.concat([*blocks(before), x, *blocks(after)], axis=axis)


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


@contextmanager
def _replaced(name: str, old: Callable[..., Any], new: Callable[..., Any]) -> Iterator[None]:
    """Another function of this name, wherever paddle.nn.functional has it, until the end."""
    modules = (F, F.common, F.pooling)
    holders = [module for module in modules if getattr(module, name, None) is old]
    for module in holders:
        setattr(module, name, new)
    try:
        yield
    finally:
        for module in holders:
            setattr(module, name, old)
