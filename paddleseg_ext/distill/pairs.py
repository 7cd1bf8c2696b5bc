"""Which tensors are compared by which loss: read from the configuration and checked against one dry run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import paddle
from paddle import Tensor, nn

from paddleseg_ext.config import Config, FeaturePair, OutputPair
from paddleseg_ext.distill.connector import Connector, build_connector
from paddleseg_ext.distill.distiller import Pair
from paddleseg_ext.distill.recorder import Recorder
from paddleseg_ext.distill.schedule import WeightFactor
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.losses.base import Loss
from paddleseg_ext.losses.build import build_distill_loss
from paddleseg_ext.losses.task import unique_names
from paddleseg_ext.models.weights import kept_statistics
from paddleseg_ext.types import Batch, Teacher, TeacherOutputs

Shape = list[int]


@dataclass(frozen=True)
class DryRun:
    """The shapes of everything that a student and its teacher give for one batch. An output that is no tensor is None."""

    size: tuple[int, int]  # height and width of the images
    student_outputs: tuple[Shape | None, ...]
    student_features: Mapping[str, Shape]
    teacher_outputs: tuple[Shape | None, ...]
    teacher_features: Mapping[str, Shape]


@paddle.no_grad()
def dry_run(student: nn.Layer, recorder: Recorder, teacher: Teacher, batch: Batch) -> DryRun:
    """One forward of both, the student in train mode as in training, its running statistics put back afterwards."""
    student.train()
    with kept_statistics(student):
        outputs = list(student(batch.images))
        features = recorder.take()
        taught: TeacherOutputs = teacher(batch)
    size = (batch.images.shape[2], batch.images.shape[3])
    return DryRun(size, _shapes(outputs), _named(features), _shapes(taught.logits), _named(taught.features))


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
    outputs: Sequence[OutputPair],
    features: Sequence[FeaturePair],
    run: DryRun,
    *,
    ignore_index: int,
    num_classes: int,
    iters: int,
) -> list[Pair]:
    """Build the losses and connectors and check that every pair can work.

    Raises:
        ConfigError: an output or feature does not exist, or the two shapes cannot be compared.
    """
    wanted: list[OutputPair | FeaturePair] = [*outputs, *features]
    losses: list[nn.Layer] = []
    connectors: list[Connector | None] = []
    # Named from zero, so that names (the keys of an optimizer's state) do not depend on what else the process has built.
    with paddle.utils.unique_name.guard("connector_"):
        for pair in wanted:
            _check_schedule(pair, iters)
            losses.append(build_distill_loss(pair.loss, ignore_index, num_classes))
            connectors.append(_connector(pair, losses[-1], run))
    several = len({(p.student, p.teacher) for p in outputs}) > 1
    labels = [p.loss.type + (f"_{p.student}_{p.teacher}" if several else "") for p in outputs]
    labels += [f"{p.loss.type}_{p.student}" for p in features]
    return [
        Pair(
            *(f"distill/{name}", pair.student, pair.teacher, loss, pair.weight, connector),
            schedule=WeightFactor(pair.schedule, iters) if pair.schedule else None,
        )
        for name, pair, loss, connector in zip(unique_names(labels), wanted, losses, connectors, strict=True)
    ]


def describe(pair: Pair, run: DryRun) -> str:
    """One line for the log: both tensors with their shapes, the connector, the loss, its weight and when it counts."""
    is_output = isinstance(pair.student, int)
    student = run.student_outputs[int(pair.student)] if is_output else run.student_features[str(pair.student)]
    teacher = run.teacher_outputs[int(pair.teacher)] if is_output else run.teacher_features[str(pair.teacher)]
    kind = "output" if is_output else "feature"
    text = f"{pair.name}: {kind} {pair.student} {student} <- teacher {kind} {pair.teacher} {teacher}"
    if pair.connector is not None and pair.connector.steps:
        text += f", connector: {pair.connector.describe()}"
    return f"{text}, weight {pair.weight:g}" + (f", {pair.schedule}" if pair.schedule else "")


def _check_outputs(pair: OutputPair, run: DryRun) -> tuple[Shape, Shape]:
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
    return shapes[0], shapes[1]


def _connector(pair: OutputPair | FeaturePair, loss: nn.Layer, run: DryRun) -> Connector | None:
    """What a pair of features needs; nothing for outputs. Raises ConfigError where the two cannot be compared."""
    if isinstance(pair, OutputPair):
        shapes = _check_outputs(pair, run)
        if isinstance(loss, Loss):
            loss.prepare(*shapes)
        return None
    student, teacher = _features(pair, run)
    try:
        connector = build_connector(pair.connector, student, teacher, run.size, loss)
    except ValueError as error:
        raise ConfigError(
            f"{pair.where}: student '{pair.student}' is {student} and teacher '{pair.teacher}' is {teacher}; {error}"
        ) from None
    if isinstance(loss, Loss):
        loss.prepare(*connector.shapes)
    return connector


def _features(pair: FeaturePair, run: DryRun) -> tuple[Shape, Shape]:
    sides = (("Student", pair.student, run.student_features), ("Teacher", pair.teacher, run.teacher_features))
    for side, key, available in sides:
        if key not in available:
            known = ", ".join(f"'{k}'" for k in available) or "nothing"
            raise ConfigError(f"{pair.where}: {side}Adaptor.mapping_layers gives no '{key}'; it gives {known}")
    return run.student_features[pair.student], run.teacher_features[pair.teacher]


def _check_schedule(pair: OutputPair | FeaturePair, iters: int) -> None:
    if pair.schedule is not None and pair.schedule.start >= iters:
        raise ConfigError(f"{pair.where}: starts at iteration {pair.schedule.start}, but training has {iters}")


def _shapes(tensors: Sequence[object]) -> tuple[Shape | None, ...]:
    return tuple(list(x.shape) if isinstance(x, Tensor) else None for x in tensors)


def _named(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {key: list(x.shape) for key, x in tensors.items()}
