"""Reading Paddle's weight files without running anything they contain.

`paddle.load` is plain pickle: a weights file can run code. Such files need nothing but NumPy arrays and plain containers,
so this unpickler knows those and refuses the rest.
"""

import os
import pickle
from typing import Any

import numpy as np

from paddleseg_ext.errors import WeightsError

_ALLOWED = {
    *(("numpy", name) for name in ("ndarray", "dtype")),
    *((f"{core}.multiarray", name) for core in ("numpy.core", "numpy._core") for name in ("_reconstruct", "scalar")),
    *((f"{core}.numeric", "_frombuffer") for core in ("numpy.core", "numpy._core")),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    *((module, name) for module in ("builtins", "__builtin__") for name in ("tuple", "list", "dict", "set", "complex")),
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise WeightsError(f"it asks to run '{module}.{name}', which weights never need")
        return super().find_class(module, name)


def safe_load(path: str, *_: Any, **__: Any) -> dict[str, Any]:
    """Read a file that `paddle.save` wrote: arrays and plain values by name. Further arguments of paddle.load are ignored.

    Raises:
        WeightsError: no such file, not a weights file, or one that contains more than arrays and plain values.
    """
    if not os.path.isfile(path):
        raise WeightsError(f"{path}: no such weights file")
    try:
        with open(path, "rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()
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
