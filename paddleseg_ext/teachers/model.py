"""The teacher as a Paddle layer in this process."""

from collections.abc import Collection, Mapping

import paddle
from paddle import nn

from paddleseg_ext.distill.own_resolution import Source, replaced
from paddleseg_ext.distill.recorder import Recorder
from paddleseg_ext.types import Batch, TeacherOutputs


class ModelTeacher:
    """A model in eval mode (batch norm, dropout), without gradient or autograd graph.

    Args:
        model: the layer; it is set to eval mode and its parameters are frozen.
        recorder: catches the internal tensors that are wanted besides the outputs.
        own: by the number of an output, where it is at the network's own resolution; the recorder catches it.
        enlarged: the numbers of those that are wanted as the model gives them all the same.
    """

    def __init__(
        self,
        model: nn.Layer,
        recorder: Recorder,
        own: Mapping[int, Source] | None = None,
        enlarged: Collection[int] = (),
    ) -> None:
        model.eval()
        for parameter in model.parameters():
            parameter.stop_gradient = True
        self.model, self.recorder = model, recorder
        self.own, self.enlarged = dict(own or {}), frozenset(enlarged)

    @paddle.no_grad()
    def __call__(self, batch: Batch) -> TeacherOutputs:
        outputs = list(self.model(batch.images))
        features = {key: value.detach() for key, value in self.recorder.take().items()}
        own = {index: source for index, source in self.own.items() if index not in self.enlarged}
        return TeacherOutputs(tuple(replaced(outputs, features, own)), features)
