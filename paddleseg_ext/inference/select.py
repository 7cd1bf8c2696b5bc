"""Which engine may stand for a model: the fastest of those that are proved to give the same."""

import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import paddle
from paddle import Tensor, nn

from paddleseg_ext.inference.job import ExportJob, export
from paddleseg_ext.inference.runners import BACKENDS
from paddleseg_ext.inference.worker import EngineError, OnDevice, Runner, Worker, start

Engine = Worker | OnDevice

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
    run: Engine | None
    trials: Sequence[Trial] = field(default_factory=tuple)


@dataclass(frozen=True)
class Contest:
    """What engines compete for: to give what a layer gives, faster.

    job: what is exported. model, weights: the model and its weights' digest. layer: gives the wanted tensors by the Paddle layer.
    images: batches to compare on, float32 [N, C, H, W] of one shape. cache: folder of earlier exports. threads: of the CPU.
    reset: called after an engine has run in this process, whose settings it changes.
    """

    job: ExportJob
    model: nn.Layer
    weights: str
    layer: Runner
    images: Sequence[Tensor]
    cache: Path
    threads: int
    reset: Callable[[], None]
    bounds: Bounds = field(default_factory=Bounds)


def select(contest: Contest, engines: Sequence[str] = tuple(BACKENDS), *, against_layer: bool = True) -> Choice:
    """Export the model for each engine, compare it with the layer on the images, time what passes, take the fastest.

    Args:
        engines: which of BACKENDS, or one with its precision ('paddle bf16').
        against_layer: whether it must be faster than the layer; not so where one is asked for: which is faster today may be
            another than yesterday.
    """
    wanted = [contest.layer(batch) for batch in contest.images]
    best = Choice("layer", None)
    by_layer = _seconds(contest.layer, contest.images[0], contest.reset)
    trials = [Trial("layer", 1e3 * by_layer)]
    fastest = by_layer if against_layer else float("inf")
    for engine in engines:
        name, *precisions = engine.split()
        missing = [module for module in BACKENDS[name].modules if importlib.util.find_spec(module) is None]
        if missing:
            trials.append(Trial(name, problem=f"{' and '.join(missing)} not installed"))
            continue
        for precision in precisions or _precisions(name):
            trial, run = _tried(contest, name, precision, wanted, fastest)
            if trial != trials[-1]:  # an export that fails does so for each precision
                trials.append(trial)
            if run is None:
                continue
            assert trial.milliseconds is not None
            if trial.milliseconds < 1e3 * fastest:
                if best.run is not None:
                    best.run.close()
                best, fastest = Choice(trial.name, run), trial.milliseconds / 1e3
            else:
                run.close()
    return Choice(best.name, best.run, trials)


def _precisions(name: str) -> tuple[str, ...]:
    if paddle.get_device().startswith("gpu"):
        return ("fp16", "fp32") if name == "paddle" else ()
    return BACKENDS[name].precisions


def _tried(
    contest: Contest, name: str, precision: str, wanted: Sequence[Sequence[Tensor]], fastest: float
) -> tuple[Trial, Engine | None]:
    """The first export that gives the same, its images of any size if possible, else of the size at hand alone."""
    title, problems = f"{name} {precision}", list[Trial]()
    kinds = BACKENDS[name].kinds[: 1 if precision == "bf16" else None]
    for kind in (kind + fixed for kind in kinds for fixed in ("", "-fixed")):
        folder, reason = export(contest.job, contest.model, contest.weights, kind, contest.cache)
        if folder is None:
            problems.append(Trial(name, problem=reason))
            continue
        try:
            run = start(name, folder, precision, contest.threads, contest.images[0])
        except EngineError as error:
            problems.append(Trial(title, problem=str(error)))
            continue
        try:
            given = [run(batch) for batch in contest.images]
            worst = compare(title, given, wanted)
            differs = exceeds(worst, contest.bounds)
            if not differs:
                seconds = _seconds(run, contest.images[0], contest.reset, 2 * fastest)
                return replace(worst, milliseconds=1e3 * seconds), run
            problems.append(replace(worst, problem=f"differs: {differs}"))
        except EngineError as error:
            problems.append(Trial(title, problem=str(error)))
        finally:
            contest.reset()
        run.close()
    # What an engine did says more than what could not be exported.
    return next((trial for trial in problems if trial.name == title), problems[0]), None


def compare(name: str, given: Sequence[Sequence[Tensor]], wanted: Sequence[Sequence[Tensor]]) -> Trial:
    """The worst of all tensors of all batches, and of the first tensor, the logits, by class."""
    largest, mean, same = 0.0, 0.0, 1.0
    for ours, theirs in zip(given, wanted, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            if a.shape != b.shape or not bool(paddle.isfinite(a).all()):
                return Trial(name, None, float("inf"), float("inf"), 0.0)
            a, b = a.astype("float32"), b.astype("float32")
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


def _seconds(run: Runner, images: Tensor, reset: Callable[[], None], enough: float = float("inf")) -> float:
    """The median of a few runs; one run is enough where it takes longer than that."""
    times: list[float] = []
    while len(times) < _REPEATS and (not times or times[0] < enough):
        started = time.perf_counter()
        run(images)
        if paddle.get_device().startswith("gpu"):
            paddle.device.synchronize()
        times.append(time.perf_counter() - started)
        reset()
    return statistics.median(times)
