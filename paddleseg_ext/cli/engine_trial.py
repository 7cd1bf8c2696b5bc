"""One of PaddleSeg's models as a teacher that engines compete for, for the `models` command."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from paddleseg_ext.cli.model_trial import component
from paddleseg_ext.distill.adaptor import AdaptorBase
from paddleseg_ext.distill.own_resolution import own_logits
from paddleseg_ext.distill.recorder import Recorder
from paddleseg_ext.engine import env
from paddleseg_ext.inference.job import ExportJob, plain
from paddleseg_ext.inference.runners import BACKENDS
from paddleseg_ext.inference.select import Bounds, Choice, Contest, select
from paddleseg_ext.models.build import build_model
from paddleseg_ext.models.catalogue import CATALOGUE, model_config
from paddleseg_ext.models.weights import digest
from paddleseg_ext.teachers.engine import Wanted
from paddleseg_ext.teachers.model import ModelTeacher
from paddleseg_ext.types import Batch

_NUM_CLASSES, _BATCHES = 5, 2


@dataclass
class EngineTrial:
    """What came of it. layer, best: milliseconds of a forward of two images; errors are shares of the range of the logits.

    engine: the one that is used, 'layer' where none will do. size: of the images. threads: of the CPU. tried: everything, in
    words.
    """

    name: str
    size: int = 0
    threads: int = 0
    engine: str = "layer"
    layer: float = 0.0
    best: float = 0.0
    max_error: float = 0.0
    same_class: float = 0.0
    tried: tuple[str, ...] = ()
    failure: str = ""


def attempt_engines(name: str, cache: Path) -> EngineTrial:
    """Let engines compete for the first output of a registered model in eval mode."""
    size = 2 * CATALOGUE[name].size if CATALOGUE[name].size == 64 and name not in _FIXED else CATALOGUE[name].size
    trial = EngineTrial(name, size, env.threads())
    try:
        paddle.seed(0)
        config = component(model_config(name, _NUM_CLASSES), "model")
        model, _ = build_model(config, _NUM_CLASSES)
        with _contest(model, plain(config), _images(size), cache) as contest:
            _note(trial, select(contest))
    except Exception as error:
        trial.failure = " ".join(str(error).split())[:300] or type(error).__name__
    return trial


_FIXED = ("LinearSegmenter", "MaskSegmenter", "SegmentationTransformer", "UPerNetCAE")
"""Models whose entry in the catalogue is built for images of its size."""


@contextmanager
def _contest(model: nn.Layer, config: Any, images: list[Tensor], cache: Path) -> Iterator[Contest]:
    settle(model, images[0])
    batch = Batch(images[0], paddle.zeros([2, *images[0].shape[2:]], "int64"))
    own = own_logits(model, batch)
    with Recorder(AdaptorBase(model), [source.layer for source in own.values()]) as recorder:
        layer = ModelTeacher(model, recorder, own)
        shapes = [x.shape if isinstance(x, Tensor) else () for x in layer(batch).logits]
        wanted = Wanted.of(layer, images[0].shape[2:], shapes, (), used=[0])
        job = ExportJob(
            *(config, _NUM_CLASSES, 3, tuple(wanted.names), tuple(recorder.names), None, tuple(images[0].shape))
        )
        yield Contest(
            *(job, model, digest(model), wanted.by_layer(layer), images),
            cache=cache,
            threads=env.threads(),
            reset=env.use_all_cores,
            bounds=Bounds(),
        )


@paddle.no_grad()
def settle(model: nn.Layer, images: Tensor) -> None:
    """Bring batch norms half-way to the statistics of the images.

    With fresh ones values grow from layer to layer, as in no trained network; with those of two images alone, a norm after
    global pooling divides by nearly nothing.
    """
    norms = [layer for layer in model.sublayers() if isinstance(layer, nn.layer.norm._BatchNormBase)]
    kept = [norm._momentum for norm in norms]
    for norm in norms:
        norm._momentum = 0.5
    model.train()
    model(images)
    model.eval()
    for norm, momentum in zip(norms, kept, strict=True):
        norm._momentum = momentum


def _images(size: int) -> list[Tensor]:
    """Batches of two smooth images of noise."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(_BATCHES):
        coarse, fine = (
            paddle.to_tensor(generator.normal(size=[2, 3, n, n]).astype("float32")) for n in (size // 8, size)
        )
        found.append(nn.functional.interpolate(coarse, [size, size], mode="bilinear") + 0.2 * fine)
    return found


def _note(trial: EngineTrial, choice: Choice) -> None:
    trial.tried = tuple(re.sub(r"\S*/model\.", "model.", str(one)) for one in choice.trials)  # not where its files were
    trial.engine, trial.layer = choice.name, choice.trials[0].milliseconds or 0.0
    best = next(one for one in choice.trials if one.name == choice.name)
    trial.best = best.milliseconds or 0.0
    trial.max_error, trial.same_class = best.max_error or 0.0, 1.0 if best.same_class is None else best.same_class
    if choice.run is not None:
        choice.run.close()


def verified(trial: EngineTrial) -> bool:
    """Whether an engine gives the same, fast or not."""
    return any(f"{name} " in said and " ms" in said for said in trial.tried for name in BACKENDS)
