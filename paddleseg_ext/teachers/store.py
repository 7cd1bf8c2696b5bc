"""A teacher's outputs on disk: half-precision maps in shards that are read by mapping them into memory.

A folder of `manifest.json`, what is stored of which teacher and which images; and for each shard `00000.bin`, the maps one after
the other, and `00000.json`, where they begin, written last. A shard is whole or not there, so that writing can be killed at any
moment and go on.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from paddleseg_ext.data.file_marks import FileMark
from paddleseg_ext.errors import CacheError, closest
from paddleseg_ext.teachers.manifest import FILE, Manifest, read_manifest

_PARTIAL = ".partial"


@dataclass(frozen=True)
class Answer:
    """What is stored of one image: how the teacher saw it (geometry, float64 [2, 5]), the image's mark, the maps."""

    view: np.ndarray
    mark: FileMark
    maps: Mapping[str, Sequence[np.ndarray]]


class OutputStore:
    """Reads the stored outputs. Each reading maps no more than one image's part of a file.

    Time and memory of opening grow with the number of images alone.

    Args:
        whole: whether everything must be there; else what is not can just not be read.

    Raises:
        CacheError: there is none, it is not whole, or it is not one.
    """

    def __init__(self, folder: str | Path, *, whole: bool = True) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self._rows: dict[str, tuple[int, Mapping[str, Any]]] = {}
        for number, names in enumerate(self.manifest.shards()):
            rows = _read_shard(self.folder, number)
            if rows is None and not whole:
                continue
            if rows is None:
                left = sum(len(self.manifest.shards()[index]) for index in missing(self.folder, self.manifest))
                raise CacheError(
                    f"{self.folder}: {left} of {len(self.manifest.names)} images are still to be stored; "
                    "run cache_teacher again, which goes on where it stopped"
                )
            self._rows.update(zip(names, ((number, row) for row in rows), strict=True))

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def mark(self, name: str) -> FileMark:
        """Of an image, when it was stored."""
        return FileMark(*self._row(name)[1]["mark"])

    def read(self, name: str) -> Answer:
        """What is stored of an image."""
        number, row = self._row(name)
        path, at, maps = _file(self.folder, number, "bin"), row["at"], {}
        for tensor, size in zip(self.manifest.tensors, row["sizes"], strict=True):
            arrays = []
            for kind, channels in self.manifest.parts(tensor):
                array = np.memmap(path, kind, "r", at, (channels, *size))
                arrays.append(array)
                at += array.nbytes
            maps[tensor.key] = arrays
        return Answer(np.array(row["view"]), FileMark(*row["mark"]), maps)

    def _row(self, name: str) -> tuple[int, Mapping[str, Any]]:
        if name not in self._rows:
            raise CacheError(f"{self.folder}: nothing is stored of {name}{closest(name, self._rows)}")
        return self._rows[name]


def is_begun(folder: Path, manifest: Manifest) -> bool:
    """Whether a folder holds this store, or a part of it, already.

    Raises:
        CacheError: it holds something else.
    """
    try:
        if (folder / FILE).exists():
            difference = read_manifest(folder).difference(manifest)
            if difference:
                raise CacheError(f"{folder} holds {difference}; give another folder, or remove this one")
            return True
        if folder.exists() and not all(path.name.endswith(_PARTIAL) for path in folder.iterdir()):
            raise CacheError(f"{folder} holds other files; give a new folder")
        return False
    except OSError as error:
        raise CacheError(f"{folder}: cannot be read: {error.strerror}") from None


def begin(folder: Path, manifest: Manifest) -> None:
    """Make a store, or clear away what a killed run left half-written in the one which is there.

    Raises:
        CacheError: it is another's, or the folder cannot be written to.
    """
    begun = is_begun(folder, manifest)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f".*{_PARTIAL}"):
            left.unlink()
        if not begun:
            _write(folder / FILE, lambda file: file.write(manifest.text().encode()))
    except OSError as error:
        raise CacheError(f"{folder}: cannot be written to: {error.strerror}") from None


def missing(folder: Path, manifest: Manifest) -> list[int]:
    """The shards that are not stored yet."""
    return [number for number in range(len(manifest.shards())) if not _file(folder, number, "json").exists()]


def check_room(folder: Path, needed: int) -> None:
    """Raise CacheError where the disk has not so many bytes left."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise CacheError(f"{folder}: {in_words(needed)} are needed, but the disk has {in_words(free)} left")


def write_shard(folder: Path, manifest: Manifest, number: int, answers: Iterable[Answer]) -> None:
    """Write one shard: the answers for its images, in their order. Nothing is held in memory but the answer at hand.

    Raises:
        CacheError: the disk is full.
    """
    rows: list[dict[str, Any]] = []

    def write(file: BinaryIO) -> None:
        for answer in answers:
            sizes = [answer.maps[tensor.key][0].shape[1:] for tensor in manifest.tensors]
            rows.append(
                {
                    **{"at": file.tell(), "sizes": sizes, "view": answer.view.tolist()},
                    "mark": [answer.mark.size, answer.mark.changed, answer.mark.digest],
                }
            )
            for tensor in manifest.tensors:
                for array, (kind, _) in zip(answer.maps[tensor.key], manifest.parts(tensor), strict=True):
                    file.write(np.ascontiguousarray(array, kind).tobytes())
        rows.append({"end": file.tell()})

    try:
        _write(_file(folder, number, "bin"), write)
        _write(_file(folder, number, "json"), lambda file: file.write(json.dumps(rows).encode()))
    except OSError as error:
        raise CacheError(f"{folder}: cannot be written to: {error.strerror}") from None


def in_words(count: float) -> str:
    """Bytes in words."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 999.5 and len(units) > 1:
        count /= 1000
        del units[0]
    return f"{count:.3g} {units[0]}"


def _read_shard(folder: Path, number: int) -> list[Mapping[str, Any]] | None:
    """Where a shard's maps are, or None where it is not there."""
    path = _file(folder, number, "json")
    try:
        rows: list[Mapping[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        if _file(folder, number, "bin").stat().st_size != rows.pop()["end"]:
            raise ValueError(f"{number:05}.bin has another size than it was written with")
        return rows
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise CacheError(f"{path}: cannot be used: {error}") from None


def _file(folder: Path, number: int, ending: str) -> Path:
    return folder / f"{number:05}.{ending}"


def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file in one go: under another name, brought to the disk, renamed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
