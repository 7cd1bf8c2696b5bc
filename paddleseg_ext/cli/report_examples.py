"""The pictures of a report: images where distillation helped and hurt, and what was compared with the teacher."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from paddle import nn

from paddleseg_ext.cli.report_subjects import Comparison, Subject
from paddleseg_ext.config import TestConfig
from paddleseg_ext.engine.evaluate import pixel_counts, predict, spread
from paddleseg_ext.errors import ConfigError, DataError
from paddleseg_ext.report import pictures
from paddleseg_ext.report.measure import Judged, activity, certainty
from paddleseg_ext.report.page import Cell, Example

_MOST_PAIRS = 6  # of features shown


class Album:
    """Draws val images with what the models make of them."""

    def __init__(
        self, subjects: Sequence[Subject], compared: Comparison, dataset: Any, test_config: TestConfig
    ) -> None:
        self.subjects, self.compared, self.dataset, self.test_config = subjects, compared, dataset, test_config

    def example(self, index: int, note: str = "") -> Example:
        """Input, label, each model's classes and errors, and what distillation changed."""
        sample, image = self.dataset[index], self._image(index)
        ignored = self.dataset.ignore_index
        given = {s.name: predict(s.model, sample, self.test_config) for s in self.subjects}
        label = np.asarray(sample["label"]).reshape(next(iter(given.values())).shape)
        cells = [Cell("image", [("input", pictures.photo(image)), ("label", pictures.classes(label))])]
        for name, values in given.items():
            miou = 100 * Judged(pixel_counts(self.dataset, index, sample, values)[None]).image_miou[0]
            wrong = pictures.errors(values, label, ignored)
            cells.append(Cell(name, [(f"mIoU {miou:.1f} %", pictures.classes(values)), ("red: errors", wrong)]))
        if self.compared.before is not None and self.compared.after is not None:
            before, after = given[self.compared.before.name], given[self.compared.after.name]
            changed = pictures.changes(image, before, after, label, ignored)
            said = (
                ("green: won, red: lost", changed),
                (f"{self.compared.after.name}, on the input", pictures.over(image, after)),
            )
            cells.append(Cell("by distillation", said))
        return Example(self.title(index), note, cells)

    def features(self, index: int) -> tuple[list[Example], list[str]]:
        """What the pairs of the distilled run see in one image, and remarks on those that cannot be shown."""
        after = self.compared.after
        if after is None or after.run is None:
            return [], []
        image = np.asarray(self.dataset[index]["img"]).astype("float32")
        photo = Cell("image", [(self.title(index), pictures.photo(self._image(index)))])
        found, remarks = [], []
        for pairs in _by_tensors(after.run.pairs)[:_MOST_PAIRS]:
            name = ", ".join(pair["name"] for pair in pairs)
            try:
                cells = self._pair(pairs[0], image)
            except (ConfigError, ValueError):  # a tensor of the user's own file, or one that is no map
                remarks.append(f"{name} is not shown: its tensors are not the maps of layers.")
                continue
            found.append(Example(name, "weight " + ", ".join(f"{pair['weight']:g}" for pair in pairs), [photo, *cells]))
        return found, remarks

    def _pair(self, pair: Mapping[str, Any], image: np.ndarray) -> list[Cell]:
        before, after, teachers = self.compared.before, self.compared.after, dict(self.compared.teachers)
        assert after is not None
        if pair.get("of") is not None:
            teachers = {name: subject for name, subject in teachers.items() if name == pair["of"]}
        sides = [(subject, pair["teacher"]) for subject in teachers.values()]
        sides += [(subject, pair["student"]) for subject in (before, after) if subject is not None]
        cells = []
        for subject, wanted in sides:
            drawn = [(said, pictures.heat(v, image.shape[1:])) for said, v in _seen(subject.model, wanted, image)]
            if drawn:
                cells.append(Cell(subject.name, drawn))
        return cells

    def title(self, index: int) -> str:
        """The image's file name."""
        return Path(self.dataset.file_list[index][0]).name

    def _image(self, index: int) -> np.ndarray:
        path = self.dataset.file_list[index][0]
        image = cv2.imread(path, cv2.IMREAD_COLOR)
        if image is None:
            raise DataError(f"{path}: the image cannot be read")
        return image


def chosen(
    album: Album, judged: Mapping[str, Judged], indices: Sequence[int], count: int
) -> tuple[list[Example], list[Example], list[Example]]:
    """Where distillation helped most, where it hurt most, and, where that cannot be said, images spread over the set."""
    change = changes(album.compared, judged)
    if change is None:
        return [], [], [album.example(indices[position]) for position in spread(len(indices), count)]
    assert album.compared.before is not None and album.compared.after is not None
    was, now = (judged[s.name].image_miou for s in (album.compared.before, album.compared.after))
    order = [int(position) for position in np.argsort(change, kind="stable")]

    def drawn(position: int) -> Example:
        note = f"mIoU {100 * was[position]:.1f} to {100 * now[position]:.1f} %, {100 * change[position]:+.1f} points"
        return album.example(indices[position], note)

    helped = [drawn(position) for position in order[::-1][:count] if change[position] > 0]
    hurt = [drawn(position) for position in order[:count] if change[position] < 0]
    return helped, hurt, []


def changes(compared: Comparison, judged: Mapping[str, Judged]) -> np.ndarray | None:
    """What distillation changed in each image's mIoU; None where it cannot be said."""
    if compared.before is None or compared.after is None:
        return None
    return judged[compared.after.name].image_miou - judged[compared.before.name].image_miou


def _by_tensors(pairs: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Pairs that compare the same tensors, together."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for pair in pairs:
        groups.setdefault(f"{pair['student']} {pair['teacher']} {pair.get('of')}", []).append(pair)
    return list(groups.values())


def _seen(model: nn.Layer, key: int | list[str], image: np.ndarray) -> list[tuple[str, np.ndarray]]:
    if isinstance(key, int):
        values = certainty(model, key, image)
        return [] if values is None else [(f"output {key}", values)]
    return list(activity(model, key, image).items())
