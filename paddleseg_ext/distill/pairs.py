"""Which tensors are compared by which loss: read from the configuration and checked against one dry run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import paddle
from paddle import Tensor, nn

from paddleseg_ext.config import Config, OutputPair
from paddleseg_ext.distill.distiller import Pair
from paddleseg_ext.distill.recorder import Recorder
from paddleseg_ext.distill.user_file import FeaturePair
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.losses.base import AnyChannels, Loss
from paddleseg_ext.losses.build import build_distill_loss
from paddleseg_ext.losses.task import unique_names
from paddleseg_ext.models.weights import running_statistics
from paddleseg_ext.types import Batch, Teacher, TeacherOutputs

Shape = list[int]


@dataclass(frozen=True)
class DryRun:
    """The shapes of everything that a student and its teacher give for one batch. An output that is no tensor is None."""

    student_outputs: tuple[Shape | None, ...]
    student_features: Mapping[str, Shape]
    teacher_outputs: tuple[Shape | None, ...]
    teacher_features: Mapping[str, Shape]


@paddle.no_grad()
def dry_run(student: nn.Layer, recorder: Recorder, teacher: Teacher, batch: Batch) -> DryRun:
    """One forward of both, the student in train mode as in training, its running statistics put back afterwards."""
    statistics = running_statistics(student)
    kept = {name: buffer.clone() for name, buffer in statistics.items()}
    student.train()
    outputs = list(student(batch.images))
    features = recorder.take()
    taught: TeacherOutputs = teacher(batch)
    for name, buffer in statistics.items():
        buffer.set_value(kept[name])
    return DryRun(_shapes(outputs), _named(features), _shapes(taught.logits), _named(taught.features))


def output_pairs(config: Config, run: DryRun) -> tuple[OutputPair, ...]:
    """The pairs of outputs that a configuration means.

    `distill.outputs` says them. Otherwise `distill_loss` does: one type for several coefficients goes output by output;
    several types as well where both models have exactly that many outputs (PaddleSeg's meaning); else every loss compares
    the first output of each.
    """
    if config.distill_outputs:
        return config.distill_outputs
    terms = config.distill_loss
    counts = {len(run.student_outputs), len(run.teacher_outputs), len(terms)}
    by_output = len(counts) == 1
    pairs = []
    for index, term in enumerate(terms):
        output = term.output if term.output is not None else index if by_output else 0
        pairs.append(OutputPair(output, output, term.loss, term.coef, term.loss.where))
    return tuple(pairs)


def build_pairs(
    outputs: Sequence[OutputPair], features: Sequence[FeaturePair], run: DryRun, ignore_index: int, num_classes: int
) -> list[Pair]:
    """Build the losses and check that every pair can work.

    Raises:
        ConfigError: an output or feature does not exist, or the two shapes cannot be compared.
    """
    wanted: list[OutputPair | FeaturePair] = [*outputs, *features]
    losses = [build_distill_loss(pair.loss, ignore_index, num_classes) for pair in wanted]
    for pair in outputs:
        _check_outputs(pair, run)
    for feature, loss in zip(features, losses[len(outputs) :], strict=True):
        _check_features(feature, loss, run)
    several = len({(p.student, p.teacher) for p in outputs}) > 1
    labels = [p.loss.type + (f"_{p.student}_{p.teacher}" if several else "") for p in outputs]
    labels += [f"{p.loss.type}_{p.student}" for p in features]
    return [
        Pair(f"distill/{name}", pair.student, pair.teacher, loss, pair.weight)
        for name, pair, loss in zip(unique_names(labels), wanted, losses, strict=True)
    ]


def describe(pair: Pair, run: DryRun) -> str:
    """One line for the log: both tensors with their shapes, the loss, its weight."""
    is_output = isinstance(pair.student, int)
    student = run.student_outputs[int(pair.student)] if is_output else run.student_features[str(pair.student)]
    teacher = run.teacher_outputs[int(pair.teacher)] if is_output else run.teacher_features[str(pair.teacher)]
    kind = "output" if is_output else "feature"
    return f"{pair.name}: {kind} {pair.student} {student} <- teacher {kind} {pair.teacher} {teacher}, weight {pair.weight:g}"


def _check_outputs(pair: OutputPair, run: DryRun) -> None:
    sides = (("student", pair.student, run.student_outputs), ("teacher", pair.teacher, run.teacher_outputs))
    shapes = []
    for side, index, available in sides:
        if index >= len(available):
            raise ConfigError(
                f"{pair.where}: the {side} has no output {index}; it has {len(available)}, counted from 0"
            )
        shape = available[index]
        if shape is None or len(shape) != 4:
            raise ConfigError(
                f"{pair.where}: output {index} of the {side} is no map of logits but {shape or 'no tensor'}"
            )
        shapes.append(shape)
    if shapes[0][1] != shapes[1][1]:
        raise ConfigError(
            f"{pair.where}: student output {pair.student} has {shapes[0][1]} classes, "
            f"teacher output {pair.teacher} has {shapes[1][1]}"
        )


def _check_features(pair: FeaturePair, loss: nn.Layer, run: DryRun) -> None:
    sides = (("Student", pair.student, run.student_features), ("Teacher", pair.teacher, run.teacher_features))
    for side, key, available in sides:
        if key not in available:
            known = ", ".join(f"'{k}'" for k in available) or "nothing"
            raise ConfigError(f"{pair.where}: {side}Adaptor.mapping_layers gives no '{key}'; it gives {known}")
    student, teacher = run.student_features[pair.student], run.teacher_features[pair.teacher]
    if not getattr(loss, "fits", Loss.fits)(student, teacher):
        what = "images, height and width" if isinstance(loss, AnyChannels) else "shapes"
        raise ConfigError(
            f"{pair.where}: student '{pair.student}' is {student} and teacher '{pair.teacher}' is {teacher}; "
            f"{what} must be equal"
        )


def _shapes(tensors: Sequence[object]) -> tuple[Shape | None, ...]:
    return tuple(list(x.shape) if isinstance(x, Tensor) else None for x in tensors)


def _named(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {key: list(x.shape) for key, x in tensors.items()}
