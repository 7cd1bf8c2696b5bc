"""Options that PaddleSeg 2.8's losses accept and then do not honour; not a matter of Paddle's version.

MSELoss forgets `ignore_index`; PointCrossEntropyLoss multiplies by the number of the class where its `weight` is meant,
and fails on ignored pixels; DistillCrossEntropyLoss hands `data_format` to its parent in another argument's place.
These are mended. RelaxBoundaryLoss has two that never worked, which it now refuses: `calculate_weights` is hidden by
the attribute of the same name, and `border` other than 1 leaves the image.
"""

import inspect
from collections.abc import Callable
from typing import Any

import paddle
from paddle import Tensor

from paddleseg_ext.compat.patch import wrap
from paddleseg_ext.errors import ConfigError

_LOSSES = "paddleseg.models.losses"


def apply() -> None:
    mse = f"{_LOSSES}.mean_square_error_loss:MSELoss"
    wrap(f"{mse}.__init__", _remember("ignore_index"))
    wrap(f"{mse}.forward", lambda original: _masked_square_error)
    wrap(f"{_LOSSES}.point_cross_entropy_loss:PointCrossEntropyLoss.forward", lambda original: _point_cross_entropy)
    distill = f"{_LOSSES}.cross_entropy_loss:DistillCrossEntropyLoss"
    wrap(f"{distill}.__init__", _remember("data_format"))
    wrap(f"{_LOSSES}.decoupledsegnet_relax_boundary_loss:RelaxBoundaryLoss.__init__", _refuse)


def _remember(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            given = inspect.signature(original).bind(self, *args, **kwargs)
            given.apply_defaults()
            setattr(self, name, given.arguments[name])

        return __init__

    return make


def _masked_square_error(self: Any, input: Tensor, label: Tensor) -> Tensor:
    """As L1Loss does it: ignored elements count neither in the sum nor in the mean."""
    mask = (label != self.ignore_index).astype(input.dtype)
    error = (input - label.astype(input.dtype)).square() * mask
    if self.reduction == "none":
        return error
    return error.sum() if self.reduction == "sum" else error.mean() / (mask.mean() + 1e-10)


def _point_cross_entropy(self: Any, logits: Any, label: Tensor, semantic_weights: Tensor | None = None) -> Tensor:
    """The cross entropy of an image that is as many pixels high as there are points, and one wide."""
    from paddleseg.models.losses import CrossEntropyLoss
    from paddleseg.models.losses.point_cross_entropy_loss import point_sample

    logit, points = logits
    label = point_sample(label.unsqueeze(1).astype("float32"), points, self.align_corners, mode="nearest")
    plain = CrossEntropyLoss(self.weight, self.ignore_index, self.top_k_percent_pixels)
    if semantic_weights is not None:
        semantic_weights = semantic_weights.unsqueeze(-1)
    return plain(logit.unsqueeze(-1), label.squeeze(1).unsqueeze(-1).round().astype("int64"), semantic_weights)


def _refuse(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if self.calculate_weights is True and callable(getattr(type(self), "calculate_weights", None)):
            raise ConfigError("RelaxBoundaryLoss: calculate_weights does not work in this PaddleSeg; leave it out")
        try:
            works = self.relax_onehot(paddle.zeros([1, 8, 8], dtype="int64"), 2).shape == [1, 3, 8, 8]
        except Exception:  # whatever a slice outside the image leads to
            works = False
        if not works:
            raise ConfigError(f"RelaxBoundaryLoss: border {self.border} does not work in this PaddleSeg; 1 does")

    return __init__
