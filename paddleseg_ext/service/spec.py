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

    def words(self) -> str:
        """`name (alias) datatype shape`."""
        alias = f" ({self.alias})" if self.alias not in ("", self.name) else ""
        return f"{self.name}{alias} {self.datatype} {list(self.shape)}"


@dataclass(frozen=True)
class ModelSpec:
    """A served model. `version` is a text, as in the protocol."""

    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def digest(self) -> str:
        """Changes with the name, any input or any output: what goes to one teacher may go to all of the same digest."""
        tensors = [[asdict(tensor) for tensor in tensors] for tensors in (self.inputs, self.outputs)]
        content = json.dumps([self.name, *tensors], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def find(tensors: Sequence[TensorSpec], name: str) -> TensorSpec | None:
    """The tensor of this name or alias."""
    return next((tensor for tensor in tensors if tensor.answers_to(name)), None)
