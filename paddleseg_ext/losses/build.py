"""Losses from their configuration, agreeing with the data set's ignore_index."""

from collections.abc import Sequence

from paddle import nn

from paddleseg_ext import registry
from paddleseg_ext.config import Component, LossTerm
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.losses.base import Loss
from paddleseg_ext.losses.task import WeightedLoss


def build_task_losses(terms: Sequence[LossTerm], ignore_index: int) -> list[WeightedLoss]:
    """The losses against labels. A term that stands for several outputs is built once for each."""
    return [WeightedLoss(_build(term.loss, ignore_index), term.coef) for term in terms]


def build_distill_loss(component: Component, ignore_index: int, num_classes: int) -> nn.Layer:
    """A loss between student and teacher, told the data set's numbers where it asks for them.

    Raises:
        ConfigError: the loss compares with labels and cannot distil.
    """
    cls = registry.component_class(component, "loss")
    # PaddleSeg's own distillation loss takes (student, teacher, label) too.
    if not issubclass(cls, Loss) and cls.__name__ != "DistillCrossEntropyLoss":
        able = [name for name in registry.names("loss") if name == "DistillCrossEntropyLoss" or _is_ours(name)]
        raise ConfigError(
            f"{component.where}: {component.type} compares with labels and cannot distil; these can: {', '.join(able)}"
        )
    if "num_classes" not in component.params and registry.accepts(cls, "num_classes"):
        component = component.with_params(num_classes=num_classes)
    return _build(component, ignore_index)


def _is_ours(name: str) -> bool:
    return issubclass(registry.component_class(Component(name, {}, ""), "loss"), Loss)


def _build(component: Component, ignore_index: int) -> nn.Layer:
    return registry.build(_with_ignore_index(component, ignore_index), "loss")


def _with_ignore_index(component: Component, ignore_index: int) -> Component:
    if component.type == "MixedLoss":
        parts = [
            _with_ignore_index(part, ignore_index) if isinstance(part, Component) else part
            for part in component.params.get("losses", [])
        ]
        return component.with_params(losses=parts)
    given = component.params.get("ignore_index", ignore_index)
    if given != ignore_index:
        raise ConfigError(f"{component.where}.ignore_index: {given}, but the data set ignores {ignore_index}")
    if not registry.accepts(registry.component_class(component, "loss"), "ignore_index"):
        return component
    return component.with_params(ignore_index=given)
