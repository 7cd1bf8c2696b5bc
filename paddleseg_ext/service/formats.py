"""In which form outputs travel: their data type, and all classes or the highest few."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from paddleseg_ext.service.spec import ModelSpec, TensorSpec
from paddleseg_ext.service.wire import DTYPES, is_float

VALUES, CLASSES = ".values", ".classes"
"""Ends of the names of the two tensors that stand for an output of which the highest classes travel."""

PARAMETER = "paddleseg_ext"
"""The entry of a model configuration's parameters that holds an Extras."""


@dataclass(frozen=True)
class Extras:
    """What the protocol has no field for. aliases: by name. classes: how many an output has that travels as its highest few."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)

    def write(self) -> str:
        """As text."""
        return json.dumps({"aliases": dict(self.aliases), "classes": dict(self.classes)}, sort_keys=True)

    @classmethod
    def read(cls, text: str) -> "Extras":
        """The inverse of `write`. Raises ValueError."""
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("no mapping")
        aliases, classes = content.get("aliases", {}), content.get("classes", {})
        if not isinstance(aliases, dict) or not all(isinstance(v, str) for v in aliases.values()):
            raise ValueError("aliases are no texts")
        if not isinstance(classes, dict) or not all(isinstance(v, int) and 0 < v < 2**16 for v in classes.values()):
            raise ValueError("classes are no numbers")
        return cls(aliases, classes)


@dataclass(frozen=True)
class OutputForm:
    """How a server sends outputs.

    datatype: of floating-point outputs. top_k: of outputs [N, C, ...] with C above k + 1, send the k highest values, which
    classes they are, and one value for the others; 0: send all.
    """

    datatype: str = "FP16"
    top_k: int = 0

    def seen(self, spec: ModelSpec) -> ModelSpec:
        """What a student gets of a model."""
        inputs = tuple(replace(x, alias=x.alias or x.name) for x in spec.inputs)
        outputs = tuple(replace(self._typed(x), alias=x.alias or x.name) for x in spec.outputs)
        return replace(spec, inputs=inputs, outputs=outputs)

    def sent(self, spec: ModelSpec) -> tuple[ModelSpec, Extras]:
        """What travels, and what makes the one into the other."""
        outputs: list[TensorSpec] = []
        classes: dict[str, int] = {}
        for output in self.seen(spec).outputs:
            if self.shortens(output):
                classes[output.name] = output.shape[1]
                outputs += _pair(output, self.top_k, self.datatype)
            else:
                outputs.append(output)
        aliases = {t.name: t.alias for t in (*spec.inputs, *spec.outputs) if t.alias and t.alias != t.name}
        return replace(spec, outputs=tuple(outputs)), Extras(aliases, classes)

    def shortens(self, output: TensorSpec) -> bool:
        """Whether an output travels as its highest classes."""
        size = output.shape[1] if len(output.shape) > 1 else 0
        return 0 < self.top_k < size - 1 and is_float(output.datatype)

    def convert(self, output: TensorSpec, array: np.ndarray) -> dict[str, np.ndarray]:
        """What travels of an output, by name."""
        if self.shortens(output):
            values, classes = highest(array, self.top_k)
            return {output.name + VALUES: cast(values, self.datatype), output.name + CLASSES: classes}
        return {output.name: cast(array, self._typed(output).datatype)}

    def _typed(self, output: TensorSpec) -> TensorSpec:
        return replace(output, datatype=self.datatype) if is_float(output.datatype) else output


def cast(array: np.ndarray, datatype: str) -> np.ndarray:
    """The array in a data type; values beyond the range of FP16 become its largest."""
    dtype = DTYPES[datatype]
    if datatype != "FP16" or array.dtype == dtype:
        return array.astype(dtype, copy=False)
    try:
        with np.errstate(over="raise"):
            return array.astype(dtype)
    except FloatingPointError:
        largest = np.finfo(np.float16).max
        return np.clip(array, -largest, largest).astype(dtype)


def highest(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k highest of [N, C, ...] and their classes.

    Returns:
        values float32 [N, k + 1, ...]: the highest in falling order, then the logarithm of the mean of exp over all others, with
        which the softmax of the k classes is what it was.
        classes [N, k, ...]: UINT8, above 256 classes INT16, above 32768 INT32.
    """
    logits = logits.astype(np.float32, copy=False)
    size = logits.shape[1]
    order = np.argpartition(logits, size - k, axis=1)
    top, others = order[:, size - k :], np.take_along_axis(logits, order[:, : size - k], axis=1)
    values = np.take_along_axis(logits, top, axis=1)
    falling = np.argsort(-values, axis=1, kind="stable")
    values, top = np.take_along_axis(values, falling, axis=1), np.take_along_axis(top, falling, axis=1)
    largest = others.max(axis=1, keepdims=True)
    rest = largest + np.log(np.exp(others - largest).mean(axis=1, keepdims=True))
    kind = np.uint8 if size <= 256 else np.int16 if size <= 2**15 else np.int32
    return np.concatenate([values, rest], axis=1), top.astype(kind)


