"""Several teachers as one."""

from collections.abc import Mapping, Sequence

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from paddleseg_ext.teachers.engine import EngineTeacher
from paddleseg_ext.types import Batch, Teacher, TeacherOutputs


class SeveralTeachers:
    """Asks each of several teachers.

    Features are those of all, `name/key` each. Logits are, with `mean`, the logarithm of the weighted mean of the teachers'
    probabilities, output by output as far as all have one, at the first teacher's resolution; else all teachers' one after the
    other. Time and memory are the sums of theirs.

    Args:
        teachers: by name.
        weights: of the mean, in the same order; they are divided by their sum.
        mean: whether logits are averaged.
    """

    def __init__(self, teachers: Mapping[str, Teacher], weights: Sequence[float], mean: bool) -> None:
        self.teachers, self.mean = dict(teachers), mean
        self.weights = [weight / sum(weights) for weight in weights]

    def ask(self, batch: Batch) -> None:
        """Let those begin that can work by themselves."""
        for teacher in self.teachers.values():
            if isinstance(teacher, EngineTeacher):
                teacher.ask(batch)

    def __call__(self, batch: Batch) -> TeacherOutputs:
        said = {name: teacher(batch) for name, teacher in self.teachers.items()}
        features = {f"{name}/{key}": x for name, one in said.items() for key, x in one.features.items()}
        if not self.mean:
            return TeacherOutputs(tuple(x for one in said.values() for x in one.logits), features)
        by_output = zip(*(one.logits for one in said.values()), strict=False)
        return TeacherOutputs(tuple(map(self._mean, by_output)), features)

    @paddle.no_grad()
    def _mean(self, logits: Sequence[Tensor]) -> Tensor:
        size = logits[0].shape[2:]
        total = paddle.zeros([])
        for x, weight in zip(logits, self.weights, strict=True):
            if x.shape[2:] != size:
                x = F.interpolate(x, size, mode="bilinear", align_corners=False)
            total = total + weight * F.softmax(x.astype("float32"), axis=1)
        return total.clip(min=1e-30).log()
