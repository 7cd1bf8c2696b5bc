"""A model from its configuration."""

import paddle
from paddle import nn

from paddleseg_ext import registry
from paddleseg_ext.config import Component
from paddleseg_ext.errors import ConfigError, WeightsError
from paddleseg_ext.models.weights import LoadReport, load_weights, reported_loading


def build_model(
    component: Component, num_classes: int, in_channels: int = 3, *, name_prefix: str = "", strict: bool = False
) -> tuple[nn.Layer, LoadReport | None]:
    """Build a registered model and load its `pretrained` weights.

    Args:
        component: the `model` section.
        num_classes: of the data set; used where the section does not say, an error where it says otherwise.
        in_channels: image channels of the data set, likewise.
        name_prefix: before Paddle's parameter names. Each model is named from zero, so that its parameter names (the keys of
            an optimizer's state) do not depend on what else the process has built.
        strict: the model is used as its `pretrained` weights have it, as a teacher is: weights of another shape are an error,
            and the backbone's own `pretrained` is not fetched. Else such weights are left out, as fine-tuning needs.

    Returns:
        The model, and how its own `pretrained` matched (None where it has none).

    Raises:
        ConfigError, WeightsError
    """
    component = _synchronised(component, num_classes, in_channels)
    backbone = component.params.get("backbone")
    if (
        strict
        and component.params.get("pretrained")
        and isinstance(backbone, Component)
        and "pretrained" in backbone.params
    ):
        component = component.with_params(backbone=backbone.with_params(pretrained=None))
    with paddle.utils.unique_name.guard(name_prefix), reported_loading() as reports:
        model = registry.build(component, "model", part_kinds=("backbone", "model", "loss"))
    own = next((report for report in reports if report.model is model), None)
    if strict and own is not None and own.mismatched:
        raise WeightsError(f"{component.where}.pretrained: {own}")
    return model, own


def without_pretrained(component: Component) -> Component:
    """The same model with every `pretrained`, its own and its parts', left out: nothing is fetched or loaded."""
    params = {
        name: without_pretrained(value) if isinstance(value, Component) else None if name == "pretrained" else value
        for name, value in component.params.items()
    }
    return Component(component.type, params, component.where)


def build_trained_model(component: Component, weights: str, num_classes: int, in_channels: int = 3) -> nn.Layer:
    """A model to evaluate or use, in eval mode: all of its weights from one file, a folder with model.pdparams, or a URL.

    Raises:
        ConfigError, WeightsError
    """
    model, _ = build_model(without_pretrained(component), num_classes, in_channels)
    load_weights(model, weights, strict=True)
    model.eval()
    return model


def _synchronised(component: Component, num_classes: int, in_channels: int) -> Component:
    given = component.params.get("num_classes", num_classes)
    if given != num_classes:
        raise ConfigError(f"{component.where}.num_classes: {given}, but the data set has {num_classes} classes")
    if registry.accepts(registry.component_class(component, "model"), "num_classes"):
        component = component.with_params(num_classes=given)
    backbone = component.params.get("backbone")
    holder, kind = (backbone, "backbone") if isinstance(backbone, Component) else (component, "model")
    given = holder.params.get("in_channels", in_channels)
    if given != in_channels:
        raise ConfigError(f"{holder.where}.in_channels: {given}, but the data set's images have {in_channels}")
    if in_channels == 3 or not registry.accepts(registry.component_class(holder, kind), "in_channels"):
        return component  # 3 is every model's default
    holder = holder.with_params(in_channels=given)
    return component.with_params(backbone=holder) if kind == "backbone" else holder
