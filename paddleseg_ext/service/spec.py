"""What a served model takes and gives."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

DATATYPES = ("FP32", "FP16", "BF16", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "BOOL")
"""Names of the Open Inference Protocol."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    datatype: one of DATATYPES. shape: with the batch first; -1 where it may change. alias: another name it answers to; the
    same as `name` where there is none.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    alias: str = ""

    def answers_to(self, name: str) -> bool:
        """Whether this is the tensor that somebody calls `name`."""
        return name in (self.name, self.alias)


@dataclass(frozen=True)
class ModelSpec:
    """A served model. `version` is a text, as in the protocol."""

    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def digest(self) -> str:
        """Changes with the name or with any output, so that a lease says what a teacher serves."""
        content = json.dumps([self.name, [asdict(output) for output in self.outputs]], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def find(tensors: Sequence[TensorSpec], name: str) -> TensorSpec | None:
    """The tensor of this name or alias."""
    return next((tensor for tensor in tensors if tensor.answers_to(name)), None)
