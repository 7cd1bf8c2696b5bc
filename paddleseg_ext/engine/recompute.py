"""Memory for time: activations inside of a model's blocks are computed anew in the backward instead of being kept."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import paddle
from paddle import nn

from paddleseg_ext.errors import ConfigError

_SWITCH = "_recomputes"  # of a block: whether it is computed anew
_BLOCK = 2  # weights that a block has at least: in a smaller one nothing lies between what is kept


def recompute_blocks(model: nn.Layer) -> int:
    """Let each block of the model keep only what goes into it while it trains; returns how many blocks there are.

    A block is a smallest sub-layer with at least two weights of two or more axes, such as a residual block, or the attention of
    a transformer. Gradients, random numbers and running statistics are those without it; names of weights stay. A step takes
    about one more forward.

    Raises:
        ConfigError: the model has no such block.
    """
    found = [layer for layer in _blocks(model) if layer is not model]
    for layer in found:
        vars(layer)["forward"] = _recomputed(layer, layer.forward)
        vars(layer)[_SWITCH] = True
    if not found:
        raise ConfigError(f"--recompute: {type(model).__name__} has no blocks to compute anew; leave the flag out")
    return len(found)


@contextmanager
def activations_kept(model: nn.Layer) -> Iterator[None]:
    """Inside, blocks keep their activations: Paddle's come back for one backward alone."""
    switched = [layer for layer in model.sublayers(include_self=True) if _SWITCH in vars(layer)]
    for layer in switched:
        vars(layer)[_SWITCH] = False
    try:
        yield
    finally:
        for layer in switched:
            vars(layer)[_SWITCH] = True


def _blocks(layer: nn.Layer) -> Iterator[nn.Layer]:
    inner = [block for child in layer.children() for block in _blocks(child)]
    if inner:
        yield from inner
    elif sum(parameter.ndim > 1 for parameter in layer.parameters()) >= _BLOCK and _has_forward(layer):
        yield layer


def _has_forward(layer: nn.Layer) -> bool:
    """A list of layers has none of its own."""
    return type(layer).forward is not nn.Layer.forward


def _recomputed(layer: nn.Layer, forward: Callable[..., Any]) -> Callable[..., Any]:
    from paddle.distributed.fleet.utils import recompute

    norms = [part for part in layer.sublayers(include_self=True) if isinstance(part, nn.layer.norm._BatchNormBase)]

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not layer.training or not paddle.is_grad_enabled() or not vars(layer)[_SWITCH]:
            return forward(*args, **kwargs)
        runs = 0

        def once_more(*args: Any, **kwargs: Any) -> Any:
            nonlocal runs
            runs += 1
            with _unmoved(norms if runs > 1 else []):
                return forward(*args, **kwargs)

        return recompute(once_more, *args, use_reentrant=False, **kwargs)

    return run


@contextmanager
def _unmoved(norms: list[Any]) -> Iterator[None]:
    """Batch norms see the batch for the second time; their running statistics have seen it."""
    kept = [norm._momentum for norm in norms]
    for norm in norms:
        norm._momentum = 1.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, kept, strict=True):
            norm._momentum = momentum
