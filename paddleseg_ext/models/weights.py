"""Weights into models: fetched, read safely, matched by name and shape, and reported."""

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

import numpy as np
import paddle
from paddle import nn

from paddleseg_ext.errors import WeightsError
from paddleseg_ext.models.safe_load import safe_load

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """How a weights file met a model: entries of the model's state matched, missing, and of another shape."""

    source: str
    model: nn.Layer
    matched: int
    total: int
    missing: tuple[str, ...]
    mismatched: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.source}: {self.matched} of {self.total} tensors of {type(self.model).__name__} matched"
        for what, names in (("missing", self.missing), ("of another shape", self.mismatched)):
            if names:
                text += f"; {len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        return text


def load_weights(model: nn.Layer, source: str, *, strict: bool = False) -> LoadReport:
    """Load what matches from a weights file into a model.

    Args:
        source: a .pdparams file, a folder with `model.pdparams` in it, or a URL (downloaded once, as PaddleSeg does).
        strict: every tensor of the model must be there, in its shape.

    Raises:
        WeightsError: the file cannot be had or read, nothing in it matches, or (strict) something does not.
    """
    weights = safe_load(_local_path(source))
    report = _match_and_set(model, weights, source)
    if report.matched == 0:
        raise WeightsError(f"{report}: these weights belong to another model")
    if strict and report.matched < report.total:
        raise WeightsError(str(report))
    level = logging.INFO if report.matched == report.total else logging.WARNING
    _log.log(level, "weights %s", report)
    return report


def running_statistics(model: nn.Layer) -> dict[str, paddle.Tensor]:
    """What a forward may change and a checkpoint keeps: everything in a model's state that no gradient trains.

    Not `named_buffers`: Paddle's batch norm keeps its statistics as untrained parameters, while any tensor that a forward
    leaves as an attribute of a layer counts as a buffer.
    """
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.stop_gradient}


@contextlib.contextmanager
def kept_statistics(model: nn.Layer) -> Iterator[None]:
    """Forwards in here may be in train mode; the running statistics are put back afterwards."""
    statistics = running_statistics(model)
    kept = {name: tensor.clone() for name, tensor in statistics.items()}
    try:
        yield
    finally:
        for name, tensor in statistics.items():
            tensor.set_value(kept[name])


@contextlib.contextmanager
def reported_loading() -> Iterator[list[LoadReport]]:
    """While models are built, what their constructors load goes through `load_weights`; yields the reports.

    PaddleSeg's constructors load `pretrained` themselves, some with their own code around `paddle.load`.
    """
    from paddleseg.utils import utils

    reports: list[LoadReport] = []

    def load_pretrained_model(model: nn.Layer, pretrained_model: str | None) -> None:
        if pretrained_model is not None:
            reports.append(load_weights(model, pretrained_model))

    originals = (utils.load_pretrained_model, paddle.load)
    utils.load_pretrained_model, paddle.load = load_pretrained_model, safe_load
    try:
        yield reports
    finally:
        utils.load_pretrained_model, paddle.load = originals


def _local_path(source: str) -> str:
    if urlparse(source).netloc:
        from paddleseg.utils.utils import download_pretrained_model

        try:
            return download_pretrained_model(source)
        except Exception as error:
            raise WeightsError(f"{source}: download failed ({type(error).__name__}: {str(error)[:160]})") from None
    return os.path.join(source, "model.pdparams") if os.path.isdir(source) else source


def _match_and_set(model: nn.Layer, weights: Mapping[str, Any], source: str) -> LoadReport:
    state = model.state_dict()
    found: dict[str, np.ndarray] = {}
    missing, mismatched = [], []
    for name, tensor in state.items():
        given = weights.get(name)
        if isinstance(given, tuple) and len(given) == 2:  # older files hold (parameter name, array)
            given = given[1]
        if not isinstance(given, np.ndarray) or given.dtype.kind not in "biuf":
            missing.append(name)
        elif list(given.shape) != list(tensor.shape):
            mismatched.append(f"{name} {list(given.shape)} for {list(tensor.shape)}")
        else:
            found[name] = _as_dtype(given, str(tensor.dtype).split(".")[-1])
    model.set_state_dict(found)
    return LoadReport(source, model, len(found), len(state), tuple(missing), tuple(mismatched))


def _as_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
    stored = "bfloat16" if array.dtype == np.uint16 else str(array.dtype)  # bfloat16 is stored as its bits
    if stored == dtype:
        return array
    if stored == "bfloat16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return paddle.to_tensor(array).astype(dtype).numpy() if dtype == "bfloat16" else array.astype(dtype)


def digest(model: nn.Layer) -> str:
    """SHA-256 of all weights and buffers."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(name.encode())
        sha.update(np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()
