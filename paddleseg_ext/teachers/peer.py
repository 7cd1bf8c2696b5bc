"""A teacher that learns together with the student."""

from collections.abc import Mapping
from dataclasses import replace

import paddle
from paddle import nn

from paddleseg_ext.distill.own_resolution import Source, replaced
from paddleseg_ext.distill.recorder import Recorder
from paddleseg_ext.types import UNLABELLED, Batch, TaskLosses, TeacherOutputs


class PeerTeacher(nn.Layer):
    """A model in train mode with losses of its own: mutual learning. With DMLLoss each of the two learns from the other.

    Args:
        model: the layer; it is set to train mode.
        recorder, own: as for a ModelTeacher.
        task_loss: the model's losses against the labels; they are named `teacher/...`.
        ignore_index: what takes the place of UNLABELLED for them.
    """

    def __init__(
        self,
        model: nn.Layer,
        recorder: Recorder,
        task_loss: TaskLosses,
        own: Mapping[int, Source] | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        model.train()
        self.model, self.recorder, self.task_loss = model, recorder, task_loss
        self.own, self.ignore_index = dict(own or {}), ignore_index

    def forward(self, batch: Batch) -> TeacherOutputs:
        outputs = list(self.model(batch.images))
        features = self.recorder.take()
        ignored = paddle.full_like(batch.labels, self.ignore_index)
        labels = paddle.where(batch.labels == UNLABELLED, ignored, batch.labels)
        losses = self.task_loss(outputs, replace(batch, labels=labels))
        logits = tuple(replaced(outputs, features, self.own))
        return TeacherOutputs(logits, features, {f"teacher/{name}": loss for name, loss in losses.items()})
