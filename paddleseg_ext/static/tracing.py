"""A layer written for tensors, inside a program."""

from typing import Any

from paddle import nn
from paddle.jit.dy2static.convert_call_func import convert_call


def traced(layer: nn.Layer, *inputs: Any) -> Any:
    """What the layer's forward makes of variables, in the current program.

    Forwards may look at the sizes of tensors and branch on them, as PaddleSeg's do: their code is translated, as
    paddle.jit.to_static does it for export.
    """
    return convert_call(layer)(*inputs)
