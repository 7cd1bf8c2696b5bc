"""Saves checkpoints, keeps the best model, and saves and stops when asked to end."""

import logging
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import paddle
from paddle import nn

from paddleseg_ext.engine import env
from paddleseg_ext.engine.checkpoint import CheckpointStore, RunState
from paddleseg_ext.engine.hooks.evaluation import EvaluateHook
from paddleseg_ext.engine.trainer import Progress

_log = logging.getLogger(__name__)


class CheckpointHook:
    """Saves every `interval` iterations, after the last, and when training stops early. Rank 0 writes."""

    def __init__(
        self,
        store: CheckpointStore,
        model: nn.Layer,
        extras: nn.Layer | None,
        optimizer: paddle.optimizer.Optimizer,
        scaler: paddle.amp.GradScaler,
        state: RunState,
        interval: int,
        evaluation: EvaluateHook | None,
    ) -> None:
        self.store, self.model, self.extras, self.optimizer, self.scaler = store, model, extras, optimizer, scaler
        self.state, self.interval, self.evaluation = state, interval, evaluation
        self._progress: Progress | None = None

    def before_run(self, progress: Progress) -> None:
        self._progress = progress

    def after_step(self, progress: Progress) -> None:
        if not (progress.due(self.interval) or progress.stop):
            return
        env.share_statistics(self.model)
        if self.extras is not None:
            env.share_statistics(self.extras)
        metrics = self.evaluation.latest if self.evaluation else None
        better = metrics is not None and (self.state.best_miou is None or metrics.miou > self.state.best_miou)
        if better and metrics is not None:
            self.state.best_miou, self.state.best_iteration = metrics.miou, progress.iteration
        if env.rank() != 0:
            return
        if better:
            self.store.save_best(self.model)
        folder = self._save(progress)
        if metrics is not None:
            _log.info(
                "[EVAL] best mIoU %.4f at iter %s, in best_model/", self.state.best_miou, self.state.best_iteration
            )
        if progress.stop and progress.iteration < progress.iters:
            _log.warning("stopped after iter %d; go on with --resume_model %s", progress.iteration, folder)

    def save_unfinished(self) -> Path | None:
        """Save the last finished iteration when the next cannot be had, and say where; None where there is nothing to save.

        Other ranks are not asked for their part of the statistics, as they may wait for what will not come.
        """
        progress = self._progress
        if progress is None or env.rank() != 0 or progress.iteration == self.state.iteration:
            return None
        return self._save(progress)

    def _save(self, progress: Progress) -> Path:
        self.state.iteration = progress.iteration
        self.state.scaler = _plain(self.scaler.state_dict())
        return self.store.save(self.model, self.optimizer, self.state, self.extras)

    def close(self) -> None:
        pass


class StopHook:
    """Turns SIGTERM into an orderly stop: the iteration is finished, a checkpoint saved, and the command exits with 0.

    Goes before the hooks that save. With several ranks they agree at every `agree_interval` iterations, as agreeing makes
    them wait for each other.
    """

    def __init__(self, agree_interval: int) -> None:
        self.agree_interval = agree_interval
        self._asked = threading.Event()
        self._previous: Any = None

    def before_run(self, progress: Progress) -> None:
        self._previous = signal.signal(signal.SIGTERM, self._ask)

    def after_step(self, progress: Progress) -> None:
        if env.world_size() == 1 or progress.iteration % self.agree_interval == 0:
            progress.stop = env.agree(self._asked.is_set())

    def close(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def asked_alone(self) -> bool:
        """Whether it was asked and no other rank is to be waited for."""
        return self._asked.is_set() and env.world_size() == 1

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self._asked.set()


def load_scaler(scaler: paddle.amp.GradScaler, saved: dict[str, Any]) -> None:
    """Give a GradScaler the state that a checkpoint has: of its `scale`, Paddle takes the first element."""
    scaler.load_state_dict({**saved, "scale": np.atleast_1d(np.float32(saved["scale"]))})


def _plain(scaler_state: dict[str, Any]) -> dict[str, Any]:
    """A GradScaler's state as JSON holds it."""
    return {k: v.item() if hasattr(v, "item") else v for k, v in scaler_state.items()}
