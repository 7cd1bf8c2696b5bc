"""PaddleSeg's component registries, with ours in them, and the builder of a component by its `type`.

The one place that registers: PaddleSeg is imported and made to work on Paddle 3 when a component is first asked for.
"""

import functools
import importlib
import inspect
from typing import Any

from paddleseg_ext.config import Component
from paddleseg_ext.errors import ConfigError, UserError, closest

_OURS = ("paddleseg_ext.losses", "paddleseg_ext.data.fundus")


@functools.cache
def _registries() -> dict[str, dict[str, Any]]:
    import paddleseg.datasets  # noqa: F401
    import paddleseg.models  # noqa: F401
    import paddleseg.optimizers  # noqa: F401
    import paddleseg.transforms  # noqa: F401
    from paddleseg.cvlibs import manager

    from paddleseg_ext import compat

    compat.apply()
    for module in _OURS:
        importlib.import_module(module)
    return {
        "model": manager.MODELS.components_dict,
        "backbone": manager.BACKBONES.components_dict,
        "data set": manager.DATASETS.components_dict,
        "transform": manager.TRANSFORMS.components_dict,
        "loss": manager.LOSSES.components_dict,
        "optimizer": manager.OPTIMIZERS.components_dict,
    }


def names(kind: str) -> list[str]:
    """The names registered for one kind: model, backbone, data set, transform, loss or optimizer."""
    return list(_registries()[kind])


def component_class(component: Component, kind: str) -> Any:
    """The class that a component's `type` names.

    Raises:
        ConfigError: no component of this kind has the name.
    """
    registry = _registries()[kind]
    if component.type not in registry:
        raise ConfigError(f"{component.where}: no {kind} '{component.type}'{closest(component.type, registry)}")
    return registry[component.type]


def build(component: Component, kind: str, *, part_kinds: tuple[str, ...] = ("backbone", "transform", "loss")) -> Any:
    """Build a component and, first, the components among its arguments.

    Raises:
        ConfigError: unknown type or argument (with the nearest names), or what the constructor itself objects to.
    """
    cls = component_class(component, kind)
    check_arguments(component, cls)
    return call(component, cls, {name: _part(value, part_kinds) for name, value in component.params.items()})


def call(component: Component, cls: Any, params: dict[str, Any]) -> Any:
    """`cls(**params)`; what it objects to becomes one line that names the component."""
    try:
        return cls(**params)
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{component.where}: {component.type} cannot be built: {reason}") from error


def accepts(cls: Any, name: str) -> bool:
    """Whether the constructor takes an argument of this name."""
    parameters = inspect.signature(cls).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def check_arguments(component: Component, cls: Any) -> None:
    """Raise ConfigError where the component has an argument that its class does not take, or lacks one that it needs."""
    parameters = inspect.signature(cls).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name in component.params:
        if name not in parameters:
            raise ConfigError(
                f"{component.where}: {component.type} takes no argument '{name}'{closest(name, parameters)}"
            )
    for name, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if needed and name not in component.params:
            raise ConfigError(f"{component.where}: {component.type} needs the argument '{name}'")


def _part(value: Any, kinds: tuple[str, ...]) -> Any:
    if isinstance(value, list):
        return [_part(item, kinds) for item in value]
    if not isinstance(value, Component):
        return value
    for kind in kinds:
        if value.type in _registries()[kind]:
            return build(value, kind, part_kinds=kinds)
    known = [name for kind in kinds for name in _registries()[kind]]
    raise ConfigError(f"{value.where}: no {' or '.join(kinds)} '{value.type}'{closest(value.type, known)}")
