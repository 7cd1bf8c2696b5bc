"""Looks at every file of a data set before training: a bad label found after an hour costs the hour."""

import hashlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from tqdm import tqdm

from paddleseg_ext.errors import DataError

_log = logging.getLogger(__name__)
_LOOKED_AT = "whole images and labels"  # what a set that passed is remembered for
_SAMPLES = 8  # looked at where a data set changes its labels after reading them


def check_dataset(dataset: Any, where: str) -> None:
    """Check that every file is there, readable and sound.

    Decoding every image and label takes a while (about a minute for 3000 labels of 2048x1024), so a set that passed is remembered
    by the path, size and time of its files and not decoded again. Whether files are missing is looked up each time.

    Args:
        dataset: a PaddleSeg data set: `file_list` of [image, label], `num_classes`, `ignore_index`.
        where: its place in the configuration, for the messages.

    Raises:
        DataError: no samples, missing files, or a file that cannot be used, with the first such file and what is wrong.
    """
    listed = getattr(dataset, "file_list", None)
    if len(dataset) == 0:
        raise DataError(f"{where}: the list of samples is empty")
    if not listed:
        return
    # Some sets list an image several times.
    pairs = list(dict.fromkeys((str(image), None if label is None else str(label)) for image, label in listed))
    known_labels = _labels_are_used_as_read(dataset)
    passed = _check_files(pairs, dataset.num_classes, dataset.ignore_index, known_labels, where)
    if passed is not None:
        if not known_labels:
            _check_samples(dataset, where)
        _remember(passed)


def check_images(images: Sequence[str], where: str) -> None:
    """Check that images without labels are there and readable.

    Raises:
        DataError: as `check_dataset`.
    """
    passed = _check_files([(image, None) for image in dict.fromkeys(images)], 0, 0, True, where)
    if passed is not None:
        _remember(passed)


def _check_files(
    pairs: list[tuple[str, str | None]], classes: int, ignore_index: int, known_labels: bool, where: str
) -> Path | None:
    """Look at every file. Returns where to remember that they passed, or None where they have passed before."""
    key = (_LOOKED_AT, _state_of_files(pairs, where), classes, ignore_index, known_labels)
    passed = _memory() / f"{hashlib.sha256(repr(key).encode()).hexdigest()}.ok"
    if passed.exists():
        return None
    with ThreadPoolExecutor(max(os.cpu_count() or 1, 1)) as pool:
        found = pool.map(lambda pair: _problem(pair[0], pair[1], classes, ignore_index, known_labels), pairs)
        for problem in _with_bar(found, len(pairs), where):
            if problem:
                pool.shutdown(wait=False, cancel_futures=True)
                raise DataError(f"{where}: {problem}")
    return passed


def _state_of_files(pairs: list[tuple[str, str | None]], where: str) -> list[tuple[str, int, int]]:
    state, missing = [], []
    paths = [path for pair in pairs for path in pair if path is not None]
    for path in paths:
        try:
            stat = os.stat(path)
            state.append((os.path.abspath(path), stat.st_size, stat.st_mtime_ns))
        except OSError:
            missing.append(path)
    if missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(f"{where}: {len(missing)} of {len(paths)} files are missing, the first: {first}")
    return state


def _problem(image: str, label: str | None, classes: int, ignore_index: int, known_labels: bool) -> str | None:
    """What is wrong with one sample, or None."""
    try:
        with Image.open(image) as opened:
            size = size_of(opened)
            opened.load()
    except Exception as error:
        return f"{image}: not a readable image ({type(error).__name__}: {error})"
    if label is None or (not known_labels and Path(label).suffix not in Image.registered_extensions()):
        return None  # the data set knows how to read it
    try:
        with Image.open(label) as opened:
            mode, values = opened.mode, np.asarray(opened)
    except Exception as error:
        return f"{label}: not a readable label ({type(error).__name__})"
    if values.ndim != 2 and known_labels:
        return f"{label}: a label has one channel of class numbers, but this is an image in colour ({mode})"
    if (values.shape[1], values.shape[0]) != size:
        given, expected = f"{values.shape[1]}x{values.shape[0]}", f"{size[0]}x{size[1]}"
        return f"{label}: the label is {given} pixels, its image {image} is {expected}"
    if not known_labels:
        return None
    return _out_of_range(values, label, classes, ignore_index)


def size_of(image: Image.Image) -> tuple[int, int]:
    """Width and height as PaddleSeg reads an image."""
    width, height = image.size
    return (height, width) if _is_turned(image) else (width, height)


def _is_turned(image: Image.Image) -> bool:
    """Whether its EXIF puts an image on its side: OpenCV, by which PaddleSeg reads images, obeys; Pillow's `size` does not."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except Exception:  # OpenCV passes over broken EXIF
        return False


def _out_of_range(values: np.ndarray, name: str, classes: int, ignore_index: int) -> str | None:
    strange = [int(v) for v in np.unique(values) if not 0 <= v < classes and v != ignore_index]
    if not strange:
        return None
    shown = ", ".join(map(str, strange[:5])) + (", ..." if len(strange) > 5 else "")
    return f"{name}: label value {shown}; with {classes} classes it is 0..{classes - 1}, or {ignore_index} to ignore"


def _labels_are_used_as_read(dataset: Any) -> bool:
    """Whether the class leaves labels as they are in the files; ADE20K, for one, shifts them."""
    from paddleseg.datasets import Dataset

    return getattr(type(dataset), "__getitem__", None) is Dataset.__getitem__


def _check_samples(dataset: Any, where: str) -> None:
    for index in range(0, len(dataset), max(len(dataset) // _SAMPLES, 1)):
        label = np.asarray(dataset[index]["label"])
        problem = _out_of_range(label, str(dataset.file_list[index][1]), dataset.num_classes, dataset.ignore_index)
        if problem:
            raise DataError(f"{where}: {problem}")


def _with_bar(found: Iterator[str | None], count: int, where: str) -> Iterator[str | None]:
    """The same, with a progress bar on a terminal where it takes longer than two seconds."""
    name = f"checking {where.split(': ')[-1]}"
    return iter(tqdm(found, total=count, desc=name, delay=2, leave=False, disable=not sys.stderr.isatty()))


def _memory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paddleseg_ext" / "data_checks"


def _remember(passed: Path) -> None:
    try:
        passed.parent.mkdir(parents=True, exist_ok=True)
        passed.touch()
    except OSError as error:
        _log.info("this check of the data will be repeated, as %s cannot be written: %s", passed, error.strerror)
