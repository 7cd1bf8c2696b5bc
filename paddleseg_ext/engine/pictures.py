"""Pictures for people: an image, its label and the predictions of models, side by side."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from paddleseg.utils import visualize

from paddleseg_ext.errors import DataError

_WIDTH = 256  # pixels of one picture in a row
Picture = np.ndarray  # uint8 RGB [H, W, 3]


def image_panel(dataset: Any, index: int) -> Picture:
    """The image itself, as it is on the disk."""
    path = dataset.file_list[index][0]
    image = cv2.imread(path, cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"{path}: the image cannot be read")
    return _titled(_scaled(image[..., ::-1]), "input")


def palette() -> np.ndarray:
    """PaddleSeg's colours by class, uint8 RGB [256, 3]."""
    return np.array(visualize.get_color_map_list(256), np.uint8).reshape(-1, 3)


def classes_panel(classes: np.ndarray, title: str) -> Picture:
    """A map of classes [H, W] in PaddleSeg's colours; ignored pixels (255) get the palette's last."""
    return _titled(_scaled(palette()[classes.astype(np.uint8)], nearest=True), title)


def write_sheet(path: Path, rows: list[Picture]) -> None:
    """Rows one below the other as one PNG."""
    widest = max(row.shape[1] for row in rows)
    sheet = np.vstack([np.pad(row, ((0, 0), (0, widest - row.shape[1]), (0, 0))) for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), sheet[..., ::-1])


def _scaled(rgb: Picture, nearest: bool = False) -> Picture:
    size = (_WIDTH, max(round(rgb.shape[0] * _WIDTH / rgb.shape[1]), 1))
    return cv2.resize(np.ascontiguousarray(rgb), size, interpolation=cv2.INTER_NEAREST if nearest else cv2.INTER_AREA)


def _titled(rgb: Picture, title: str) -> Picture:
    """The picture under a white strip with its title, with a white line to its right."""
    strip = np.full((20, rgb.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, title, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.pad(np.vstack([strip, rgb]), ((0, 2), (0, 4), (0, 0)), constant_values=255)
