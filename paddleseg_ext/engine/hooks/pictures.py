"""Input, label, teacher and student side by side, at each evaluation."""

from pathlib import Path

import numpy as np
import paddle
from paddle import nn

from paddleseg_ext.config import TestConfig
from paddleseg_ext.engine import env
from paddleseg_ext.engine.evaluate import predict, spread
from paddleseg_ext.engine.hooks.sinks import VisualLog
from paddleseg_ext.engine.pictures import Picture, classes_panel, image_panel, write_sheet
from paddleseg_ext.engine.trainer import Progress


class PicturesHook:
    """Writes `pictures/iter_N.png`, a row for each of a few validation images, and shows the rows in VisualDL.

    Args:
        model: the model in training; its column is headed `name`.
        teacher: a model whose predictions stand beside it, drawn once; None for none.
        count: how many images, spread evenly over the set.
    """

    def __init__(
        self,
        model: nn.Layer,
        dataset: paddle.io.Dataset,
        test_config: TestConfig,
        interval: int,
        folder: Path,
        visual: VisualLog,
        name: str,
        teacher: nn.Layer | None = None,
        count: int = 4,
    ) -> None:
        self.model, self.dataset, self.test_config, self.interval = model, dataset, test_config, interval
        self.folder, self.visual, self.name, self.teacher = folder, visual, name, teacher
        self.indices = spread(len(dataset), count)
        self._still: list[list[Picture]] = []

    def before_run(self, progress: Progress) -> None:
        pass

    def after_step(self, progress: Progress) -> None:
        if not progress.due(self.interval) or env.rank() != 0:
            return
        if not self._still:
            self._still = [self._fixed_panels(index) for index in self.indices]
        self.model.eval()
        rows = []
        for index, panels in zip(self.indices, self._still, strict=True):
            classes = predict(self.model, self.dataset[index], self.test_config)
            rows.append(np.hstack([*panels, classes_panel(classes, self.name)]))
        self.model.train()
        for position, row in enumerate(rows):
            self.visual.picture(progress.iteration, f"Pictures/{position}", row)
        write_sheet(self.folder / f"iter_{progress.iteration}.png", rows)

    def close(self) -> None:
        pass

    def _fixed_panels(self, index: int) -> list[Picture]:
        """What does not change during training: the input, its label, the teacher's prediction."""
        sample = self.dataset[index]
        panels = [image_panel(self.dataset, index), classes_panel(np.asarray(sample["label"]).squeeze(), "label")]
        if self.teacher is not None:
            panels.append(classes_panel(predict(self.teacher, sample, self.test_config), "teacher"))
        return panels
