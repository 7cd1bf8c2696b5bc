"""Teachers on other machines, asked ahead of the student."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from paddleseg_ext.service.endpoints import OpenSource, Rates
from paddleseg_ext.service.pipeline import Options, Pipeline, Task
from paddleseg_ext.service.spec import ModelSpec
from paddleseg_ext.service.transport import Connect
from paddleseg_ext.types import Batch, TeacherOutputs

PREFIX = "teacher: "
"""Begins the names of what the pipeline adds to `Batch.extra`."""

_LEAST, _MOST = 4, 32  # batches that are held ahead of the student
_BYTES = 1 << 30  # that they should not exceed

Sample = dict[str, Any]
Ahead = Callable[[Iterator[Sample], Callable[[], bool]], Iterator[Sample]]


@dataclass(frozen=True)
class Service:
    """Teachers that serve one model.

    spec: the model. image: its input, by name. timeout: seconds without any answer after which training ends.
    """

    spec: ModelSpec
    image: str
    open_source: OpenSource
    connect: Connect
    timeout: float

    def ask(self, images: np.ndarray, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """What the teachers say of some images, waiting for it."""
        with self._open(_LEAST) as pipeline:
            [(_, said)] = pipeline.run([Task(None, [{self.image: images}])], outputs)
        return said

    def ahead(self, outputs: Sequence[str]) -> Ahead:
        """Reads collated samples ahead and adds outputs to them, which RemoteTeacher finds in its batch."""

        def run(samples: Iterator[Sample], stopped: Callable[[], bool]) -> Iterator[Sample]:
            # Read before the thread is started: the processes of a data loader are forked by it.
            first = next(samples, None)
            if first is None:
                return
            size = 2 * np.asarray(first["img"]).nbytes  # with label and answers
            capacity = min(max(_LEAST, _BYTES // max(size, 1)), _MOST)
            # The processes of a data loader give tensors.
            parts = ((sample, np.asarray(sample["img"])) for sample in itertools.chain([first], samples))
            tasks = (Task(sample, [{self.image: images}]) for sample, images in parts)
            with self._open(capacity, stopped) as pipeline:
                for sample, said in pipeline.run(tasks, outputs):
                    yield {**sample, **{PREFIX + name: x for name, x in said.items()}}

        return run

    def _open(self, capacity: int, stopped: Callable[[], bool] = lambda: False) -> Pipeline:
        rates = Rates()
        options = Options(capacity, timeout=self.timeout, spec=self.spec, rates=rates, stopped=stopped)
        return Pipeline(self.open_source(rates), self.connect, options)


class RemoteTeacher:
    """A teacher that a service stands for. It takes what `Service.ahead` added to a batch, and asks itself where nothing was.

    Args:
        service: who is asked.
        logits: the model's outputs that are logits, by name, in their order.
        features: by key, the model's outputs that are features.
    """

    def __init__(self, service: Service, logits: Sequence[str], features: Mapping[str, str]) -> None:
        self.service, self.logits, self.features = service, tuple(logits), dict(features)

    @property
    def outputs(self) -> list[str]:
        """The names of all that is asked for."""
        return list(dict.fromkeys([*self.logits, *self.features.values()]))

    def only(self, outputs: int, keys: Sequence[str]) -> "RemoteTeacher":
        """The same for the first so many outputs and the features of these keys, so that nothing else is sent."""
        features = {key: name for key, name in self.features.items() if key in keys}
        return RemoteTeacher(self.service, self.logits[:outputs], features)

    def ahead(self) -> Ahead:
        """`Service.ahead` for what this teacher needs."""
        return self.service.ahead(self.outputs)

    @paddle.no_grad()
    def __call__(self, batch: Batch) -> TeacherOutputs:
        said: dict[str, Tensor] = {}
        missing = [name for name in self.outputs if PREFIX + name not in batch.extra]
        if missing:
            given = self.service.ask(batch.images.numpy(), missing)
            said.update({name: paddle.to_tensor(x) for name, x in given.items()})
        said.update({name: batch.extra[PREFIX + name] for name in self.outputs if name not in said})
        said = {name: x.astype("float32") for name, x in said.items()}
        features = {key: said[name] for key, name in self.features.items()}
        return TeacherOutputs(tuple(said[name] for name in self.logits), features)


class ServedLayer(nn.Layer):
    """A served teacher as a model: its first logits at the images' size. It has no weights here."""

    def __init__(self, teacher: RemoteTeacher) -> None:
        super().__init__()
        self._teacher = teacher.only(1, [])

    def forward(self, images: Tensor) -> list[Tensor]:
        [logits] = self._teacher(Batch(images, paddle.zeros([images.shape[0], 1, 1], "int64"))).logits
        return [F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)]
