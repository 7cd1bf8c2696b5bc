"""The models of a report: each run's best, and teachers that no run of the report has trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddle import nn

from paddleseg_ext.config import Config
from paddleseg_ext.data.build import DatasetFacts
from paddleseg_ext.errors import UserError
from paddleseg_ext.models import build_trained_model
from paddleseg_ext.report.runs import Run

ROLES = ("teacher", "trained alone", "student alone", "distilled")


@dataclass(frozen=True)
class Subject:
    """A model of the page, in eval mode, its weights at `source`: of a run, or the teacher of one (`run` None)."""

    name: str
    role: str
    model: nn.Layer
    source: str
    run: Run | None = None

    @property
    def best(self) -> float:
        """The best mIoU of its run."""
        return self.run.best["mIoU"] if self.run is not None else 0.0


@dataclass(frozen=True)
class Comparison:
    """The best distilled student, the best of its model trained alone, and the former's teachers by name."""

    before: Subject | None
    after: Subject | None
    teachers: dict[str, Subject]


def subjects_of(runs: Sequence[Run], facts: DatasetFacts, notes: list[str]) -> list[Subject]:
    """Teachers first, then students alone, then distilled ones. What cannot be shown is said in `notes`.

    Raises:
        WeightsError: a run's own weights do not fit its model.
    """
    subjects = []
    for run in runs:
        model = build_trained_model(run.config.model, str(run.weights), facts.num_classes, facts.img_channels)
        subjects.append(Subject(run.name, _role(run, runs), model, str(run.weights.resolve()), run))
    for run in runs:
        for name, teacher in run.teachers.items():
            source = _source(run, teacher)
            if source is None or _found(subjects, run, teacher) is not None:
                continue
            title = name if len(runs) == 1 else f"{name} of {run.name}"
            classes = teacher.model.params.get("num_classes", facts.num_classes)
            if classes != facts.num_classes:
                notes.append(f"{title} has {classes} classes, not {facts.num_classes}, and is not shown.")
                continue
            try:
                model = build_trained_model(teacher.model, source, facts.num_classes, facts.img_channels)
            except UserError as error:
                notes.append(f"{title} is not shown: {error}.")
                continue
            subjects.append(Subject(title, "teacher", model, source))
    return sorted(subjects, key=lambda subject: ROLES.index(subject.role))


def comparison_of(subjects: Sequence[Subject]) -> Comparison:
    """What the page is about. Without a student that was trained both ways, `before` is None."""
    distilled = sorted((s for s in subjects if s.role == "distilled"), key=lambda s: s.best, reverse=True)
    for after in distilled:
        alone = [s for s in subjects if s.role == "student alone" and _same_model(_run(s).config, _run(after).config)]
        if alone:
            return Comparison(max(alone, key=lambda s: s.best), after, _teachers(subjects, after))
    after_alone = distilled[0] if distilled else None
    return Comparison(None, after_alone, _teachers(subjects, after_alone) if after_alone else {})


def _teachers(subjects: Sequence[Subject], after: Subject) -> dict[str, Subject]:
    run = _run(after)
    found = {name: _found(subjects, run, teacher) for name, teacher in run.teachers.items()}
    return {name: subject for name, subject in found.items() if subject is not None}


def _run(subject: Subject) -> Run:
    assert subject.run is not None
    return subject.run


def _role(run: Run, runs: Sequence[Run]) -> str:
    if run.is_distilled:
        return "distilled"
    students = [other.config for other in runs if other.is_distilled]
    taught = [(other, teacher) for other in runs for teacher in other.teachers.values()]
    if any(_lies_in(_source(other, teacher), run.folder) for other, teacher in taught):
        return "teacher"
    if any(_same_model(run.config, student) for student in students):
        return "student alone"
    return "teacher" if any(_same_model(run.config, teacher) for _, teacher in taught) else "trained alone"


def _found(subjects: Sequence[Subject], run: Run, teacher: Config) -> Subject | None:
    """The subject that is a run's teacher: of these weights, else of this model."""
    source = _source(run, teacher)
    for subject in subjects:
        own = subject.run is not None and _lies_in(source, subject.run.folder)
        if subject.run is not run and (own or subject.source == source):
            return subject
    same = [s for s in subjects if s.run is not None and s.role == "teacher" and _same_model(s.run.config, teacher)]
    return same[0] if same else None


def _source(run: Run, teacher: Config) -> str | None:
    """Where a teacher's weights are: of one that learnt too, in the run's own folder."""
    if run.config.distill.kind == "mutual":
        return str((run.folder / "peer" / "model.pdparams").resolve())
    weights = teacher.model.params.get("pretrained")
    if not weights or "://" in str(weights):
        return str(weights) if weights else None
    return str((Path(run.start.get("folder") or ".") / str(weights)).resolve())


def _lies_in(source: str | None, folder: Path) -> bool:
    """Whether weights are a run's: its best or a checkpoint. Another run's folder may lie in this one's."""
    if source is None or not Path(source).is_relative_to(folder.resolve()):
        return False
    first = Path(source).relative_to(folder.resolve()).parts[:1]
    return bool(first) and first[0].startswith(("best_model", "iter_"))


def _same_model(a: Config, b: Config) -> bool:
    return _bare(a.resolved["model"]) == _bare(b.resolved["model"])


def _bare(tree: Any) -> Any:
    """A model's keys without what says nothing of its shape: first weights, and classes, which the data set may give."""
    if isinstance(tree, dict):
        return {key: _bare(value) for key, value in tree.items() if key not in ("pretrained", "num_classes")}
    return [_bare(value) for value in tree] if isinstance(tree, list) else tree
