"""What a folder of training says of itself: its configuration, curves and best weights."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddleseg_ext import config as configuration
from paddleseg_ext.config import Config
from paddleseg_ext.errors import ConfigError

_NO_LOSSES = ("kind", "iter", "lr", "ips", "batch_cost", "reader_cost")


@dataclass(frozen=True)
class Run:
    """One folder that train.py or distill_train.py has written.

    Attributes:
        name: the folder's, made unique among the runs of a report.
        config: as it was used.
        teachers: by name, the configurations of the teachers that have one, with the weights that they had.
        is_distilled: whether it learnt from a teacher, be it its own past.
        pairs: what was compared with the teacher, as `provenance.jsonl` has it.
        start: the last record of `provenance.jsonl`.
        losses: by name, points (iteration, value).
        evaluations: records of `metrics.jsonl`, in the order of the iterations.
        weights: a folder with `model.pdparams`.
        seconds: that the iterations took.
    """

    name: str
    folder: Path
    config: Config
    teachers: Mapping[str, Config]
    is_distilled: bool
    pairs: Sequence[Mapping[str, Any]]
    start: Mapping[str, Any]
    losses: Mapping[str, Sequence[tuple[int, float]]]
    evaluations: Sequence[Mapping[str, Any]]
    weights: Path
    seconds: float

    @property
    def best(self) -> Mapping[str, Any]:
        """The evaluation with the highest mIoU."""
        return max(self.evaluations, key=lambda record: record["mIoU"])

    @property
    def miou(self) -> Sequence[tuple[int, float]]:
        """Points (iteration, mIoU)."""
        return [(record["iter"], record["mIoU"]) for record in self.evaluations]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read several runs; names are shortest where they differ.

    Raises:
        ConfigError: a folder that is no run, has no evaluation or no weights, or is given twice.
    """
    resolved = [folder.resolve() for folder in folders]
    for folder, real in zip(folders, resolved, strict=True):
        if resolved.count(real) > 1:
            raise ConfigError(f"--runs {folder}: given twice")
    names = [real.name for real in resolved]
    for depth in range(2, 4):
        names = [
            "/".join(real.parts[-depth:]) if names.count(name) > 1 else name
            for name, real in zip(names, resolved, strict=True)
        ]
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def _read(folder: Path, name: str) -> Run:
    if not folder.is_dir():
        raise ConfigError(f"--runs {folder}: no such folder")
    starts = _records(folder / "provenance.jsonl")
    if not starts:
        raise ConfigError(f"--runs {folder}: no run of training: provenance.jsonl is missing or empty")
    records = _records(folder / "metrics.jsonl")
    evaluations = [record for record in records if record.get("kind") == "eval"]
    if not evaluations:
        raise ConfigError(f"--runs {folder}: metrics.jsonl holds no evaluation; train with --do_eval")
    weights = folder / "best_model"
    if not (weights / "model.pdparams").is_file():
        raise ConfigError(f"--runs {folder}: no {weights / 'model.pdparams'}")
    start = starts[-1]
    try:
        config = configuration.from_resolved(start["config"]["path"], start["config"]["resolved"])
        teachers = {
            teacher["name"]: configuration.from_resolved(teacher["path"], teacher["resolved"], model_only=True)
            for teacher in start.get("teachers", ())
        }
        pairs = list(start.get("pairs", ()))
    except (KeyError, TypeError) as error:
        raise ConfigError(f"--runs {folder}: the last line of provenance.jsonl is not whole: {error!r}") from None
    return Run(
        name=name,
        folder=folder,
        config=config,
        teachers=teachers,
        pairs=pairs,
        start=start,
        is_distilled=bool(teachers or pairs),
        evaluations=evaluations,
        weights=weights,
        losses=_losses([record for record in records if record.get("kind") == "train"]),
        seconds=_seconds(records),
    )


def _records(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; one that a kill cut short is left out."""
    found = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [record for record in found if isinstance(record, dict)]


def _losses(records: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for key, value in record.items():
            if key not in _NO_LOSSES:
                curves.setdefault(key, []).append((record["iter"], value))
    return curves


def _seconds(records: Sequence[Mapping[str, Any]]) -> float:
    """What the iterations took, by the log's own costs."""
    total, before = 0.0, 0
    for record in records:
        if record.get("kind") == "train":
            total += (record["iter"] - before) * record["batch_cost"]
            before = record["iter"]
    return total
