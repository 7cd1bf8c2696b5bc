"""Reading Paddle's weight files without running anything they contain.

`paddle.load` is plain pickle: a weights file can run code. Such files need nothing but NumPy arrays and plain containers, so
this unpickler knows those and refuses the rest. Nothing of NumPy is called by a file either, which could be made to read or write
any memory: what the file says of an array is kept as plain values, checked, and made an array at the end.
"""

import math
import mmap
import os
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from paddleseg_ext.errors import WeightsError


class _Type:
    """What a file says of a dtype: a number's kind, size and order of bytes."""

    __slots__ = ("name", "order")

    def __init__(self, name: str, *_: Any) -> None:
        parts = re.fullmatch(r"([<>|=]?)([?]|b1|[iu][1248]|f[248]|c8|c16)", name)
        if parts is None:
            raise ValueError(f"no array of numbers: {name!r}")
        self.order, self.name = parts[1] or "=", parts[2]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *fields = state
        if order not in ("<", ">", "|", "=") or any(field is not None for field in fields[:3]):
            raise ValueError("no array of numbers")
        self.order = order

    def made(self) -> np.dtype:
        return np.dtype(self.order + self.name)


class _Array:
    """What a file says of an array, or of a number, whose shape is None."""

    __slots__ = ("data", "kind", "order", "shape")

    def __init__(self, data: Any = None, kind: Any = None, shape: Any = None, order: str = "C") -> None:
        self.data, self.kind, self.shape, self.order = data, kind, shape, order

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.kind, in_columns, self.data = state
        self.order = "F" if in_columns else "C"

    def made(self) -> Any:
        shape = () if self.shape is None else self.shape
        if not isinstance(self.kind, _Type) or not isinstance(self.data, bytes | bytearray):
            raise ValueError("an array without numbers")
        if type(shape) is not tuple or any(type(side) is not int or side < 0 for side in shape):
            raise ValueError(f"an array of shape {shape!r}")
        kind = self.kind.made()
        if math.prod(shape) * kind.itemsize != len(self.data):
            raise ValueError(f"{len(self.data)} bytes for an array of shape {list(shape)}")
        array = np.frombuffer(self.data, kind).reshape(shape, order="F" if self.order == "F" else "C")
        return array[()] if self.shape is None else array.copy("A")


def _encoded(text: str, encoding: str) -> bytes:
    """How pickle's protocol 2 writes bytes."""
    if encoding != "latin1":
        raise ValueError(f"bytes as {encoding!r}")
    return text.encode(encoding)


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encoded,
    ("collections", "OrderedDict"): lambda pairs=(): dict(pairs),
    **{(f"{core}.multiarray", "_reconstruct"): lambda *_: _Array() for core in ("numpy.core", "numpy._core")},
    **{
        (f"{core}.multiarray", "scalar"): lambda kind, data: _Array(data, kind)
        for core in ("numpy.core", "numpy._core")
    },
    **{(f"{core}.numeric", "_frombuffer"): _Array for core in ("numpy.core", "numpy._core")},
}


class _Mapped(mmap.mmap):
    """A file that ends where it ends."""

    def readline(self) -> bytes:
        line = super().readline()
        if not line.endswith(b"\n"):
            raise EOFError("it is cut off")
        return line


class _ArraysOnly(pickle._Unpickler):  # the one in Python: a small file cannot make it allocate much
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return object()  # an argument of _reconstruct, never called
        if (module, name) not in _KNOWN:
            raise WeightsError(f"it asks to run '{module}.{name}', which weights never need")
        known = _KNOWN[module, name]
        return lambda *arguments: known(*arguments)  # one of its own, on which a file may set what it likes


def _made(value: Any, seen: dict[int, Any]) -> Any:
    """A file's content with its arrays; what it holds in several places is made once."""
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, _Array):
        seen[id(value)] = value.made()
    elif isinstance(value, list):
        seen[id(value)] = value
        value[:] = [_made(part, seen) for part in value]
    elif isinstance(value, dict):
        seen[id(value)] = value
        value.update({key: _made(part, seen) for key, part in value.items()})
    elif isinstance(value, tuple):
        seen[id(value)] = tuple(_made(part, seen) for part in value)
    else:
        return value
    return seen[id(value)]


def safe_load(path: str, *_: Any, **__: Any) -> dict[str, Any]:
    """Read a file that `paddle.save` wrote: arrays and plain values by name. Further arguments of paddle.load are ignored.

    Raises:
        WeightsError: no such file, not a weights file, or one that contains more than arrays and plain values.
    """
    if not os.path.isfile(path):
        raise WeightsError(f"{path}: no such weights file")
    try:
        with open(path, "rb") as file, _Mapped(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            content = _made(_ArraysOnly(mapped, encoding="latin1").load(), {})
        if isinstance(content, dict):
            _join_slices(content)
    except WeightsError as error:
        raise WeightsError(f"{path}: refused, {error}") from None
    except Exception as error:  # a broken pickle raises almost anything
        raise WeightsError(f"{path}: not a weights file of Paddle ({type(error).__name__}: {error})") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: weights by name are expected, but this holds a {type(content).__name__}")
    return content


def _join_slices(content: dict[str, Any]) -> None:
    """Paddle cuts arrays above 1 GiB into slices under pickle protocols 2 and 3; put them together again."""
    for name, info in content.pop("UnpackBigParamInfor@@", {}).items():
        slices = [content.pop(part) for part in info["slices"]]
        content[name] = np.concatenate(slices).reshape(info["OriginShape"])
