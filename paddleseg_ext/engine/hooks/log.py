"""The log of training: one line, one record and one point of every curve each `log_iters` iterations."""

import logging
import time
from collections import defaultdict

import numpy as np
import paddle

from paddleseg_ext.engine import env
from paddleseg_ext.engine.hooks.sinks import ProgressBar, RecordFile, VisualLog
from paddleseg_ext.engine.trainer import Progress
from paddleseg_ext.errors import TrainingError

_log = logging.getLogger(__name__)


class LogHook:
    """Logs the mean of every loss since the last line, and stops training where one is not finite.

    Losses stay on the device until a line is due: other iterations wait for nothing. At that point every iteration since
    the last look is checked, so the error names the very one, with its losses and files. It looks, too, before each
    checkpoint, which therefore never holds weights that a bad loss has spoilt.

    Args:
        log_iters, save_interval: iterations between lines and between checkpoints.
        batch_size: over all ranks, for `ips` (images per second).
        writes: False on all ranks but the first, which only check.
    """

    def __init__(
        self,
        log_iters: int,
        save_interval: int,
        batch_size: int,
        batches_per_epoch: int,
        records: RecordFile,
        visual: VisualLog,
        bar: ProgressBar,
        writes: bool = True,
    ) -> None:
        self.log_iters, self.save_interval, self.batch_size = log_iters, save_interval, batch_size
        self.batches_per_epoch, self.writes = batches_per_epoch, writes
        self.records, self.visual, self.bar = records, visual, bar
        self._waiting: list[tuple[int, dict[str, paddle.Tensor], tuple[str, ...]]] = []
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._costs: list[tuple[float, float]] = []
        self._seconds, self._trained = 0.0, 0

    def before_run(self, progress: Progress) -> None:
        self.bar.start(progress.iteration, progress.iters)

    def after_step(self, progress: Progress) -> None:
        assert progress.output is not None and progress.batch is not None
        self._waiting.append((progress.iteration, progress.output.losses, progress.batch.files))
        self._costs.append((progress.batch_cost, progress.reader_cost))
        self.bar.advance()
        due = progress.iteration % self.log_iters == 0
        if due or progress.due(self.save_interval) or progress.stop:
            started = time.perf_counter()
            self._look()
            # On an accelerator the iterations' time is spent here, where the host waits for them.
            self._costs[-1] = (self._costs[-1][0] + time.perf_counter() - started, self._costs[-1][1])
        if due:
            self._write(progress)

    def close(self) -> None:
        self.bar.close()
        self.visual.close()

    def _look(self) -> None:
        """Bring the waiting losses to the host in one transfer, check them, and add up their means over the ranks."""
        if not self._waiting:
            return
        flat = paddle.stack(
            [x.astype("float32").reshape([]) for _, losses, _ in self._waiting for x in losses.values()]
        )
        own, mean = flat.numpy(), env.mean_over_ranks(flat).numpy()
        position = 0
        for iteration, losses, files in self._waiting:
            here = slice(position, position + len(losses))
            position += len(losses)
            _check(iteration, list(losses), own[here], mean[here], files)
            for name, value in zip(losses, mean[here], strict=True):
                self._sums[name] += float(value)
                self._counts[name] += 1
        self._waiting.clear()

    def _write(self, progress: Progress) -> None:
        losses = {name: self._sums[name] / self._counts[name] for name in self._sums}
        batch_cost, reader_cost = (sum(column) / len(self._costs) for column in zip(*self._costs, strict=True))
        self._seconds, self._trained = self._seconds + sum(c for c, _ in self._costs), self._trained + len(self._costs)
        self._sums.clear()
        self._counts.clear()
        self._costs.clear()
        if not self.writes:
            return
        total = sum(losses.values())
        costs = {
            "lr": progress.lr,
            "ips": self.batch_size / batch_cost,
            "batch_cost": batch_cost,
            "reader_cost": reader_cost,
        }
        self.records.write({"kind": "train", "iter": progress.iteration, "loss": total, **losses, **costs})
        self.visual.scalars(
            progress.iteration, {f"Train/{k}": v for k, v in {"loss": total, **losses, **costs}.items()}
        )
        left = (progress.iters - progress.iteration) * self._seconds / self._trained
        epoch = (progress.iteration - 1) // self.batches_per_epoch + 1
        _log.info(
            "[TRAIN] epoch: %d, iter: %d/%d, loss: %.4f, %s, lr: %.6f, batch_cost: %.4f, reader_cost: %.5f, "
            "ips: %.4f samples/sec | ETA %s",
            *(epoch, progress.iteration, progress.iters, total),
            ", ".join(f"{name}: {value:.4f}" for name, value in losses.items()),
            *(progress.lr, batch_cost, reader_cost, costs["ips"]),
            time.strftime("%H:%M:%S", time.gmtime(left)) if left < 86400 else f"{left / 3600:.0f} h",
        )


def _check(iteration: int, names: list[str], own: np.ndarray, mean: np.ndarray, files: tuple[str, ...]) -> None:
    if not np.isfinite(own).all():
        said = ", ".join(f"{name} {value:g}" for name, value in zip(names, own, strict=True))
        raise TrainingError(f"iteration {iteration}: a loss is not finite: {said}; batch: {', '.join(files)}")
    if not np.isfinite(mean).all():
        raise TrainingError(f"iteration {iteration}: a loss is not finite in another process, which says more")
