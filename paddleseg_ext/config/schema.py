"""What a configuration says, typed and frozen. Made by `config.load` alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Component:
    """A `type` and its arguments, still to be built. Arguments may be components and lists of them."""

    type: str
    params: Mapping[str, Any]
    where: str

    def with_params(self, **params: Any) -> "Component":
        """The same component with some arguments set."""
        return Component(self.type, {**self.params, **params}, self.where)


@dataclass(frozen=True)
class LossTerm:
    """One loss of a `types`/`coef` list; `output` is the index of the model output that it is for, None where unsaid."""

    loss: Component
    coef: float
    output: int | None


@dataclass(frozen=True)
class Schedule:
    """When a distillation loss counts, in iterations: as written, `end` -1 standing for the end of training."""

    start: int = 0
    end: int = -1
    warmup: int = 0
    decay: str = "none"


@dataclass(frozen=True)
class OutputPair:
    """One distillation loss between a student output and a teacher output.

    resolution: 'network' compares them at the finer of the two networks' own, 'label' at the size of the labels.
    """

    student: int
    teacher: int
    loss: Component
    weight: float
    where: str
    schedule: Schedule | None = None
    resolution: str = "network"


@dataclass(frozen=True)
class FeaturePair:
    """One distillation loss between internal tensors, by the names under which they are caught.

    A loss between several features of a side has a tuple of names. `only` is the name of the one teacher that is meant,
    where there are several; None means each.
    """

    student: str | tuple[str, ...]
    teacher: str | tuple[str, ...]
    loss: Component
    weight: float
    connector: Component
    where: str
    schedule: Schedule | None = None
    only: str | None = None


@dataclass(frozen=True)
class TeacherSpec:
    """One of several teachers: its file, the weights that replace its `pretrained`, how much it counts, and its name."""

    name: str
    config: str
    pretrained: str | None
    weight: float
    class_map: Mapping[int, int] | None
    where: str


@dataclass(frozen=True)
class Distillation:
    """The `distill` section.

    auto: where the file says `distill: auto`, which stands for usual outputs; None elsewhere. kind: 'model', the teacher is
    trained already; 'ema', it is the mean of the student's own weights over time, with `decay`; 'mutual', it is trained
    together with the student. engine: what runs a trained teacher, 'auto' the fastest that agrees with it; bounds: how far
    it may differ, by the names of inference.select.Bounds. cache: a folder of its stored outputs, which stand for it.
    combine: of several teachers, 'mean' of their probabilities or 'each' by itself. class_map: teacher classes to student
    classes, the others left out; None where they are the same. unlabelled: a list of images that have no labels and are
    learnt from the teacher alone.
    """

    outputs: tuple[OutputPair, ...] = ()
    features: tuple[FeaturePair, ...] = ()
    auto: str | None = None
    kind: str = "model"
    decay: float = 0.999
    engine: str = "auto"
    bounds: Mapping[str, float] = field(default_factory=dict)
    cache: str | None = None
    teachers: tuple[TeacherSpec, ...] = ()
    combine: str = "mean"
    class_map: Mapping[int, int] | None = None
    unlabelled: str | None = None


@dataclass(frozen=True)
class TestConfig:
    """How a model is evaluated; the names and meanings are PaddleSeg's `test_config`. Sizes are (width, height) in pixels."""

    __test__ = False  # not a pytest class

    is_slide: bool = False
    crop_size: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    aug_eval: bool = False
    scales: tuple[float, ...] = (1.0,)
    flip_horizontal: bool = False
    flip_vertical: bool = False

    @property
    def leaves_gaps(self) -> bool:
        """Whether there are pixels between two windows that slide."""
        if not (self.is_slide and self.crop_size and self.stride):
            return False
        return any(step > side for step, side in zip(self.stride, self.crop_size, strict=True))


@dataclass(frozen=True)
class Config:
    """One YAML file with its bases, flags and `--opts` applied."""

    path: str
    model: Component
    batch_size: int = 1
    iters: int = 1
    train_dataset: Component | None = None
    val_dataset: Component | None = None
    optimizer: Component | None = None
    lr_scheduler: Component | None = None
    loss: tuple[LossTerm, ...] = ()
    distill_loss: tuple[LossTerm, ...] = ()
    distill: Distillation = field(default_factory=Distillation)
    test_config: TestConfig = field(default_factory=TestConfig)
    resolved: Mapping[str, Any] = field(default_factory=dict)
