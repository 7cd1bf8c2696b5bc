"""Between the samples of a reader and the requests to teachers."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddleseg_ext.errors import ConfigError, DataError, closest
from paddleseg_ext.service.conf import Variable
from paddleseg_ext.service.pipeline import Arrays, Task
from paddleseg_ext.service.spec import ModelSpec, find

Column = Any
"""One slot of several samples: an array, or a list of arrays where they differ in shape."""

Batch = tuple[Column, ...]


@dataclass(frozen=True)
class Layout:
    """What a sample is made of and who gets what.

    ins: the name of each slot, None where it needs none. sent: by the number of a slot, the input that it is. outputs: what is
    appended, by name or alias. rows: of one request at most, None for all of a batch. variables: types and shapes of the slots
    and of the outputs, where they are known.
    """

    ins: Sequence[str | None]
    sent: Mapping[int, str]
    outputs: Sequence[str]
    rows: int | None = None
    variables: Sequence[Variable] | None = None

    def task(self, batch: Batch) -> Task:
        """A batch as requests."""
        size = len(batch[0])
        step = self.rows or size
        parts = []
        for start in range(0, size, step):
            parts.append({name: batch[slot][start : start + step] for slot, name in self.sent.items()})
        return Task(batch, parts)

    def with_answers(self, batch: Batch, answers: Arrays) -> Batch:
        """The slots of a batch followed by what the teachers say of it."""
        said: list[Column] = [_whole(answers[name]) for name in self.outputs]
        if self.variables is not None:
            wanted = self.variables[len(self.ins) :]
            said = [_as_declared(x, variable, "the teachers gave") for x, variable in zip(said, wanted, strict=True)]
        return (*batch, *said)

    def stacked(self, samples: Sequence[Sequence[Any]]) -> Batch:
        """Samples as a batch of copies."""
        for sample in samples:
            self._check_count(sample, "a sample")
        columns: list[Column] = []
        for slot, name in enumerate(self.ins):
            arrays = [np.asarray(sample[slot]) for sample in samples]
            if self.variables is not None:
                variable = self.variables[slot]
                arrays = [_as_declared(x[None], variable, "the reader gave")[0] for x in arrays]
            shapes = {x.shape for x in arrays}
            if len(shapes) == 1:
                columns.append(np.stack(arrays))
            elif slot in self.sent:
                raise DataError(
                    f"samples of one batch differ in '{name}', which teachers get: shapes {sorted(map(list, shapes))[:4]}"
                )
            else:
                columns.append([x.copy() for x in arrays])
        return tuple(columns)

    def copied(self, batch: Sequence[Any]) -> Batch:
        """A batch of arrays as one that nobody else writes to."""
        self._check_count(batch, "a batch")
        columns = tuple(np.array(column) for column in batch)
        sizes = {len(column) if column.ndim else -1 for column in columns}
        if len(sizes) != 1 or -1 in sizes:
            raise DataError(f"the reader gave a batch of arrays with the shapes {[list(c.shape) for c in columns]}")
        return columns

    def _check_count(self, given: Any, what: str) -> None:
        count = len(given) if isinstance(given, list | tuple) else None
        if count != len(self.ins):
            slots = ", ".join(str(name) for name in self.ins)
            said = f"{what} of {count}" if count is not None else f"{type(given).__name__} for {what}"
            raise DataError(f"the reader gave {said}, but there are {len(self.ins)} ins: {slots}")


def layout(
    ins: Sequence[str | None],
    outputs: Sequence[str],
    spec: ModelSpec,
    rows: int | None,
    variables: Sequence[Variable] | None = None,
    sent: Sequence[int] | None = None,
    others: Mapping[str, str] | None = None,
) -> Layout:
    """Which slots a model takes.

    Args:
        ins, outputs, rows, variables: as in Layout.
        spec: the model.
        sent: all slots that it may get, by number.
        others: further names that tensors have, to the model's own.

    Raises:
        ConfigError: it has no such output, or takes something that no slot is.
    """
    others = others or {}
    asked = [name if find(spec.outputs, name) else others.get(name, name) for name in outputs]
    for name in asked:
        if find(spec.outputs, name) is None:
            known = {n for tensor in spec.outputs for n in (tensor.name, tensor.alias) if n}
            raise ConfigError(
                f"predicts: the teachers' model '{spec.name}' has no output '{name}'{closest(name, known)}"
            )
    by_input: dict[str, int] = {}
    for slot, slot_name in enumerate(ins):
        tensor = None
        if slot_name and (sent is None or slot in sent):
            tensor = find(spec.inputs, slot_name) or find(spec.inputs, others.get(slot_name, slot_name))
        if tensor is not None:
            by_input.setdefault(tensor.name, slot)
    named = [str(name) for name in ins if name]
    for tensor in spec.inputs:
        if tensor.name not in by_input:
            alias = f" (or '{tensor.alias}')" if tensor.alias not in ("", tensor.name) else ""
            raise ConfigError(
                f"ins: the teachers' model '{spec.name}' takes '{tensor.name}'{alias}, but ins are {', '.join(named) or 'empty'}"
            )
    return Layout(ins, {slot: name for name, slot in by_input.items()}, asked, rows, variables)


Take = Callable[[Iterable[Any], Layout], Iterator[Batch]]
"""What a reader gives, as batches that nobody else writes to. Those that are empty are left out."""


def from_samples(size: int) -> Take:
    """Of a reader that gives samples: batches of `size`, the last as many as are left, or were read before it failed."""

    def take(samples: Iterable[Any], layout: Layout) -> Iterator[Batch]:
        source = iter(samples)
        while True:
            some, failure = _next(source, size)
            if some:
                yield layout.stacked(some)
            if failure is not None:
                raise failure
            if len(some) < size:
                return

    return take


def _next(source: Iterator[Any], size: int) -> tuple[list[Any], Exception | None]:
    """So many of what is left, or those before an exception, and that."""
    some: list[Any] = []
    try:
        for one in itertools.islice(source, size):
            some.append(one)
    except Exception as error:
        return some, error
    return some, None


def from_lists(size: int | None = None) -> Take:
    """Of a reader that gives lists of samples: a batch each, or batches of `size` whatever the lists have."""

    def take(lists: Iterable[Any], layout: Layout) -> Iterator[Batch]:
        if size is not None:
            return from_samples(size)(itertools.chain.from_iterable(lists), layout)
        return (layout.stacked(some) for some in lists if len(some))

    return take


def from_batches(size: int | None = None) -> Take:
    """Of a reader that gives a tuple of arrays for each batch: the same, or batches of `size`."""

    def take(batches: Iterable[Any], layout: Layout) -> Iterator[Batch]:
        if size is not None:
            return from_samples(size)((row for batch in batches for row in rows(layout.copied(batch))), layout)
        return (batch for batch in map(layout.copied, batches) if len(batch[0]))

    return take


def rows(batch: Batch) -> Iterator[tuple[np.ndarray, ...]]:
    """The samples of a batch."""
    for row in range(len(batch[0])):
        yield tuple(column[row, ...] if isinstance(column, np.ndarray) else column[row] for column in batch)


def _whole(x: np.ndarray) -> np.ndarray:
    """As float32, where numbers of 16 bits have only been chosen for the way: losses expect whole ones."""
    return x.astype(np.float32) if x.dtype == np.float16 else x


def _as_declared(x: np.ndarray, variable: Variable, who: str) -> np.ndarray:
    """Rows in the type and shape that the file says."""
    shape = (len(x), *variable.shape)
    fits = x.ndim == len(shape) and all(w in (-1, size) for w, size in zip(shape, x.shape, strict=True))
    if not fits and (-1 in shape or x.size != np.prod(shape)):
        raise DataError(f"{who} '{variable.name}' as {list(x.shape[1:])}, but the file says {list(variable.shape)}")
    return (x if fits else x.reshape(shape)).astype(variable.dtype, copy=False)
