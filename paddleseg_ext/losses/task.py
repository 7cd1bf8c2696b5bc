"""Losses against the labels: PaddleSeg's, one per model output, by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paddle import Tensor, nn

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.types import Batch


@dataclass(frozen=True)
class WeightedLoss:
    """A built loss and its coefficient."""

    loss: nn.Layer
    coef: float


def unique_names(names: Sequence[str]) -> list[str]:
    """Names that occur more than once get `_0`, `_1`... in their order."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        if names.count(name) == 1:
            unique.append(name)
        else:
            unique.append(f"{name}_{seen.setdefault(name, 0)}")
            seen[name] += 1
    return unique


class TaskLoss:
    """The `loss` section of a configuration: the i-th loss is for the i-th output of the model.

    Its meaning is PaddleSeg's: a BCELoss with `edge_label` gets the edges, a MixedLoss is reported part by part, a KLLoss
    compares outputs 0 and 1, and a model with its own `loss_computation` is asked for it.
    """

    def __init__(self, losses: Sequence[WeightedLoss], model: nn.Layer, where: str) -> None:
        self.losses, self.where = tuple(losses), where
        self._own = getattr(model, "loss_computation", None)
        self._names = unique_names([type(item.loss).__name__ for item in losses])

    def __call__(self, outputs: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Every weighted loss by name.

        Raises:
            ConfigError: the model has another number of outputs than there are losses.
        """
        if self._own is not None:
            values = self._own(outputs, self._as_paddleseg(), _raw(batch))
            return dict(zip(unique_names([self._names[0]] * len(values)), values, strict=True))
        if len(outputs) != len(self.losses):
            raise ConfigError(
                f"{self.where}: the model has {len(outputs)} outputs in training and needs as many losses, "
                f"but there are {len(self.losses)} (one type with {len(outputs)} coef will do)"
            )
        values = {}
        for name, item, logits in zip(self._names, self.losses, outputs, strict=True):
            values.update(self._one(name, item, logits, outputs, batch))
        return values

    def _one(
        self, name: str, item: WeightedLoss, logits: Tensor, outputs: Sequence[Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        kind = type(item.loss).__name__
        if kind == "KLLoss":
            return {name: item.coef * item.loss(outputs[0], outputs[1].detach())}
        if kind == "MixedLoss":
            parts = unique_names([type(part).__name__ for part in item.loss.losses])
            values = item.loss(logits, batch.labels)
            return {f"{name}/{part}": item.coef * value for part, value in zip(parts, values, strict=True)}
        labels = batch.labels
        if kind == "BCELoss" and item.loss.edge_label:
            if "edge" not in batch.extra:
                raise ConfigError(f"{self.where}: {kind} with edge_label needs `edge: true` in train_dataset")
            labels = batch.extra["edge"].astype("int64")
        return {name: item.coef * item.loss(logits, labels)}

    def _as_paddleseg(self) -> dict[str, Any]:
        return {"types": [item.loss for item in self.losses], "coef": [item.coef for item in self.losses]}


def _raw(batch: Batch) -> Mapping[str, Any]:
    return {"img": batch.images, "label": batch.labels, **batch.extra}
