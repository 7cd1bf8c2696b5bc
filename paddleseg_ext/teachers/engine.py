"""The teacher run by an inference engine, proved to give the same as its layer."""

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import paddle
from paddle import Tensor

from paddleseg_ext.distill.own_resolution import Source
from paddleseg_ext.inference.select import Bounds, Engine, compare, exceeds
from paddleseg_ext.inference.worker import EngineError, Worker
from paddleseg_ext.teachers.model import ModelTeacher
from paddleseg_ext.teachers.resting import Resting
from paddleseg_ext.types import Batch, TeacherOutputs

_log = logging.getLogger(__name__)

_LIVES = 2  # of an engine's process; what ends it twice would end it again


@dataclass(frozen=True)
class Wanted:
    """What an engine must give to stand for a teacher's layer.

    names: of the tensors, the number of an output or what the recorder calls it, each once; outputs first. logits, features:
    which of them are the outputs, in their order, None for one that is not wanted, and the features, by key. own: where outputs
    are before their final resize, which is left to us: not every engine takes it. enlarged: the numbers of those that are wanted
    at the size of the image.
    """

    names: Sequence[str]
    logits: Sequence[int | None]
    features: Mapping[str, int]
    own: Mapping[int, Source] = field(default_factory=dict)
    enlarged: frozenset[int] = frozenset()

    @classmethod
    def of(
        cls,
        layer: ModelTeacher,
        size: Sequence[int],
        outputs: Sequence[Sequence[int]],
        keys: Iterable[str],
        used: Collection[int] | None = None,
    ) -> "Wanted":
        """Outputs, at the network's own resolution where it is known, and the features of these keys.

        `size`: height and width of images; `outputs`: the shapes of the layer's outputs for them, empty for one that is no
        tensor; `used`: the numbers of those that are wanted, by default all.
        """
        used = range(len(outputs)) if used is None else used
        enlarged = {i for i in layer.enlarged & layer.own.keys() if i in used and list(outputs[i][2:]) == list(size)}
        own = {i: source for i, source in layer.own.items() if i in enlarged or i not in layer.enlarged}
        given = [own[index].layer if index in own else str(index) for index in range(len(outputs))]
        logits = [name if index in used else None for index, name in enumerate(given)]
        keys = list(keys)
        names = list(dict.fromkeys([*(name for name in logits if name is not None), *keys]))
        features = {key: names.index(key) for key in keys}
        numbers = [None if name is None else names.index(name) for name in logits]
        return cls(names, numbers, features, own, frozenset(enlarged))

    def by_layer(self, layer: ModelTeacher) -> Callable[[Tensor], list[Tensor]]:
        """The same tensors by the layer."""

        @paddle.no_grad()
        def run(images: Tensor) -> list[Tensor]:
            outputs = list(layer.model(images))
            caught = layer.recorder.take()
            return [outputs[int(name)] if name.isdigit() else caught[name] for name in self.names]

        return run

    def logits_of(self, tensors: Sequence[Tensor], images: Tensor) -> list[Tensor]:
        """The outputs as the layer gives them; one that is not wanted is empty."""
        size = images.shape[2:]
        logits = []
        for number, index in enumerate(self.logits):
            x = paddle.zeros([0]) if index is None else tensors[index]
            if index is not None and number in self.own:
                source = self.own[number]
                x = source.enlarged(x, size) if number in self.enlarged else source.centred(x, size)
            logits.append(x)
        return logits


class EngineTeacher:
    """A teacher whose tensors an engine computes.

    Args:
        layer: the teacher itself, which answers where the engine cannot: images of a size for which it is not within the bounds,
            and all from the moment when it has died twice.
        run: the engine.
        wanted: what it gives.
        reset: called after each run; an engine in this process changes its settings, such as Paddle's number of threads.
        bounds: how far it may be from the layer. Images of each other size than `proved` are first given to both.
        proved: height and width.
        folder: for the layer's weights while the engine answers, which take no memory there; None leaves them where they are.
    """

    def __init__(
        self,
        layer: ModelTeacher,
        run: Engine,
        wanted: Wanted,
        reset: Callable[[], None],
        bounds: Bounds | None = None,
        proved: tuple[int, int] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.layer, self.run, self.wanted, self.reset = layer, run, wanted, reset
        self.bounds = bounds or Bounds()
        self._sizes = {} if proved is None else {proved: ""}  # and what is wrong with them
        self.fallbacks, self._deaths = 0, 0
        self._asked: Batch | None = None
        self._resting: Resting | None = None
        if folder is not None:
            with contextlib.suppress(OSError):  # no room: they stay in memory
                self._resting = Resting(layer.model, folder)
        self._rest()

    def ask(self, batch: Batch) -> None:
        """Let the engine begin; until the teacher is called with the same batch, the caller may do something else."""
        differs = self._sizes.get(_size(batch))  # then the layer is asked
        if isinstance(self.run, Worker) and self._deaths < _LIVES and not differs:
            # A worker that cannot be asked cannot be waited for either, which is where it is noticed.
            with contextlib.suppress(EngineError):
                self.run.ask(batch.images)
            self._asked = batch
            self._rest()

    @paddle.no_grad()
    def __call__(self, batch: Batch) -> TeacherOutputs:
        try:
            tensors = self._proved(batch)
        except EngineError as error:
            if self.fallbacks == 0:
                _log.warning("the teacher's engine: %s; the layer answers", error)
            self.fallbacks += 1
            return self.layer(batch)
        finally:
            self.reset()
        self._rest()
        logits = tuple(self.wanted.logits_of(tensors, batch.images))
        return TeacherOutputs(logits, {key: tensors[index] for key, index in self.wanted.features.items()})

    def _rest(self) -> None:
        if self._resting is not None:
            self._resting.rest()

    def wake(self) -> None:
        """Have the layer's weights in memory again, until the next answer."""
        if self._resting is not None:
            self._resting.wake()

    def _proved(self, batch: Batch) -> Sequence[Tensor]:
        size = _size(batch)
        if self._sizes.get(size):
            raise EngineError(self._sizes[size])
        tensors = self._tensors(batch)
        if size not in self._sizes:
            trial = compare("", [tensors], [self.wanted.by_layer(self.layer)(batch.images)])
            differs = exceeds(trial, self.bounds)
            self._sizes[size] = f"differs at {size[0]}x{size[1]}: {differs}" if differs else ""
            if differs:
                raise EngineError(self._sizes[size])
        return tensors

    def _tensors(self, batch: Batch) -> Sequence[Tensor]:
        if self._deaths >= _LIVES:
            raise EngineError(f"its process ended {_LIVES} times")
        asked, self._asked = self._asked is batch, None
        try:
            return self.run.answer() if asked and isinstance(self.run, Worker) else self.run(batch.images)
        except EngineError:
            if not isinstance(self.run, Worker) or self.run.is_alive:
                raise
            self._deaths += 1
            self.run.close()
            self.run = self.run.again()
            return self.run(batch.images)


def _size(batch: Batch) -> tuple[int, int]:
    """Height and width."""
    return batch.images.shape[-2], batch.images.shape[-1]
