"""What travels between the parts of a training step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class TeacherOutputs:
    """What a teacher says of a batch, detached: `logits`, one [N, C, h, w] per output, and `features` by key (`hidden_0`...).

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
