"""Where a model has its logits before it enlarges them to the size of the image."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from paddleseg_ext.models.weights import kept_statistics
from paddleseg_ext.types import Batch

_SAME = 1e-4  # largest difference, in shares of the largest value


@paddle.no_grad()
def own_logits(model: nn.Layer, batch: Batch, but: Collection[int] = ()) -> dict[int, str]:
    """By the number of an output, the layer whose output it is before a final bilinear resize (align_corners=False).

    Most segmentation models end in one; losses before it see the same predictions in a small part of the elements. Found by
    two forwards in the model's present mode, its running statistics put back. Outputs that no layer explains, and those
    of `but`, are left out.
    """
    with kept_statistics(model):
        outputs = model(batch.images)
    # All tensors of a forward would be as much memory as training takes, so those of another number of channels are not kept.
    channels = {output.shape[1] for output in outputs if isinstance(output, Tensor) and output.ndim == 4}
    del outputs
    found: dict[str, Tensor] = {}
    hooks = []

    def watch(name: str, layer: nn.Layer) -> None:
        def after(_layer: nn.Layer, _inputs: Any, output: Any) -> None:
            parts = output if isinstance(output, list | tuple) else [output]
            for index, part in enumerate(parts):
                if isinstance(part, Tensor) and part.ndim == 4 and part.shape[1] in channels:
                    key = name if len(parts) == 1 else f"{name}[{index}]"
                    found.pop(key, None)
                    found[key] = part

        hooks.append(layer.register_forward_post_hook(after))

    for name, layer in model.named_sublayers():
        watch(name, layer)
    try:
        with kept_statistics(model):
            outputs = model(batch.images)
    finally:
        for hook in hooks:
            hook.remove()
    named = ((index, _source(output, found)) for index, output in enumerate(outputs))
    return {index: name for index, name in named if name is not None and index not in but}


def replaced(outputs: Sequence[Tensor], caught: Mapping[str, Tensor], own: Mapping[int, str]) -> list[Tensor]:
    """The outputs, those of `own` as they were caught before the resize."""
    return [caught[own[index]] if index in own else output for index, output in enumerate(outputs)]


def _source(output: Any, found: Mapping[str, Tensor]) -> str | None:
    if not isinstance(output, Tensor) or output.ndim != 4:
        return None
    size, largest = output.shape[2:], float(output.abs().max())
    for name, x in reversed(list(found.items())):
        smaller = x.shape[:2] == output.shape[:2] and x.shape[2] * x.shape[3] < size[0] * size[1]
        if not smaller or min(x.shape[2:]) < 2 or max(x.shape[2:]) < 3:
            continue
        # Only a resize like the one that brings two maps to one size: with align_corners they would lie beside each other.
        resized = F.interpolate(x, size, mode="bilinear", align_corners=False)
        if float((resized - output).abs().max()) <= _SAME * largest:
            return name
    return None
