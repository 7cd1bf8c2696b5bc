"""PaddleSeg 2.8's ViTAdapter calls a CUDA operator that is compiled apart; without it, it ends the whole process.

Affected: the ViTAdapter backbones and UPerNetViTAdapter. They say so when they are built.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

from paddleseg_ext.compat.patch import wrap
from paddleseg_ext.errors import ConfigError

_OPERATOR = "ms_deform_attn"


def apply() -> None:
    wrap("paddleseg.models.backbones.vit_adapter:ViTAdapter.__init__", _needs_operator)
    wrap("paddleseg.models.upernet_vit_adapter:UPerNetViTAdapter.__init__", _needs_operator)


def _needs_operator(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if importlib.util.find_spec(_OPERATOR) is None:
            raise ConfigError(
                f"{type(self).__name__} needs the CUDA operator {_OPERATOR}, which this installation does not have; "
                "choose another model"
            )
        original(self, *args, **kwargs)

    return __init__
