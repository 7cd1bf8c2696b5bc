"""Optimizer and schedule from their configuration, with PaddleSeg's meaning."""

import logging
from typing import Any

import paddle
from paddle import nn

from paddleseg_ext import registry
from paddleseg_ext.config import Component
from paddleseg_ext.errors import ConfigError, closest

_log = logging.getLogger(__name__)
_WARMUP = ("warmup_iters", "warmup_start_lr")


def build_optimizer(
    component: Component, schedule: Component, model: nn.Layer, iters: int
) -> paddle.optimizer.Optimizer:
    """The optimizer of a model's parameters.

    Raises:
        ConfigError: unknown type or argument.
    """
    kind = {"adam": "Adam", "sgd": "SGD"}.get(component.type, component.type)
    if kind == "SGD" and "momentum" in component.params:
        kind = "Momentum"
    params = dict(component.params)
    for name in ("weight_decay", "momentum"):  # PaddleSeg insists on a float; YAML's `0` is one to its user
        if isinstance(params.get(name), int):
            params[name] = float(params[name])
    maker = registry.build(Component(kind, params, component.where), "optimizer")
    return maker(model, build_schedule(schedule, iters))


def build_schedule(component: Component, iters: int) -> Any:
    """A schedule of `paddle.optimizer.lr`. `warmup_iters` with `warmup_start_lr` puts a linear warm-up before it, and
    PolynomialDecay ends with the training unless `decay_steps` says otherwise."""
    known = [n for n in dir(paddle.optimizer.lr) if isinstance(getattr(paddle.optimizer.lr, n), type)]
    if component.type not in known:
        raise ConfigError(f"{component.where}: no schedule '{component.type}'{closest(component.type, known)}")
    cls = getattr(paddle.optimizer.lr, component.type)
    params = {name: value for name, value in component.params.items() if name not in _WARMUP}
    warmup = {name: component.params[name] for name in _WARMUP if name in component.params}
    if len(warmup) == 1:
        raise ConfigError(f"{component.where}: a warm-up needs both warmup_iters and warmup_start_lr")
    warmup_iters = warmup.get("warmup_iters", 0)
    if component.type == "PolynomialDecay":
        params.setdefault("decay_steps", max(iters - warmup_iters, 1))
    registry.check_arguments(Component(component.type, params, component.where), cls)
    made = registry.call(component, cls, params)
    if not warmup_iters:
        return made
    if component.type == "ReduceOnPlateau":
        raise ConfigError(
            f"{component.where}: Paddle's warm-up hands ReduceOnPlateau no losses; leave out one of the two"
        )
    start, end = warmup["warmup_start_lr"], params.get("learning_rate")
    if end is None:
        raise ConfigError(
            f"{component.where}: a warm-up ends at the schedule's learning_rate, which {component.type} has not"
        )
    numbers = all(isinstance(value, int | float) for value in (start, end, warmup_iters))
    if not numbers or not 0 <= start < end or warmup_iters < 1:
        raise ConfigError(
            f"{component.where}: a warm-up rises from warmup_start_lr to learning_rate in warmup_iters iterations, "
            f"but these are {start}, {end} and {warmup_iters}"
        )
    return paddle.optimizer.lr.LinearWarmup(learning_rate=made, warmup_steps=warmup_iters, start_lr=start, end_lr=end)
