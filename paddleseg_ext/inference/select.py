"""Which engine may stand for a model: the fastest of those that are proved to give the same."""

import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import paddle
from paddle import Tensor, nn

from paddleseg_ext.inference.job import ExportJob, export
from paddleseg_ext.inference.runners import BACKENDS, Runner

_REPEATS = 5


@dataclass(frozen=True)
class Bounds:
    """How far an engine may be from the layer on every wanted tensor: errors as shares of the tensor's range; share of pixels
    of the logits with the same highest class."""

    max_error: float = 0.05
    mean_error: float = 0.005
    same_class: float = 0.98


@dataclass(frozen=True)
class Trial:
    """One engine: what it did, or why not."""

    name: str
    milliseconds: float | None = None
    max_error: float | None = None
    mean_error: float | None = None
    same_class: float | None = None
    problem: str = ""

    def __str__(self) -> str:
        if self.milliseconds is None:
            return f"{self.name}: {self.problem}"
        text = f"{self.name}: {self.milliseconds:.1f} ms"
        if self.max_error is not None:
            text += f", error {100 * self.max_error:.2g} % (mean {100 * (self.mean_error or 0):.2g} %)"
        if self.same_class is not None:
            text += f", same class {100 * self.same_class:.2f} %"
        return text + (f": {self.problem}" if self.problem else "")


@dataclass(frozen=True)
class Choice:
    """The engine to use, None for the layer itself, and everything that was tried; the first trial is the layer."""

    name: str
    run: Runner | None
    trials: Sequence[Trial] = field(default_factory=tuple)


def select(
    job: ExportJob,
    model: nn.Layer,
    weights: str,
    layer: Runner,
    images: Sequence[Tensor],
    *,
    cache: Path,
    threads: int,
    reset: Callable[[], None],
    engines: Sequence[str] = tuple(BACKENDS),
    bounds: Bounds | None = None,
) -> Choice:
    """Export the model for each back end, compare it with the layer on the images, time what passes, take the fastest.

    Args:
        job: what is exported.
        model, weights: the model and its weights' digest.
        layer: gives the same tensors by the Paddle layer.
        images: batches to compare on, float32 [N, C, H, W] of one shape.
        cache: folder of earlier exports.
        threads: of the CPU.
        reset: called after an engine has run; engines change settings of the whole process.
        engines: which of BACKENDS, or one with its precision ('paddle bf16').
        bounds: default Bounds().
    """
    bounds = bounds or Bounds()
    wanted = [layer(batch) for batch in images]
    fastest: tuple[float, str, Runner | None] = (_seconds(layer, images[0], reset), "layer", None)
    trials = [Trial("layer", 1e3 * fastest[0])]
    for engine in engines:
        name = engine.split()[0]
        missing = [module for module in BACKENDS[name].modules if importlib.util.find_spec(module) is None]
        if missing:
            trials.append(Trial(name, problem=f"{' and '.join(missing)} not installed"))
            continue
        for precision in engine.split()[1:] or _precisions(name):
            trial, run = _tried(job, model, weights, name, precision, wanted, images, cache, threads, reset, bounds)
            trials.append(trial)
            if run is not None and trial.milliseconds is not None and trial.milliseconds / 1e3 < fastest[0]:
                fastest = trial.milliseconds / 1e3, trial.name, run
            if trial.max_error is None:
                break  # what cannot be exported or started in one precision cannot in another
    return Choice(fastest[1], fastest[2], trials)


def _precisions(name: str) -> tuple[str, ...]:
    if paddle.get_device().startswith("gpu"):
        return ("fp16", "fp32") if name == "paddle" else ()
    return BACKENDS[name].precisions


def _tried(
    job: ExportJob,
    model: nn.Layer,
    weights: str,
    name: str,
    precision: str,
    wanted: Sequence[Sequence[Tensor]],
    images: Sequence[Tensor],
    cache: Path,
    threads: int,
    reset: Callable[[], None],
    bounds: Bounds,
) -> tuple[Trial, Runner | None]:
    """For images of any size where that can be exported and run, else for these alone."""
    title, problem = f"{name} {precision}", ""
    for kind in (BACKENDS[name].kind, f"{BACKENDS[name].kind}-fixed"):
        folder, reason = export(job, model, weights, kind, cache)
        if folder is None:
            problem = problem or reason
            continue
        try:
            run = BACKENDS[name].start(folder, precision, threads)
            given = [[x.astype("float32") for x in run(batch)] for batch in images]
        except Exception as error:  # engines raise what they like; the layer is still there
            problem = problem or " ".join(str(error).split())[-200:] or type(error).__name__
            continue
        finally:
            reset()
        worst = compare(title, given, wanted)
        differs = exceeds(worst, bounds)
        if differs:
            return Trial(title, None, worst.max_error, worst.mean_error, worst.same_class, f"differs: {differs}"), None
        seconds = _seconds(run, images[0], reset)
        return Trial(title, 1e3 * seconds, worst.max_error, worst.mean_error, worst.same_class), run
    return Trial(title, problem=problem), None


def compare(name: str, given: Sequence[Sequence[Tensor]], wanted: Sequence[Sequence[Tensor]]) -> Trial:
    """The worst of all tensors of all batches, and of the first tensor, the logits, by class."""
    largest, mean, same = 0.0, 0.0, 1.0
    for ours, theirs in zip(given, wanted, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            if a.shape != b.shape or not bool(paddle.isfinite(a).all()):
                return Trial(name, None, float("inf"), float("inf"), 0.0)
            extent = max(float(b.max() - b.min()), 1e-12)
            largest = max(largest, float((a - b).abs().max()) / extent)
            mean = max(mean, float((a - b).abs().mean()) / extent)
        same = min(same, float((ours[0].argmax(1) == theirs[0].argmax(1)).astype("float32").mean()))
    return Trial(name, None, largest, mean, same)


def exceeds(trial: Trial, bounds: Bounds) -> str:
    """Which bound a comparison exceeds, in words; nothing where it is within all."""
    assert trial.max_error is not None and trial.mean_error is not None and trial.same_class is not None
    if trial.max_error > bounds.max_error:
        return f"largest error {100 * trial.max_error:.3g} % of the range, allowed {100 * bounds.max_error:g} %"
    if trial.mean_error > bounds.mean_error:
        return f"mean error {100 * trial.mean_error:.3g} % of the range, allowed {100 * bounds.mean_error:g} %"
    if trial.same_class < bounds.same_class:
        return f"same class for {100 * trial.same_class:.2f} % of the pixels, wanted {100 * bounds.same_class:g} %"
    return ""


def _seconds(run: Runner, images: Tensor, reset: Callable[[], None]) -> float:
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        for x in run(images):
            x.shape  # noqa: B018 (on a GPU, the next line waits)
        if paddle.get_device().startswith("gpu"):
            paddle.device.synchronize()
        times.append(time.perf_counter() - started)
        reset()
    return statistics.median(times)
