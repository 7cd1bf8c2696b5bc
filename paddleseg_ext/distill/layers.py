"""What is inside a model: its layers in the order of a forward, and which of two models' layers correspond."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import paddle
from paddle import Tensor, nn

_STRIDES = (4, 8, 16, 32)  # of stages; larger ones are poolings for context


@dataclass(frozen=True)
class LayerRecord:
    """One layer in one forward.

    name: as in `named_sublayers`. kind: its class. shape: of its output. size: height and width of the image.
    parameters: in it and below it. seconds: in it and below it. depth: 0 to 1, the share of the forward's time that had
    passed when it ended.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    size: tuple[int, int]
    parameters: int
    seconds: float
    depth: float

    @property
    def stride(self) -> int | None:
        """Pixels of the image per pixel of the output, where it is a map and both sides agree."""
        if len(self.shape) != 4:
            return None
        strides = {round(whole / part) for whole, part in zip(self.size, self.shape[2:], strict=True)}
        return strides.pop() if len(strides) == 1 else None


@paddle.no_grad()
def record_layers(model: nn.Layer, image: Tensor) -> list[LayerRecord]:
    """Run a model on an image [1, 3, H, W] in eval mode and write down every layer whose output is a tensor.

    A layer that is called several times counts by its last call. The mode is put back.
    """
    ended: dict[str, tuple[Tensor, float, float]] = {}
    begun: dict[str, float] = {}
    hooks, was_training = [], model.training

    def watch(name: str, layer: nn.Layer) -> None:
        def before(_layer: nn.Layer, _inputs: Any) -> None:
            begun[name] = time.perf_counter()

        def after(_layer: nn.Layer, _inputs: Any, output: Any) -> None:
            now = time.perf_counter()
            if isinstance(output, list | tuple) and len(output) == 1:
                output = output[0]
            ended.pop(name, None)
            if isinstance(output, Tensor):
                ended[name] = (output, now - begun[name], now)

        hooks.append(layer.register_forward_pre_hook(before))
        hooks.append(layer.register_forward_post_hook(after))

    layers = dict(model.named_sublayers())
    for name, layer in layers.items():
        watch(name, layer)
    model.eval()
    try:
        model(image)
        ended.clear()  # the first run prepares kernels and would be timed with them
        started = time.perf_counter()
        model(image)
        whole = max(time.perf_counter() - started, 1e-9)
    finally:
        for hook in hooks:
            hook.remove()
        if was_training:
            model.train()
    return [
        LayerRecord(
            *(name, type(layers[name]).__name__, tuple(output.shape), (image.shape[2], image.shape[3])),
            *(sum(math.prod(p.shape) for p in layers[name].parameters()), seconds, (now - started) / whole),
        )
        for name, (output, seconds, now) in ended.items()
    ]


def stages(records: Sequence[LayerRecord]) -> dict[int, LayerRecord]:
    """By stride, the last of the outermost layers that make maps of this stride on the way down.

    The backbone's layers are preferred; layers without parameters are not counted.
    """
    within = [r for r in records if r.name.startswith("backbone.")] or list(records)
    found: dict[int, list[LayerRecord]] = {}
    for record in within:
        stride = record.stride
        if stride not in _STRIDES or record.parameters == 0:
            continue
        if stride >= max(found, default=0):  # not on the way up again
            found.setdefault(stride, []).append(record)
    return {stride: _last_outermost(layers) for stride, layers in found.items()}


def _last_outermost(layers: Sequence[LayerRecord]) -> LayerRecord:
    """Whole blocks before what is inside the next one."""
    level = min(r.name.count(".") for r in layers)
    return [r for r in layers if r.name.count(".") == level][-1]


def suggest_pairs(
    student: Sequence[LayerRecord], teacher: Sequence[LayerRecord]
) -> list[tuple[LayerRecord, LayerRecord]]:
    """Layers to distil, the deepest first: the two models' stages of equal stride, else of the nearest stride.

    Tokens of a teacher without maps are matched by depth.
    """
    s, t = stages(student), stages(teacher)
    if not s or not t:
        return _by_depth(student, teacher)
    common = sorted(set(s) & set(t), reverse=True)
    if common:
        return [(s[stride], t[stride]) for stride in common]
    nearest = min(((a, b) for a in s for b in t), key=lambda ab: abs(math.log2(ab[0] / ab[1])))
    return [(s[nearest[0]], t[nearest[1]])]


def _by_depth(student: Sequence[LayerRecord], teacher: Sequence[LayerRecord]) -> list[tuple[LayerRecord, LayerRecord]]:
    def deep(records: Sequence[LayerRecord]) -> LayerRecord | None:
        able = [r for r in records if r.parameters and len(r.shape) in (3, 4) and min(r.shape[1:3]) > 1]
        blocks = [r for r in able if r.name.startswith("backbone.")] or able
        return blocks[-1] if blocks else None

    pair = deep(student), deep(teacher)
    return [(pair[0], pair[1])] if pair[0] is not None and pair[1] is not None else []
