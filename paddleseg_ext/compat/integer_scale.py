"""PaddleSeg 2.8's aug_inference takes `scales` as a float or a list and refuses the integer that YAML makes of `1`.

Affected: test-time augmentation with a single whole scale.
"""

from collections.abc import Callable
from typing import Any

from paddleseg_ext.compat.patch import wrap


def apply() -> None:
    wrap("paddleseg.core.infer:aug_inference", _float_scale)


def _float_scale(original: Callable[..., Any]) -> Callable[..., Any]:
    def aug_inference(model: Any, im: Any, trans_info: Any, scales: Any = 1.0, *args: Any, **kwargs: Any) -> Any:
        return original(model, im, trans_info, float(scales) if isinstance(scales, int) else scales, *args, **kwargs)

    return aug_inference
