"""The only training loop."""

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import paddle
from paddle import Tensor

from paddleseg_ext.engine.env import mean_over_ranks, seed_everything
from paddleseg_ext.types import Batch, StepOutput


@dataclass
class Progress:
    """What a hook can see and, by `stop` alone, change. `iteration` counts the finished ones."""

    iteration: int
    iters: int
    batch: Batch | None = None
    output: StepOutput | None = None
    lr: float = 0.0
    reader_cost: float = 0.0  # seconds waited for the batch
    batch_cost: float = 0.0  # seconds of the whole iteration, as the host sees it
    stop: bool = False

    def due(self, interval: int) -> bool:
        """Whether this iteration is a multiple of the interval or the last."""
        return self.iteration % interval == 0 or self.iteration == self.iters


class Hook(Protocol):
    """Something that happens beside the loop."""

    def before_run(self, progress: Progress) -> None:
        """Called once before the first iteration."""

    def after_step(self, progress: Progress) -> None:
        """Called after each iteration, in the order of the hooks."""

    def close(self) -> None:
        """Called at the end, however it comes."""


class Trainer:
    """Runs a step over a loader.

    Args:
        precision: 'fp32', or 'fp16'/'bf16' for automatic mixed precision (level O1).
        accumulate: each batch is worked through in so many equal parts, whose gradients are averaged before the update.
        seed, rank: before each iteration the global random generators are seeded from (seed, iteration, rank), so that what
            dropout and its like draw needs no state to resume.
    """

    def __init__(self, precision: str = "fp32", seed: int = 0, rank: int = 0, accumulate: int = 1) -> None:
        self.precision, self.seed, self.rank, self.accumulate = precision, seed, rank, accumulate
        self.scaler = paddle.amp.GradScaler(enable=precision == "fp16", init_loss_scaling=1024)

    def run(
        self,
        step: Callable[[Batch], StepOutput],
        loader: Iterable[Batch],
        optimizer: paddle.optimizer.Optimizer,
        hooks: Sequence[Hook],
        iters: int,
        start: int = 0,
    ) -> Progress:
        """Train from iteration `start` to `iters`, or until a hook says stop. No iteration waits for the device by itself."""
        progress = Progress(start, iters)
        try:
            for hook in hooks:
                hook.before_run(progress)
            batches = iter(loader)
            while progress.iteration < iters and not progress.stop:
                started = time.perf_counter()
                progress.batch = next(batches)
                progress.reader_cost = time.perf_counter() - started
                seed_everything(self.seed, progress.iteration, self.rank)
                progress.lr = optimizer.get_lr()
                progress.output = self._update(step, progress.batch, optimizer)
                progress.iteration += 1
                progress.batch_cost = time.perf_counter() - started
                for hook in hooks:
                    hook.after_step(progress)
        finally:
            for hook in hooks:
                hook.close()
        return progress

    def _update(
        self, step: Callable[[Batch], StepOutput], batch: Batch, optimizer: paddle.optimizer.Optimizer
    ) -> StepOutput:
        parts = batch.parts(self.accumulate)
        losses: dict[str, Tensor] = {}
        for number, part in enumerate(parts, 1):
            with _unsynchronized(step) if number < len(parts) else contextlib.nullcontext():
                output = self._forward_backward(step, part)
            for name, loss in output.losses.items():
                losses[name] = losses[name] + loss if name in losses else loss
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.clear_grad()
        scheduler = optimizer._learning_rate
        if isinstance(scheduler, paddle.optimizer.lr.ReduceOnPlateau):
            scheduler.step(mean_over_ranks(total_loss(StepOutput([], losses))))
        elif isinstance(scheduler, paddle.optimizer.lr.LRScheduler):
            scheduler.step()
        return StepOutput(output.logits, losses)

    def _forward_backward(self, step: Callable[[Batch], StepOutput], batch: Batch) -> StepOutput:
        """The part's share of the losses, its gradients added to what is there."""
        with autocast(self.precision):
            output = step(batch)
        share = 1 / self.accumulate
        self.scaler.scale(total_loss(output) * share if self.accumulate > 1 else total_loss(output)).backward()
        losses = {name: loss.detach() for name, loss in output.losses.items()}
        if self.accumulate > 1:
            losses = {name: loss * share for name, loss in losses.items()}
        return StepOutput(output.logits, losses)


def _unsynchronized(step: Callable[[Batch], StepOutput]) -> contextlib.AbstractContextManager[Any]:
    """Gradients are exchanged between processes once for an update."""
    return step.no_sync() if isinstance(step, paddle.DataParallel) else contextlib.nullcontext()


def total_loss(output: StepOutput) -> Tensor:
    """The sum of all losses, which is what is minimised."""
    losses = list(output.losses.values())
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total


def autocast(precision: str) -> contextlib.AbstractContextManager[Any]:
    """The mixed precision of one forward; its lists are PaddleSeg's for fp16."""
    if precision == "fp32":
        return contextlib.nullcontext()
    if precision == "bf16":
        return paddle.amp.auto_cast(level="O1", dtype="bfloat16")
    return paddle.amp.auto_cast(
        level="O1",
        dtype="float16",
        custom_white_list={"elementwise_add", "batch_norm", "sync_batch_norm"},
        custom_black_list={"bilinear_interp_v2"},
    )
