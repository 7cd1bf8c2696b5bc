"""How much each loss of a step weighs: in the total, and in what moves the student."""

from collections.abc import Sequence
from dataclasses import dataclass

import paddle
from paddle import nn

from paddleseg_ext.models.weights import kept_statistics
from paddleseg_ext.types import Batch

_NEGLIGIBLE, _DROWNING = 0.001, 0.999


@dataclass(frozen=True)
class TermShare:
    """One loss that moves the student: its share of their sum, and of the sum of their gradient norms on its parameters."""

    name: str
    loss: float
    gradient: float

    @property
    def warning(self) -> str | None:
        """What is wrong with the weight, if anything is."""
        if self.gradient < _NEGLIGIBLE:
            return f"{self.name} has {100 * self.gradient:.3f} % of the gradient and teaches next to nothing; raise its weight"
        if self.gradient > _DROWNING:
            return (
                f"{self.name} has {100 * self.gradient:.2f} % of the gradient and drowns the others; lower its weight"
            )
        return None

    def __str__(self) -> str:
        return f"{self.name} {100 * self.loss:.1f} % of the loss, {100 * self.gradient:.1f} % of the gradient"


def term_shares(step: nn.Layer, student: nn.Layer, batch: Batch) -> list[TermShare]:
    """Every loss that counts for the student at this batch's iteration, by one forward and a backward for each.

    What does not depend on the student, such as the losses of a teacher that learns too, is left out. The step's weights,
    gradients and running statistics stay as they are.
    """
    parameters = [p for p in student.parameters() if not p.stop_gradient]
    with kept_statistics(step):
        losses = {name: loss for name, loss in step(batch).losses.items() if not loss.stop_gradient}
        found = {name: _gradient_norm(loss, parameters) for name, loss in losses.items()}
    norms = {name: norm for name, norm in found.items() if norm is not None}
    values = {name: abs(float(losses[name])) for name in norms}
    total, total_norm = sum(values.values()) or 1.0, sum(norms.values()) or 1.0
    return [TermShare(name, values[name] / total, norms[name] / total_norm) for name in norms]


def _gradient_norm(loss: paddle.Tensor, parameters: Sequence[paddle.Tensor]) -> float | None:
    """None where the loss does not depend on the parameters."""
    gradients = paddle.grad(loss, list(parameters), retain_graph=True, allow_unused=True)
    squares = [g.astype("float32").square().sum() for g in gradients if g is not None]
    return float(paddle.add_n(squares).sqrt()) if squares else None
