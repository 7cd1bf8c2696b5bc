"""One step of distillation: a batch in, every loss by name out."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import paddle
from paddle import Tensor, nn

from paddleseg_ext.distill.class_map import ClassMap
from paddleseg_ext.distill.connector import Connector
from paddleseg_ext.distill.own_resolution import Source, replaced
from paddleseg_ext.distill.recorder import Recorder
from paddleseg_ext.losses.functional import resize
from paddleseg_ext.losses.task import TaskLoss
from paddleseg_ext.types import UNLABELLED, Batch, StepOutput, Teacher, TeacherOutputs


@dataclass(frozen=True)
class Pair:
    """One distillation loss: between two outputs (keys are their numbers), two features (keys are names), or, for a loss
    that wants several of a side, lists of features (keys are tuples of names).

    resolution: of outputs, 'network' (the finer of the two) or 'label'. class_map: of outputs, where the teacher's classes
    are others.
    """

    name: str
    student: int | str | tuple[str, ...]
    teacher: int | str | tuple[str, ...]
    loss: nn.Layer
    weight: float
    connectors: tuple[Connector, ...] = ()
    schedule: Callable[[int], float] | None = None
    resolution: str = "network"
    class_map: ClassMap | None = None

    def __call__(
        self, outputs: Sequence[Tensor], features: Mapping[str, Tensor], taught: TeacherOutputs, batch: Batch
    ) -> Tensor:
        """The weighted loss; 0 without being computed while the schedule's factor is 0."""
        weight = self.weight * (1.0 if self.schedule is None else self.schedule(batch.iteration))
        if weight == 0:
            return paddle.zeros([])
        if isinstance(self.student, int) and isinstance(self.teacher, int):
            students, teachers = [outputs[self.student]], [taught.logits[self.teacher]]
        else:
            students = [features[name] for name in names(self.student)]
            teachers = [taught.features[name] for name in names(self.teacher)]
        if self.connectors:
            joined = [join(*both) for join, *both in zip(self.connectors, students, teachers, strict=True)]
            students, teachers = [s for s, _ in joined], [t for _, t in joined]
        # Mixed precision would compute matrix products and sums of losses in half precision, where they overflow.
        with paddle.amp.auto_cast(enable=False):
            students, teachers = ([x.astype("float32") for x in side] for side in (students, teachers))
            if isinstance(self.student, int):
                return weight * self._between_outputs(students[0], teachers[0], batch.labels)
            if isinstance(self.student, tuple):
                return weight * self.loss(students, teachers, batch.labels)
            return weight * self.loss(students[0], teachers[0], batch.labels)

    def _between_outputs(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """At the finer of the two resolutions, so that nothing of what the teacher says is lost, or at the labels'."""
        if self.class_map is not None:
            student, teacher = self.class_map.student(student), self.class_map.teacher(teacher)
            labels = self.class_map.labels(labels)
        size = max(tuple(student.shape[2:]), tuple(teacher.shape[2:]), key=math.prod)
        if self.resolution == "label":
            size = tuple(labels.shape[1:])
        return self.loss(resize(student, size), resize(teacher, size), labels)


def names(key: int | str | tuple[str, ...]) -> tuple[str, ...]:
    """The layers of a feature key."""
    return key if isinstance(key, tuple) else (str(key),)


class Distiller(nn.Layer):
    """Student, teacher and the losses between them.

    The student and `extras`, what trains with it (connectors, losses with weights, a teacher that learns too), are
    sub-layers. Any other teacher is a callable and none, so it stays out of parameters, checkpoints, gradient reduction and
    `train()`.

    Args:
        own: by the number of a student's output, where it is at the network's own resolution; `recorder` catches it.
        ignore_index: what takes the place of UNLABELLED for the losses against labels.
    """

    def __init__(
        self,
        student: nn.Layer,
        recorder: Recorder,
        teacher: Teacher,
        task_loss: TaskLoss,
        pairs: Sequence[Pair],
        own: Mapping[int, Source] | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        self.student = student
        parts = [part for pair in pairs for part in (*pair.connectors, pair.loss)]
        self.extras = nn.LayerList([*parts, *([teacher] if isinstance(teacher, nn.Layer) else [])])
        self.recorder, self.task_loss, self.pairs = recorder, task_loss, tuple(pairs)
        self._teacher = (teacher,)  # not an attribute that Paddle would take for a sub-layer
        self.own, self.ignore_index = dict(own or {}), ignore_index

    @property
    def teacher(self) -> Teacher:
        """What teaches."""
        return self._teacher[0]

    def forward(self, batch: Batch) -> StepOutput:
        ask = getattr(self.teacher, "ask", None)
        if ask is None:
            # The teacher first: its activations are gone before the student's graph is built.
            taught = self.teacher(batch)
            outputs = list(self.student(batch.images))
        else:
            # A teacher in another process works while the student's forward leaves cores idle.
            ask(batch)
            outputs = list(self.student(batch.images))
            taught = self.teacher(batch)
        features = self.recorder.take()
        unlabelled = batch.labels == UNLABELLED
        ignored = paddle.full_like(batch.labels, self.ignore_index)
        losses = self.task_loss(outputs, replace(batch, labels=paddle.where(unlabelled, ignored, batch.labels)))
        losses.update(taught.losses)
        logits = replaced(outputs, features, self.own)
        for pair in self.pairs:
            losses[pair.name] = pair(logits, features, taught, batch)
        return StepOutput([x.detach() for x in outputs if isinstance(x, Tensor)], losses)
