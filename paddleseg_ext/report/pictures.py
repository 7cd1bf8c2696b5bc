"""Pictures of the page, each as a `data:` URI."""

import base64
from collections.abc import Sequence

import cv2
import numpy as np

from paddleseg_ext.engine.pictures import palette

_WIDTH = 320  # pixels of a picture
# BGR. Right and wrong are told apart by brightness too.
_RIGHT, _WRONG, _IGNORED = (74, 66, 60), (66, 84, 240), (176, 172, 168)
_MENDED, _BROKEN = (120, 196, 60), (66, 84, 240)


def photo(bgr: np.ndarray) -> str:
    """An image uint8 BGR [H, W, 3]."""
    return _uri(".jpg", _scaled(bgr, cv2.INTER_AREA), [cv2.IMWRITE_JPEG_QUALITY, 84])


def classes(values: np.ndarray) -> str:
    """A map of classes [H, W] in PaddleSeg's colours."""
    return _uri(".png", _scaled(palette()[values.astype(np.uint8)][..., ::-1], cv2.INTER_NEAREST))


def over(bgr: np.ndarray, values: np.ndarray) -> str:
    """A map of classes [H, W] laid over its image."""
    colours = np.ascontiguousarray(palette()[values.astype(np.uint8)][..., ::-1])
    return photo(cv2.addWeighted(_sized(bgr, values.shape), 0.6, colours, 0.4, 0))


def errors(given: np.ndarray, label: np.ndarray, ignore_index: int) -> str:
    """Right in dark grey, wrong in red, ignored in light grey."""
    drawn = np.full([*label.shape, 3], _RIGHT, np.uint8)
    drawn[given != label] = _WRONG
    drawn[label == ignore_index] = _IGNORED
    return _uri(".png", _scaled(drawn, cv2.INTER_NEAREST))


def changes(bgr: np.ndarray, before: np.ndarray, after: np.ndarray, label: np.ndarray, ignore_index: int) -> str:
    """The image in faint grey; green where only `after` is right, red where only `before` was."""
    grey = cv2.cvtColor(_sized(bgr, label.shape), cv2.COLOR_BGR2GRAY)
    drawn = np.repeat((60 + grey.astype(np.float32) * 0.45).astype(np.uint8)[..., None], 3, axis=2)
    valid, was, now = label != ignore_index, before == label, after == label
    drawn[valid & ~was & now] = _MENDED
    drawn[valid & was & ~now] = _BROKEN
    return _uri(".png", _scaled(drawn, cv2.INTER_NEAREST))


def heat(values: np.ndarray, shape: Sequence[int]) -> str:
    """Values [h, w] from 0 (dark) to 1 (bright), in the proportions of an image of `shape` (H, W)."""
    drawn = cv2.applyColorMap((255 * np.clip(values, 0, 1)).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    return _uri(".png", cv2.resize(drawn, (_WIDTH, _height(shape)), interpolation=cv2.INTER_NEAREST))


def swatch(number: int) -> str:
    """The colour of a class, as CSS writes it."""
    return "#{:02x}{:02x}{:02x}".format(*(int(value) for value in palette()[number % 256]))


def _sized(bgr: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    return bgr if bgr.shape[:2] == tuple(shape) else cv2.resize(bgr, (shape[1], shape[0]))


def _height(shape: Sequence[int]) -> int:
    return max(round(shape[0] * _WIDTH / shape[1]), 1)


def _scaled(picture: np.ndarray, interpolation: int) -> np.ndarray:
    size = (_WIDTH, _height(picture.shape))
    return cv2.resize(np.ascontiguousarray(picture), size, interpolation=interpolation)


def _uri(suffix: str, picture: np.ndarray, options: Sequence[int] = ()) -> str:
    data = base64.b64encode(cv2.imencode(suffix, picture, list(options))[1].tobytes()).decode()
    return f"data:image/{'jpeg' if suffix == '.jpg' else 'png'};base64,{data}"
