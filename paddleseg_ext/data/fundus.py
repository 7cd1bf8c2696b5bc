"""The quick start's data: drawn images that resemble photographs of the eye's background, with the optic disc labelled.

Each shows a round field with uneven light, vessels that branch out from the disc, a pale disc of varying contrast, and pale
spots of a similar colour that are not the disc: telling them apart takes the vessels, which is what makes a small
network fall behind a larger one.
"""

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from paddleseg.cvlibs import manager
from paddleseg.datasets import Dataset
from PIL import Image

from paddleseg_ext.errors import ConfigError

_SCALE = 2  # drawn at this multiple of the size and shrunk, for smooth edges


def draw_fundus(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """One image, uint8 BGR [H, W, 3], and its label, uint8 [H, W]: 0 background, 1 optic disc. `size` is (width, height)."""
    width, height = size[0] * _SCALE, size[1] * _SCALE
    short = min(width, height)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    middle, radius = (width / 2, height / 2), 0.48 * short
    field = np.hypot(x - middle[0], y - middle[1]) < radius
    image = _background(rng, x, y, short)
    side = rng.choice((-1, 1))
    disc = np.array(middle) + (side * rng.uniform(0.1, 0.34) * short, rng.uniform(-0.22, 0.22) * short)
    axes = rng.uniform(0.075, 0.12) * short * np.array((1, rng.uniform(0.95, 1.2)))
    pale = np.array((rng.uniform(90, 130), rng.uniform(165, 205), rng.uniform(210, 240)), np.float32)
    for _ in range(rng.integers(1, 5)):  # pale spots, nearly as large and as bright as the disc
        spot = np.array(middle) + rng.uniform(-0.36, 0.36, 2) * short
        if np.hypot(*(spot - disc)) > 0.24 * short:
            shape = rng.uniform(0.025, 0.08, 2) * short
            _blend(image, _ellipse(x, y, spot, shape, rng.uniform(0, np.pi), 0.25), pale, rng.uniform(0.2, 0.6))
    angle = rng.uniform(-0.3, 0.3)
    _blend(image, _ellipse(x, y, disc, axes, angle, 0.12), pale, rng.uniform(0.45, 0.9))
    cup = _ellipse(x, y, disc + rng.uniform(-2, 2, 2) * _SCALE, axes * rng.uniform(0.35, 0.6), angle, 0.3)
    _blend(image, cup, pale + 25, rng.uniform(0.2, 0.6))
    _draw_vessels(rng, image, disc, -side, short)
    image *= _light(rng, x, y, short)[..., None]
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.6, 1.8) * _SCALE)
    image[~field] = 0
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    image += rng.normal(0, rng.uniform(3, 10), image.shape) * (image.sum(-1, keepdims=True) > 15)
    inside = (_ellipse(x, y, disc, axes, angle, 0.0) > 0.5) & field
    label = cv2.resize(inside.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5
    return image.clip(0, 255).astype(np.uint8), label.astype(np.uint8)


def write_fundus(root: str, train: int, val: int, size: tuple[int, int], seed: int = 0) -> None:
    """Write a data set in the layout of PaddleSeg's optic-disc set: images, labels, `train_list.txt`, `val_list.txt`.

    It appears whole or not at all, also where several processes write it at once. Equal arguments give equal files.

    Args:
        root: the folder to make; left alone where it is there already.
        train, val: numbers of images.
        size: (width, height) in pixels.
    """
    target = Path(root)
    if target.exists():
        return
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        _draw_into(partial, train, val, size, seed)
        os.rename(partial, target)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not (isinstance(error, OSError) and target.exists()):  # else another process was faster
            raise


def _draw_into(folder: Path, train: int, val: int, size: tuple[int, int], seed: int) -> None:
    for below in ("images", "labels"):
        (folder / below).mkdir(parents=True)
    for part, (name, count) in enumerate((("train", train), ("val", val))):
        lines = []
        for index in range(count):
            image, label = draw_fundus(np.random.default_rng((seed, part, index)), size)
            files = f"images/{name}_{index:04}.png", f"labels/{name}_{index:04}.png"
            for file, pixels in zip(files, (image, label), strict=True):
                # Not cv2.imwrite: it says nothing when the disk is full.
                (folder / file).write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
            lines.append(" ".join(files) + "\n")
        (folder / f"{name}_list.txt").write_text("".join(lines))


@manager.DATASETS.add_component
class FundusDataset(Dataset):
    """The drawn images as a PaddleSeg data set, written to `dataset_root` when that is missing.

    Args:
        dataset_root: folder of the data.
        transforms: as for every PaddleSeg data set.
        mode: 'train' or 'val'.
        edge: whether samples have an `edge` mask too.
        train, val: numbers of images to draw. Default 160, 60.
        image_size: [width, height] in pixels of the images to draw. Default [128, 128].

    Raises:
        ConfigError: the folder has other numbers, or images of another size, than are asked for.
    """

    NUM_CLASSES = 2
    IGNORE_INDEX = 255
    IMG_CHANNELS = 3

    def __init__(
        self,
        dataset_root: str,
        transforms: list[Any],
        mode: str = "train",
        edge: bool = False,
        train: int | None = None,
        val: int | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        size = (128, 128) if image_size is None else (image_size[0], image_size[1])
        write_fundus(dataset_root, 160 if train is None else train, 60 if val is None else val, size)
        _check_drawn(Path(dataset_root), {"train": train, "val": val}, None if image_size is None else size)
        super().__init__(
            mode=mode,
            dataset_root=dataset_root,
            transforms=transforms,
            num_classes=self.NUM_CLASSES,
            train_path=os.path.join(dataset_root, "train_list.txt"),
            val_path=os.path.join(dataset_root, "val_list.txt"),
            edge=edge,
        )


def _check_drawn(root: Path, counts: dict[str, int | None], size: tuple[int, int] | None) -> None:
    """Whether what is there is what was asked for: it was drawn by whoever came first."""
    for part, wanted in counts.items():
        lines = (root / f"{part}_list.txt").read_text().splitlines()
        if wanted is not None and len(lines) != wanted:
            raise _differs(root, f"{len(lines)} {part} images", part, wanted)
        if size is not None and lines:
            with Image.open(root / lines[0].split()[0]) as image:
                if image.size != size:
                    raise _differs(root, f"images of {image.size[0]}x{image.size[1]}", "image_size", list(size))


def _differs(root: Path, found: str, name: str, wanted: object) -> ConfigError:
    return ConfigError(
        f"{root} has {found}, but {name} is {wanted}; remove the folder, and say it in train_dataset, or leave it out"
    )


def _background(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, short: int) -> np.ndarray:
    base = np.array((rng.uniform(30, 60), rng.uniform(65, 100), rng.uniform(150, 200)), np.float32)
    clouds = cv2.resize(rng.normal(0, 1, (6, 6)).astype(np.float32), x.shape[::-1], interpolation=cv2.INTER_CUBIC)
    return base + clouds[..., None] * np.array((4, 9, 12), np.float32)


def _light(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, short: int) -> np.ndarray:
    """Brighter on one side, and a soft glare somewhere."""
    direction = rng.uniform(0, 2 * np.pi)
    slope = (np.cos(direction) * (x - x.shape[1] / 2) + np.sin(direction) * (y - x.shape[0] / 2)) / short
    glare = rng.uniform(0.2, 0.8, 2) * x.shape[::-1]
    spot = np.exp(-((x - glare[0]) ** 2 + (y - glare[1]) ** 2) / (2 * (rng.uniform(0.1, 0.25) * short) ** 2))
    return 0.85 + rng.uniform(0.2, 0.7) * slope + rng.uniform(0.0, 0.35) * spot


def _ellipse(
    x: np.ndarray, y: np.ndarray, centre: np.ndarray, axes: np.ndarray, angle: float, softness: float
) -> np.ndarray:
    """1 inside, 0 outside, with an edge as wide as `softness` times the radius; 0 makes it sharp."""
    dx, dy = x - centre[0], y - centre[1]
    u, v = np.cos(angle) * dx + np.sin(angle) * dy, -np.sin(angle) * dx + np.cos(angle) * dy
    distance = np.hypot(u / axes[0], v / axes[1])
    return ((1 - distance) / max(softness, 1e-6) + 0.5).clip(0, 1)


def _blend(image: np.ndarray, mask: np.ndarray, colour: np.ndarray, strength: float) -> None:
    weight = (mask * strength)[..., None]
    image *= 1 - weight
    image += weight * colour


def _draw_vessels(rng: np.random.Generator, image: np.ndarray, disc: np.ndarray, side: int, short: int) -> None:
    """Dark vessels that start at the disc, arch towards the other side and branch."""
    layer = np.zeros(image.shape[:2], np.float32)
    for upward in (-1, 1):
        for _ in range(2):
            heading = np.arctan2(upward, side * rng.uniform(0.1, 0.9))
            _grow(rng, layer, disc.copy(), heading, -upward * side * rng.uniform(0.008, 0.02), 0.016 * short, short, 0)
    for _ in range(3):
        _grow(rng, layer, disc.copy(), rng.uniform(0, 2 * np.pi), rng.normal(0, 0.01), 0.009 * short, short, 1)
    weight = (layer * rng.uniform(0.45, 0.75))[..., None]
    image *= 1 - weight
    image += weight * np.array((25, 25, 95), np.float32)


def _grow(
    rng: np.random.Generator,
    layer: np.ndarray,
    at: np.ndarray,
    heading: float,
    bend: float,
    width: float,
    short: int,
    depth: int,
) -> None:
    step = 0.02 * short
    for _ in range(int(rng.uniform(18, 34) / (depth + 1))):
        heading += bend * 3 + rng.normal(0, 0.12)
        to = at + step * np.array((np.cos(heading), np.sin(heading)))
        thick = max(round(width), 1)
        cv2.line(layer, tuple(map(int, at)), tuple(map(int, to)), float(rng.uniform(0.8, 1)), thick, cv2.LINE_AA)
        at, width = to, width * 0.96
        if depth < 2 and rng.random() < 0.12:
            _grow(rng, layer, at.copy(), heading + rng.choice((-1, 1)) * 0.6, bend, width * 0.7, short, depth + 1)
