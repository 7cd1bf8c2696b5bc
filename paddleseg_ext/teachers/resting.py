"""Weights of a model that is hardly ever asked, in a file."""

import tempfile
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

from paddleseg_ext.inference.memory import trim


class Resting:
    """A model whose float32 weights can lie in a file, where they take no memory, while nobody asks it.

    It wakes when it is called. Nothing may change its weights, which are written to the file once, or look at them while it
    rests.

    Args:
        model: awake.
        folder: where the file is made, which has no name and goes with this process.

    Raises: OSError, where there is no room; nothing has changed then.
    """

    def __init__(self, model: nn.Layer, folder: Path) -> None:
        named = model.state_dict().values()
        self._weights = list({id(t): t for t in named if t.dtype == paddle.float32}.values())
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (it lives as long as this object)
        for weight in self._weights:
            self._file.write(weight.numpy().data)
        self._file.flush()
        self._rests = False
        model.register_forward_pre_hook(lambda *_: self.wake())

    def rest(self) -> None:
        """Give the memory back; costs nothing where that is done."""
        if not self._rests:
            for weight in self._weights:
                weight._clear_data()
            trim()
        self._rests = True

    def wake(self) -> None:
        """Read the weights; costs nothing where that is done."""
        if not self._rests:
            return
        self._file.seek(0)
        for weight in self._weights:
            values = np.empty(weight.shape, np.float32)
            self._file.readinto(values.reshape(-1).view(np.uint8).data)  # type: ignore[attr-defined]
            paddle.to_tensor(values)._share_buffer_to(weight)
        self._rests = False
