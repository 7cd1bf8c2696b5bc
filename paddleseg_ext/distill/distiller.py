"""One step of distillation: a batch in, every loss by name out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import paddle
from paddle import Tensor, nn

from paddleseg_ext.distill.connector import Connector
from paddleseg_ext.distill.recorder import Recorder
from paddleseg_ext.losses.functional import resize
from paddleseg_ext.losses.task import TaskLoss
from paddleseg_ext.types import Batch, StepOutput, Teacher, TeacherOutputs


@dataclass(frozen=True)
class Pair:
    """One distillation loss: between two outputs (keys are their numbers) or two features (keys are names)."""

    name: str
    student: int | str
    teacher: int | str
    loss: nn.Layer
    weight: float
    connector: Connector | None = None
    schedule: Callable[[int], float] | None = None

    def __call__(
        self, outputs: Sequence[Tensor], features: dict[str, Tensor], taught: TeacherOutputs, batch: Batch
    ) -> Tensor:
        """The weighted loss. A teacher's logits of another resolution are resized to the student's."""
        weight = self.weight * (1.0 if self.schedule is None else self.schedule(batch.iteration))
        if weight == 0:
            return paddle.zeros([])
        if isinstance(self.student, int) and isinstance(self.teacher, int):
            student = outputs[self.student]
            teacher = resize(taught.logits[self.teacher], tuple(student.shape[2:]))
        else:
            student, teacher = features[str(self.student)], taught.features[str(self.teacher)]
            if self.connector is not None:
                student, teacher = self.connector(student, teacher)
        return weight * self.loss(student, teacher, batch.labels)


class Distiller(nn.Layer):
    """Student, teacher and the losses between them.

    The student and `extras`, what trains with it (connectors, losses with weights), are sub-layers. The teacher is a
    callable and none, so it stays out of parameters, checkpoints, gradient reduction and `train()`.
    """

    def __init__(
        self, student: nn.Layer, recorder: Recorder, teacher: Teacher, task_loss: TaskLoss, pairs: Sequence[Pair]
    ) -> None:
        super().__init__()
        self.student = student
        parts = [part for pair in pairs for part in (pair.connector, pair.loss) if part is not None]
        self.extras = nn.LayerList(parts)
        self.recorder, self.teacher, self.task_loss, self.pairs = recorder, teacher, task_loss, tuple(pairs)

    def forward(self, batch: Batch) -> StepOutput:
        # The teacher first: its activations are gone before the student's graph is built.
        taught = self.teacher(batch)
        outputs = list(self.student(batch.images))
        features = self.recorder.take()
        losses = self.task_loss(outputs, batch)
        for pair in self.pairs:
            losses[pair.name] = pair(outputs, features, taught, batch)
        return StepOutput([x.detach() for x in outputs if isinstance(x, Tensor)], losses)
