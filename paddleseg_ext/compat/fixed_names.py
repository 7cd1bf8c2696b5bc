"""PaddleSeg 2.8 gives the parameters of three backbones fixed names, and Paddle takes each name once.

Affected: MobileNetV2, ShuffleNetV2 and GhostNet: the second of a kind in one process, as a small student beside a large
teacher, could not be built. Paddle chooses their names as it does for every other layer; the keys of weights files are
not these names and stay as they are.
"""

from collections.abc import Callable
from typing import Any

from paddleseg_ext.compat.patch import wrap


def apply() -> None:
    for module in ("mobilenetv2", "shufflenetv2", "ghostnet"):
        wrap(f"paddleseg.models.backbones.{module}:ParamAttr", _unnamed)
        wrap(f"paddleseg.models.backbones.{module}:BatchNorm", _unnamed)


def _unnamed(original: Callable[..., Any]) -> Callable[..., Any]:
    def make(*args: Any, **kwargs: Any) -> Any:
        names = ("name", "moving_mean_name", "moving_variance_name")
        return original(*args, **{key: value for key, value in kwargs.items() if key not in names})

    return make
