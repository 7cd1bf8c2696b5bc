"""The student's own past as its teacher."""

from collections.abc import Mapping

import paddle
from paddle import nn

from paddleseg_ext.distill.own_resolution import Source
from paddleseg_ext.distill.recorder import Recorder
from paddleseg_ext.teachers.model import ModelTeacher
from paddleseg_ext.types import Batch, TeacherOutputs


class EmaTeacher(ModelTeacher):
    """A copy of the student whose weights follow it: w = d w + (1 - d) student, d = min(decay, (1 + i) / (10 + i)).

    It follows once per iteration i, before it teaches; at iteration 0 it becomes the student. Running statistics follow
    alike. The copy's weights are state of the run and are saved with it.

    Args:
        model: another instance of the student's class.
        recorder, own: as for a ModelTeacher.
        student: what it follows.
        decay: d's upper limit, at least 0 and below 1.

    Source: Tarvainen, Valpola 2017, arXiv 1703.01780.
    """

    def __init__(
        self,
        model: nn.Layer,
        recorder: Recorder,
        student: nn.Layer,
        decay: float = 0.999,
        own: Mapping[int, Source] | None = None,
    ) -> None:
        super().__init__(model, recorder, own)
        self.student, self.decay = student, decay
        self._followed = -1  # the last iteration

    def __call__(self, batch: Batch) -> TeacherOutputs:
        if batch.iteration > self._followed:
            self.follow(batch.iteration)
            self._followed = batch.iteration
        return super().__call__(batch)

    @paddle.no_grad()
    def follow(self, iteration: int) -> None:
        """Move towards the student's present weights."""
        decay = 0.0 if iteration == 0 else min(self.decay, (1 + iteration) / (10 + iteration))
        present = self.student.state_dict()
        for name, own in self.model.state_dict().items():
            new = present[name]
            own.set_value(decay * own + (1 - decay) * new if own.is_floating_point() else new)
