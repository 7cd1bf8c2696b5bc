"""One step of distillation: a batch in, every loss by name out."""

from collections.abc import Sequence
from dataclasses import dataclass

from paddle import Tensor, nn

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

    def __call__(
        self, outputs: Sequence[Tensor], features: dict[str, Tensor], taught: TeacherOutputs, y: Tensor
    ) -> Tensor:
        """The weighted loss. A teacher's logits of another resolution are resized to the student's."""
        if isinstance(self.student, int) and isinstance(self.teacher, int):
            student = outputs[self.student]
            return self.weight * self.loss(student, resize(taught.logits[self.teacher], tuple(student.shape[2:])), y)
        return self.weight * self.loss(features[str(self.student)], taught.features[str(self.teacher)], y)


class Distiller(nn.Layer):
    """Student, teacher and the losses between them.

    The student (and what trains with it) is a sub-layer. The teacher is a callable and none, so it stays out of
    parameters, checkpoints, gradient reduction and `train()`.
    """

    def __init__(
        self, student: nn.Layer, recorder: Recorder, teacher: Teacher, task_loss: TaskLoss, pairs: Sequence[Pair]
    ) -> None:
        super().__init__()
        self.student = student
        self.recorder, self.teacher, self.task_loss, self.pairs = recorder, teacher, task_loss, tuple(pairs)

    def forward(self, batch: Batch) -> StepOutput:
        # The teacher first: its activations are gone before the student's graph is built.
        taught = self.teacher(batch)
        outputs = list(self.student(batch.images))
        features = self.recorder.take()
        losses = self.task_loss(outputs, batch)
        for pair in self.pairs:
            losses[pair.name] = pair(outputs, features, taught, batch.labels)
        return StepOutput([x.detach() for x in outputs if isinstance(x, Tensor)], losses)
