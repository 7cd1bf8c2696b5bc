"""What every distillation loss is: a layer called with (student, teacher, label)."""

from abc import abstractmethod
from collections.abc import Sequence

import paddle
from paddle import Tensor, nn

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.losses import functional as F
from paddleseg_ext.types import UNLABELLED


class Loss(nn.Layer):
    """A scalar float32, unweighted loss between a student's and a teacher's tensor, called outside mixed precision.

    Args:
        ignore_index: label value of the pixels that count nowhere. Default 255.
    """

    features = 1  # how many features of each side one pair compares; above 1, `forward` takes lists of them
    # How many axes its tensors may have: maps [N, C, H, W] and vectors [N, D]. Tokens [N, L, C] are made maps by a connector.
    axes: tuple[int, ...] = (2, 4)

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    @abstractmethod
    def forward(self, student: Tensor, teacher: Tensor, label: Tensor | None = None) -> Tensor:
        """The loss of student and teacher, both [N, C, H, W], with int64 labels [N, H2, W2] where pixels may be ignored."""

    @staticmethod
    def fits(student: Sequence[int], teacher: Sequence[int]) -> bool:
        """Whether tensors of these shapes, of `axes`, can be compared: here, equal ones."""
        return list(student) == list(teacher)

    def prepare(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        """Build what the loss itself trains for tensors of these shapes; called once, before training. Most train nothing."""

    def labels(self, x: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Labels [N, H, W] at the size of `x` by nearest neighbour, and the mask [N, 1, H, W] of those that are classes.

        Raises:
            ValueError: there is no label.
        """
        if label is None:
            raise ValueError(f"{type(self).__name__} compares by class and needs labels")
        size = (x.shape[2], x.shape[3])
        label = F.nearest(label, size)
        is_class = paddle.logical_and(label != self.ignore_index, label != UNLABELLED)
        return label, is_class.unsqueeze(1)

    def mask(self, x: Tensor, label: Tensor | None) -> Tensor | None:
        """Where `x` counts, [N, 1, H, W] bool, or None where there is no label or `x` is no map."""
        return F.valid_mask(label, tuple(x.shape[2:]), self.ignore_index) if label is not None and x.ndim == 4 else None


class AnyChannels(Loss):
    """A loss that compares relations of positions, so that student and teacher may have different channels."""

    @staticmethod
    def fits(student: Sequence[int], teacher: Sequence[int]) -> bool:
        return (student[0], *student[2:]) == (teacher[0], *teacher[2:])


def positive(name: str, value: float) -> float:
    """The value, or ConfigError where it is not above 0."""
    if not value > 0:
        raise ConfigError(f"{name} must be above 0, but got {value!r}")
    return float(value)
