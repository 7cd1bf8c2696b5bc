"""What travels between the parts of a training step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from paddle import Tensor

UNLABELLED = -1
"""The label of a pixel that has none but counts for distillation, unlike one that is ignored."""


@dataclass(frozen=True)
class Batch:
    """One batch of samples on the device.

    images: float32 [N, C, H, W]. labels: int64 [N, H, W], ignore_index where nothing counts, UNLABELLED where the teacher alone
    is learnt from. files: the N image paths.
    extra: whatever else the data set returned (`edge`, ...), collated. iteration: which of training it is for, from 0.
    """

    images: Tensor
    labels: Tensor
    files: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    iteration: int = 0

    def parts(self, count: int) -> "list[Batch]":
        """The batch as `count` equally large ones, in order.

        Raises:
            ValueError: the number of images is no multiple of it.
        """
        if count == 1:
            return [self]
        size, rest = divmod(self.images.shape[0], count)
        if rest:
            raise ValueError(f"{self.images.shape[0]} images cannot be divided into {count} equal parts")
        slices = [slice(start, start + size) for start in range(0, size * count, size)]
        return [
            replace(
                self,
                images=self.images[here],
                labels=self.labels[here],
                files=self.files[here],
                extra={key: value[here] for key, value in self.extra.items()},
            )
            for here in slices
        ]


@dataclass(frozen=True)
class TeacherOutputs:
    """What a teacher says of a batch, detached: `logits`, one [N, C, h, w] per output, and `features` by key (`hidden_0`...).

    An output that nobody asked for keeps its place, and may be empty, [0].
    A teacher that learns with the student is not detached and has `losses` of its own, as in StepOutput.
    """

    logits: tuple[Tensor, ...]
    features: Mapping[str, Tensor] = field(default_factory=dict)
    losses: Mapping[str, Tensor] = field(default_factory=dict)


class StepOutput(NamedTuple):
    """What a step says of a batch: the model's detached logits and every loss by name, a weighted float32 scalar each.

    A tuple, so that paddle.DataParallel finds the tensors in it.
    """

    logits: list[Tensor]
    losses: dict[str, Tensor]


Teacher = Callable[[Batch], TeacherOutputs]

TaskLosses = Callable[[Sequence[Tensor], Batch], dict[str, Tensor]]
"""A model's outputs and the batch to its losses against labels, by name."""