def expand(values: np.ndarray, classes: np.ndarray, size: int) -> np.ndarray:
    """The inverse of `highest` for `size` classes, in the type of `values`: every class but the k highest gets the last value.

    Raises:
        ValueError: the two do not fit, or a class is not below `size`.
    """
    wanted = (values.shape[0], values.shape[1] - 1, *values.shape[2:])
    if classes.shape != wanted or wanted[1] > size:
        raise ValueError(f"values {list(values.shape)} take classes {list(wanted)}, but they are {list(classes.shape)}")
    if classes.size and (int(classes.min()) < 0 or int(classes.max()) >= size):
        raise ValueError(f"classes from {classes.min()} to {classes.max()}, but there are {size}")
    logits = np.repeat(values[:, -1:], size, axis=1)
    np.put_along_axis(logits, classes.astype(np.int64), values[:, :-1], axis=1)
    return logits


def seen(spec: ModelSpec, extras: Extras) -> ModelSpec:
    """What a student gets of a model that a server describes. Raises ValueError where the two do not fit."""

    def named(tensor: TensorSpec) -> TensorSpec:
        return replace(tensor, alias=extras.aliases.get(tensor.name, tensor.name))

    outputs: list[TensorSpec] = []
    for output in spec.outputs:
        whole = output.name.removesuffix(VALUES)
        if whole in extras.classes and whole != output.name and len(output.shape) > 1:
            shape = (output.shape[0], extras.classes[whole], *output.shape[2:])
            outputs.append(TensorSpec(whole, output.datatype, shape, extras.aliases.get(whole, whole)))
        elif output.name.removesuffix(CLASSES) not in extras.classes:
            outputs.append(named(output))
    missing = set(extras.classes) - {output.name for output in outputs}
    if missing:
        raise ValueError(f"no output {', '.join(sorted(name + VALUES for name in missing))}")
    return replace(spec, inputs=tuple(map(named, spec.inputs)), outputs=tuple(outputs))


def _pair(output: TensorSpec, k: int, datatype: str) -> list[TensorSpec]:
    batch, size, *rest = output.shape
    kind = "UINT8" if size <= 256 else "INT16" if size <= 2**15 else "INT32"
    alias = output.alias or output.name

    def part(end: str, kind: str, count: int) -> TensorSpec:
        return TensorSpec(output.name + end, kind, (batch, count, *rest), alias + end)

    return [part(VALUES, datatype, k + 1), part(CLASSES, kind, k)]


def fits(array: Any, shape: tuple[int, ...], rows: int) -> bool:
    """Whether an array has a shape of a TensorSpec, with `rows` for a batch that may change."""
    wanted = (rows, *shape[1:]) if shape and shape[0] < 0 else shape
    return array.ndim == len(wanted) and all(w in (-1, size) for w, size in zip(wanted, array.shape, strict=True))
