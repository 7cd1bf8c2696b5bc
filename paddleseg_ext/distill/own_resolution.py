"""Where a model has its logits before it enlarges them to the size of the image."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from paddleseg_ext.losses.functional import mixing
from paddleseg_ext.models.weights import kept_statistics
from paddleseg_ext.types import Batch

_SAME = 1e-4  # largest difference, in shares of the largest value


@dataclass(frozen=True)
class Source:
    """Where a model has an output before its final bilinear resize.

    layer: whose output it is, `layer[1]` for an element. align_corners: of the resize.
    """

    layer: str
    align_corners: bool = False

    def enlarged(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """The output, as the model resizes what the layer gives."""
        if tuple(x.shape[2:]) == tuple(size):
            return x
        return F.interpolate(x, list(size), mode="bilinear", align_corners=self.align_corners)

    def centred(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """The output of this size at the centres of the parts of the image, as many as the layer's map has positions.

        So maps of two models lie upon each other. Without aligned corners that is the map itself; with them, its first and last
        positions are the image's corners, and values between neighbours are taken: position j of h is read at
        ((j + 0.5) H / h - 0.5) (h - 1) / (H - 1). A multiplication by a matrix for each axis, h + w operations for an element.
        """
        if not self.align_corners or tuple(x.shape[2:]) == tuple(size):
            return x
        down, across = (
            paddle.to_tensor(_centring(cells, pixels)) for cells, pixels in zip(x.shape[2:], size, strict=True)
        )
        with paddle.amp.auto_cast(enable=False):
            return paddle.matmul(down, paddle.matmul(x.astype("float32"), across, transpose_y=True))


def _centring(cells: int, pixels: int) -> np.ndarray:
    centres = (np.arange(cells) + 0.5) * pixels / cells - 0.5
    first, matrix = mixing(centres * (cells - 1) / (pixels - 1))
    square = np.zeros((cells, cells), "float32")
    square[:, first : first + matrix.shape[1]] = matrix
    return square


@paddle.no_grad()
def own_logits(model: nn.Layer, batch: Batch, but: Collection[int] = ()) -> dict[int, Source]:
    """By the number of an output, where it is before a final bilinear resize to the image's size.

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
    size = batch.images.shape[2:]
    sources = {index: _source(output, found, size) for index, output in enumerate(outputs) if index not in but}
    return {index: source for index, source in sources.items() if source is not None}


def replaced(outputs: Sequence[Tensor], caught: Mapping[str, Tensor], own: Mapping[int, Source]) -> list[Tensor]:
    """The outputs, those of `own` at the network's resolution, from what was caught before the resize."""
    return [
        own[index].centred(caught[own[index].layer], output.shape[2:]) if index in own else output
        for index, output in enumerate(outputs)
    ]


def _source(output: Any, found: Mapping[str, Tensor], image: Sequence[int]) -> Source | None:
    if not isinstance(output, Tensor) or output.ndim != 4:
        return None
    size, largest = output.shape[2:], float(output.abs().max())
    for name, x in reversed(list(found.items())):
        smaller = x.shape[:2] == output.shape[:2] and x.shape[2] * x.shape[3] < size[0] * size[1]
        if not smaller or min(x.shape[2:]) < 2 or max(x.shape[2:]) < 3:
            continue
        for aligned in (False, True) if list(size) == list(image) else (False,):
            source = Source(name, aligned)
            if float((source.enlarged(x, size) - output).abs().max()) <= _SAME * largest:
                return source
    return None
