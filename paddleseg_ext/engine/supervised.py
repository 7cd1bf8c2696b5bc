"""One step of ordinary training: a batch in, the losses against its labels out."""

from paddle import Tensor, nn

from paddleseg_ext.losses.task import TaskLoss
from paddleseg_ext.types import Batch, StepOutput


class SupervisedStep(nn.Layer):
    """A model and its task loss."""

    def __init__(self, model: nn.Layer, task_loss: TaskLoss) -> None:
        super().__init__()
        self.model, self.task_loss = model, task_loss

    def forward(self, batch: Batch) -> StepOutput:
        outputs = list(self.model(batch.images))
        return StepOutput([x.detach() for x in outputs if isinstance(x, Tensor)], self.task_loss(outputs, batch))
