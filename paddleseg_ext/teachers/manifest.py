"""What a store of a teacher's outputs holds, and how its maps are laid out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddleseg_ext.errors import CacheError

FILE = "manifest.json"
_FORMAT = 1
_SHARDS = 64  # as many as that, unless a shard would hold more than _IMAGES
_IMAGES = 64


@dataclass(frozen=True)
class Stored:
    """One tensor of a teacher: an output, whose key is its number, or a feature.

    layer: where it is caught. stride: pixels of the image for one position, by height and width.
    """

    key: str
    is_output: bool
    layer: str
    channels: int
    stride: tuple[int, int]

    def __str__(self) -> str:
        return f"{'output' if self.is_output else 'feature'} {self.key}, {self.channels} channels at stride {self.stride[0]}"


@dataclass(frozen=True)
class Manifest:
    """What a store holds.

    model: the teacher's component as plain values, without weights' paths. weights: their digest. classes, outputs: how many it
    has. top_k: how many classes of an output are kept for each position, None for all. precision: in which it computed. view:
    the transforms by which the teacher saw the images. names: of the images. versions: of what computed it, for information.
    """

    model: Mapping[str, Any]
    weights: str
    classes: int
    outputs: int
    tensors: tuple[Stored, ...]
    top_k: int | None
    precision: str
    view: Sequence[Any]
    names: tuple[str, ...]
    versions: Mapping[str, str]

    @property
    def per_shard(self) -> int:
        """Images of a shard."""
        return min(-(-len(self.names) // _SHARDS), _IMAGES)

    def shards(self) -> list[tuple[str, ...]]:
        """The images of each shard."""
        count = self.per_shard
        return [self.names[first : first + count] for first in range(0, len(self.names), count)]

    def parts(self, tensor: Stored) -> list[tuple[str, int]]:
        """The arrays that a tensor is stored as: type and channels of each.

        With top_k, an output is its largest logits in falling order, behind them the logarithm of the mean exponential of the
        others, and the numbers of the classes that the largest belong to.
        """
        if not self.is_sparse(tensor):
            return [("<f2", tensor.channels)]
        assert self.top_k is not None
        return [("<f2", self.top_k + 1), ("|u1" if tensor.channels <= 256 else "<u2", self.top_k)]

    def is_sparse(self, tensor: Stored) -> bool:
        """Whether only some classes of a tensor are kept."""
        return self.top_k is not None and tensor.is_output and self.top_k + 1 < tensor.channels

    def bytes_of(self, tensor: Stored, positions: int) -> int:
        """The size of a tensor of so many positions."""
        return sum(np.dtype(kind).itemsize * channels for kind, channels in self.parts(tensor)) * positions

    def text(self) -> str:
        """As JSON, which `read_manifest` reads."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=1) + "\n"

    def difference(self, other: "Manifest") -> str | None:
        """In what two differ, in words, or None where one can stand for the other."""
        words = {
            "model": "another teacher's model",
            "weights": "a teacher with other weights",
            "classes": "another number of classes",
            "outputs": "another number of outputs",
            "tensors": "other tensors of the teacher",
            "top_k": "outputs of another --top_k",
            "precision": "outputs computed in another --precision",
            "view": "other transforms of val_dataset",
            "names": "another list of images",
        }
        mine, others = as_json(asdict(self)), as_json(asdict(other))
        return next((text for field, text in words.items() if mine[field] != others[field]), None)


def read_manifest(folder: Path) -> Manifest:
    """A store's manifest.

    Raises:
        CacheError: there is none, or it cannot be read.
    """
    path = folder / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("format") != _FORMAT:
            raise ValueError("another format")
        tensors = tuple(Stored(**{**entry, "stride": tuple(entry["stride"])}) for entry in found.pop("tensors"))
        return Manifest(**{**found, "tensors": tensors, "names": tuple(found["names"])})
    except FileNotFoundError:
        raise CacheError(
            f"{folder}: no stored outputs of a teacher ({FILE} is missing); cache_teacher writes them"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(f"{path}: cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from None


def as_json(value: Any) -> Any:
    """A value as JSON gives it back: lists for tuples, texts for numbers as keys."""
    return json.loads(json.dumps(value))
