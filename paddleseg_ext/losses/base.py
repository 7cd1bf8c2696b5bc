"""What every distillation loss is: a layer called with (student, teacher, label)."""

from abc import abstractmethod

from paddle import Tensor, nn

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.losses import functional as F


class Loss(nn.Layer):
    """A scalar float32, unweighted loss between a student's and a teacher's tensor.

    Args:
        ignore_index: label value of the pixels that count nowhere. Default 255.
    """

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    @abstractmethod
    def forward(self, student: Tensor, teacher: Tensor, label: Tensor | None = None) -> Tensor:
        """The loss of student and teacher, both [N, C, H, W], with int64 labels [N, H2, W2] where pixels may be ignored."""

    def mask(self, x: Tensor, label: Tensor | None) -> Tensor | None:
        """Where `x` counts, [N, 1, H, W] bool, or None where there is no label or `x` is no map."""
        return F.valid_mask(label, tuple(x.shape[2:]), self.ignore_index) if label is not None and x.ndim == 4 else None


def positive(name: str, value: float) -> float:
    """The value, or ConfigError where it is not above 0."""
    if not value > 0:
        raise ConfigError(f"{name} must be above 0, but got {value!r}")
    return float(value)
