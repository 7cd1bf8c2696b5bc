"""Which tensors are compared by which loss: read from the configuration and checked against one dry run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import paddle
from paddle import Tensor, nn

from paddleseg_ext.config import Component, Config, FeaturePair, OutputPair
from paddleseg_ext.distill.class_map import ClassMap
from paddleseg_ext.distill.connector import Connector, build_connector
from paddleseg_ext.distill.distiller import Pair, names
from paddleseg_ext.distill.own_resolution import Source, replaced
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
def dry_run(
    student: nn.Layer, recorder: Recorder, teacher: Teacher, batch: Batch, own: Mapping[int, Source] | None = None
) -> DryRun:
    """One forward of both, the student in train mode as in training, its running statistics put back afterwards.

    `own`: as for the Distiller.
    """
    student.train()
    learning = [teacher] if isinstance(teacher, nn.Layer) else []
    with kept_statistics(nn.LayerList([student, *learning])):
        outputs = list(student(batch.images))
        features = recorder.take()
        outputs = replaced(outputs, features, own or {})
        taught: TeacherOutputs = teacher(batch)
    size = (batch.images.shape[2], batch.images.shape[3])
    return DryRun(size, _shapes(outputs), _named(features), _shapes(taught.logits), _named(taught.features))


def output_pairs(config: Config, run: DryRun) -> tuple[OutputPair, ...]:
    """The pairs of outputs that a configuration means.

    `distill.outputs` says them, or `distill: auto`. Otherwise `distill_loss` does: one type for several coefficients goes
    output by output; several types as well where both models have exactly that many outputs (PaddleSeg's meaning); else
    every loss compares the first output of each.
    """
    if config.distill.outputs:
        return config.distill.outputs
    if config.distill.auto is not None:
        first = run.student_outputs[0]
        return recommended(0 if first is None else first[1], config.distill.auto)
    terms = config.distill_loss
    counts = {len(run.student_outputs), len(run.teacher_outputs), len(terms)}
    by_output = len(counts) == 1
    pairs = []
    for index, term in enumerate(terms):
        output = term.output if term.output is not None else index if by_output else 0
        pairs.append(OutputPair(output, output, term.loss, term.coef, term.loss.where))
    return tuple(pairs)


def recommended(classes: int, where: str) -> tuple[OutputPair, ...]:
    """What `distill: auto` compares: the first outputs, by losses with their usual weights, for any pair of models.

    DISTLoss is the best of those that need no layer's name (docs/results.md). It correlates the probabilities of a pixel's
    classes, which of two classes is 1 or -1, whatever they are, and teaches nothing.
    """
    losses = {"DISTLoss": 1.0} if classes > 2 else {"PixelwiseKLLoss": 1.0, "SegChannelwiseLoss": 3.0}
    return tuple(OutputPair(0, 0, Component(name, {}, where), weight, where) for name, weight in losses.items())


def build_pairs(
    outputs: Sequence[OutputPair],
    features: Sequence[FeaturePair],
    run: DryRun,
    *,
    ignore_index: int,
    num_classes: int,
    iters: int,
    images: int | None = None,
    class_map: ClassMap | None = None,
    prefix: str = "connector_",
) -> list[Pair]:
    """Build the losses and connectors and check that every pair can work.

    Args:
        images: in a batch; None where that is not known.
        class_map: where the teacher has other classes than the student's `num_classes`.
        prefix: begins the parameter names of what is built, which are counted from zero so that they (the keys of an
            optimizer's state) do not depend on what else the process has built.

    Raises:
        ConfigError: an output or feature does not exist, or the two shapes cannot be compared.
    """
    built: list[tuple[nn.Layer, tuple[Connector, ...]]] = []
    classes = num_classes if class_map is None else len(class_map)
    with paddle.utils.unique_name.guard(prefix):
        for output in outputs:
            _check_schedule(output, iters)
            loss = build_distill_loss(output.loss, ignore_index, classes)
            _check_count(output, loss, 1)
            _check_images(output, loss, images)
            shapes = _check_outputs(output, run, class_map)
            if isinstance(loss, Loss):
                loss.prepare(*shapes)
            built.append((loss, ()))
        for feature in features:
            _check_schedule(feature, iters)
            loss = build_distill_loss(feature.loss, ignore_index, num_classes)
            _check_images(feature, loss, images)
            built.append((loss, _connectors(feature, loss, run)))
    several = len({(p.student, p.teacher) for p in outputs}) > 1
    labels = [p.loss.type + (f"_{p.student}_{p.teacher}" if several else "") for p in outputs]
    labels += [f"{p.loss.type}_{'+'.join(names(p.student))}" for p in features]
    wanted: list[OutputPair | FeaturePair] = [*outputs, *features]
    return [
        Pair(
            *(f"distill/{name}", pair.student, pair.teacher, loss, pair.weight, connectors),
            schedule=WeightFactor(pair.schedule, iters) if pair.schedule else None,
            resolution=pair.resolution if isinstance(pair, OutputPair) else "network",
            class_map=class_map if isinstance(pair, OutputPair) else None,
        )
        for name, pair, (loss, connectors) in zip(unique_names(labels), wanted, built, strict=True)
    ]


def describe(pair: Pair, run: DryRun) -> str:
    """One line for the log: both tensors with their shapes, the connector, the loss, its weight and when it counts."""
    if isinstance(pair.student, int) and isinstance(pair.teacher, int):
        student, teacher = run.student_outputs[pair.student], run.teacher_outputs[pair.teacher]
        text = f"{pair.name}: output {pair.student} {student} <- teacher output {pair.teacher} {teacher}"
        text += ", at the labels' resolution" if pair.resolution == "label" else ""
        text += f", {len(pair.class_map)} classes shared" if pair.class_map is not None else ""
    else:
        sides = []
        for key, shapes in ((pair.student, run.student_features), (pair.teacher, run.teacher_features)):
            sides.append(" and ".join(f"{name} {shapes[name]}" for name in names(key)))
        text = f"{pair.name}: feature {sides[0]} <- teacher feature {sides[1]}"
    steps = [connector.describe() for connector in pair.connectors if connector.steps]
    text += f", connector: {' and '.join(steps)}" if steps else ""
    return f"{text}, weight {pair.weight:g}" + (f", {pair.schedule}" if pair.schedule else "")


def _check_count(pair: OutputPair | FeaturePair, loss: nn.Layer, count: int) -> None:
    wanted = getattr(loss, "features", 1)
    if wanted != count:
        raise ConfigError(
            f"{pair.where}: {pair.loss.type} compares {wanted} feature{'s' if wanted > 1 else ''} of each side, but got {count}"
        )


def _check_images(pair: OutputPair | FeaturePair, loss: nn.Layer, images: int | None) -> None:
    wanted = getattr(loss, "images", 1)
    if images is not None and images < wanted:
        raise ConfigError(
            f"{pair.where}: {pair.loss.type} compares at least {wanted} images, but batch_size is {images}"
        )


def _check_outputs(pair: OutputPair, run: DryRun, class_map: ClassMap | None) -> tuple[Shape, Shape]:
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
    if class_map is not None:
        return [shapes[0][0], len(class_map), *shapes[0][2:]], [shapes[1][0], len(class_map), *shapes[0][2:]]
    if shapes[0][1] != shapes[1][1]:
        raise ConfigError(
            f"{pair.where}: student output {pair.student} has {shapes[0][1]} classes, "
            f"teacher output {pair.teacher} has {shapes[1][1]}; distill.class_map says which are the same"
        )
    return shapes[0], shapes[1]


def _connectors(pair: FeaturePair, loss: nn.Layer, run: DryRun) -> tuple[Connector, ...]:
    """What each of a pair's features needs. Raises ConfigError where two cannot be compared."""
    students, teachers = names(pair.student), names(pair.teacher)
    _check_count(pair, loss, len(students))
    _check_count(pair, loss, len(teachers))
    connectors = []
    for student, teacher in zip(students, teachers, strict=True):
        shapes = (
            _feature(pair, "Student", student, run.student_features),
            _feature(pair, "Teacher", teacher, run.teacher_features),
        )
        try:
            connectors.append(build_connector(pair.connector, *shapes, run.size, loss))
        except ValueError as error:
            raise ConfigError(
                f"{pair.where}: student '{student}' is {shapes[0]} and teacher '{teacher}' is {shapes[1]}; {error}"
            ) from None
    if isinstance(loss, Loss):
        loss.prepare(*connectors[0].shapes)
    return tuple(connectors)


def _feature(pair: FeaturePair, side: str, key: str, available: Mapping[str, Shape]) -> Shape:
    if key not in available:
        known = ", ".join(f"'{k}'" for k in available) or "nothing"
        raise ConfigError(f"{pair.where}: {side}Adaptor.mapping_layers gives no '{key}'; it gives {known}")
    return available[key]


def _check_schedule(pair: OutputPair | FeaturePair, iters: int) -> None:
    if pair.schedule is not None and pair.schedule.start >= iters:
        raise ConfigError(f"{pair.where}: starts at iteration {pair.schedule.start}, but training has {iters}")


def _shapes(tensors: Sequence[object]) -> tuple[Shape | None, ...]:
    return tuple(list(x.shape) if isinstance(x, Tensor) else None for x in tensors)


def _named(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {key: list(x.shape) for key, x in tensors.items()}
