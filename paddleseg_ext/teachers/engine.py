"""The teacher run by an inference engine, proved to give the same as its layer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import paddle
from paddle import Tensor

from paddleseg_ext.inference.runners import Runner
from paddleseg_ext.teachers.model import ModelTeacher
from paddleseg_ext.types import Batch, TeacherOutputs


@dataclass(frozen=True)
class Wanted:
    """What an engine must give to stand for a teacher's layer.

    names: of the tensors, the number of an output or what the recorder calls it, each once; the first is the first output's
    logits. logits, features: which of them are the outputs, in their order, and the features, by key.
    """

    names: Sequence[str]
    logits: Sequence[int]
    features: Mapping[str, int]

    @classmethod
    def of(cls, layer: ModelTeacher, outputs: int, keys: Iterable[str]) -> "Wanted":
        """All outputs, at the network's own resolution where it is known, and the features of these keys."""
        logits = [layer.own.get(index, str(index)) for index in range(outputs)]
        names = list(dict.fromkeys([*logits, *keys]))
        return cls(names, [names.index(name) for name in logits], {key: names.index(key) for key in keys})

    def by_layer(self, layer: ModelTeacher) -> Callable[[Tensor], list[Tensor]]:
        """The same tensors by the layer."""

        def run(images: Tensor) -> list[Tensor]:
            said = layer(Batch(images, paddle.zeros([images.shape[0], 1, 1], "int64")))
            found = dict(zip(self.logits, said.logits, strict=True))
            found.update({index: said.features[key] for key, index in self.features.items()})
            return [found[index] for index in range(len(self.names))]

        return run


class EngineTeacher:
    """A teacher whose tensors an engine computes.

    Args:
        layer: the teacher itself, which answers where the engine cannot: batches of another shape than it was made for.
        run: the engine.
        wanted: what it gives.
        reset: called after each run; engines change settings of the whole process, such as Paddle's number of threads.
    """

    def __init__(self, layer: ModelTeacher, run: Runner, wanted: Wanted, reset: Callable[[], None]) -> None:
        self.layer, self.run, self.wanted, self.reset = layer, run, wanted, reset
        self.fallbacks = 0

    @paddle.no_grad()
    def __call__(self, batch: Batch) -> TeacherOutputs:
        try:
            tensors = self.run(batch.images)
        except Exception:
            self.fallbacks += 1
            return self.layer(batch)
        finally:
            self.reset()
        features = {key: tensors[index] for key, index in self.wanted.features.items()}
        return TeacherOutputs(tuple(tensors[index] for index in self.wanted.logits), features)
