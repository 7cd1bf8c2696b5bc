"""Input, label, teacher and student side by side, at each evaluation."""

from pathlib import Path

import cv2
import numpy as np
import paddle
from paddle import nn
from paddleseg.utils import visualize

from paddleseg_ext.config import TestConfig
from paddleseg_ext.engine import env
from paddleseg_ext.engine.evaluate import predict, spread
from paddleseg_ext.engine.hooks.sinks import VisualLog
from paddleseg_ext.engine.trainer import Progress

_WIDTH = 256  # pixels of one picture in the sheet


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
        self._still: list[list[np.ndarray]] = []

    def before_run(self, progress: Progress) -> None:
        pass

    def after_step(self, progress: Progress) -> None:
        if not progress.due(self.interval) or env.rank() != 0:
            return
        if not self._still:
            self._still = [self._fixed_columns(index) for index in self.indices]
        self.model.eval()
        rows = []
        for index, columns in zip(self.indices, self._still, strict=True):
            classes = predict(self.model, self.dataset[index], self.test_config)
            rows.append(np.hstack([*columns, self._drawn(classes, self.name)]))
        self.model.train()
        for position, row in enumerate(rows):
            self.visual.picture(progress.iteration, f"Pictures/{position}", row)
        self.folder.mkdir(exist_ok=True)
        widest = max(row.shape[1] for row in rows)
        sheet = np.vstack([np.pad(row, ((0, 0), (0, widest - row.shape[1]), (0, 0))) for row in rows])
        cv2.imwrite(str(self.folder / f"iter_{progress.iteration}.png"), sheet[..., ::-1])

    def close(self) -> None:
        pass

    def _fixed_columns(self, index: int) -> list[np.ndarray]:
        """What does not change during training: the input, its label, the teacher's prediction."""
        sample = self.dataset[index]
        label = np.asarray(sample["label"]).squeeze()
        image = cv2.imread(self.dataset.file_list[index][0], cv2.IMREAD_COLOR)[..., ::-1]
        columns = [_titled(_scaled(image), "input"), self._drawn(label, "label")]
        if self.teacher is not None:
            columns.append(self._drawn(predict(self.teacher, sample, self.test_config), "teacher"))
        return columns

    def _drawn(self, classes: np.ndarray, title: str) -> np.ndarray:
        palette = np.array(visualize.get_color_map_list(256), np.uint8).reshape(-1, 3)
        return _titled(_scaled(palette[classes.astype(np.uint8)], nearest=True), title)


def _scaled(rgb: np.ndarray, nearest: bool = False) -> np.ndarray:
    size = (_WIDTH, max(round(rgb.shape[0] * _WIDTH / rgb.shape[1]), 1))
    return cv2.resize(np.ascontiguousarray(rgb), size, interpolation=cv2.INTER_NEAREST if nearest else cv2.INTER_AREA)


def _titled(rgb: np.ndarray, title: str) -> np.ndarray:
    """The picture under a white strip with its title, with a white line to its right."""
    strip = np.full((20, rgb.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, title, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.pad(np.vstack([strip, rgb]), ((0, 2), (0, 4), (0, 0)), constant_values=255)
