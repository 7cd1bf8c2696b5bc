"""Evaluates the model in training, at every checkpoint."""

import logging
from typing import Any

import paddle
from paddle import nn

from paddleseg_ext.config import TestConfig
from paddleseg_ext.engine import env
from paddleseg_ext.engine.evaluate import Metrics, evaluate
from paddleseg_ext.engine.hooks.sinks import ProgressBar, RecordFile, VisualLog
from paddleseg_ext.engine.trainer import Progress

_log = logging.getLogger(__name__)


class EvaluateHook:
    """Evaluates every `interval` iterations and after the last; `latest` holds the figures of this iteration, or None."""

    def __init__(
        self,
        model: nn.Layer,
        dataset: paddle.io.Dataset,
        test_config: TestConfig,
        interval: int,
        records: RecordFile,
        visual: VisualLog,
        **options: Any,
    ) -> None:
        self.model, self.dataset, self.test_config, self.interval = model, dataset, test_config, interval
        self.records, self.visual, self.options = records, visual, options
        self.latest: Metrics | None = None

    def before_run(self, progress: Progress) -> None:
        pass

    def after_step(self, progress: Progress) -> None:
        self.latest = None
        if not progress.due(self.interval):
            return
        env.share_statistics(self.model)
        self.latest = evaluate_with_bar(self.model, self.dataset, self.test_config, "evaluating", **self.options)
        if env.rank() == 0:
            _log.info("[EVAL] iter: %d, %s", progress.iteration, self.latest)
            self.records.write({"kind": "eval", "iter": progress.iteration, **self.latest.record()})
            figures = {"mIoU": self.latest.miou, "Acc": self.latest.accuracy}
            figures |= {"Kappa": self.latest.kappa, "Dice": self.latest.dice}
            self.visual.scalars(progress.iteration, {f"Evaluate/{name}": value for name, value in figures.items()})

    def close(self) -> None:
        pass


def evaluate_with_bar(
    model: nn.Layer, dataset: paddle.io.Dataset, test_config: TestConfig, what: str, **options: Any
) -> Metrics:
    """`evaluate`, with a progress bar on a terminal."""
    bar = ProgressBar(what, "image", shown=env.rank() == 0)
    count = min(len(dataset), options.get("limit") or len(dataset))
    bar.start(0, -(-count // env.world_size()))
    try:
        return evaluate(model, dataset, test_config, seen=lambda _: bar.advance(), **options)
    finally:
        bar.close()
