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
class OutputPair:
    """One distillation loss between a student output and a teacher output."""

    student: int
    teacher: int
    loss: Component
    weight: float
    where: str
    schedule: "Schedule | None" = None


@dataclass(frozen=True)
class Schedule:
    """When a distillation loss counts, in iterations: as written, `end` -1 standing for the end of training."""

    start: int = 0
    end: int = -1
    warmup: int = 0
    decay: str = "none"


@dataclass(frozen=True)
class FeaturePair:
    """One distillation loss between two internal tensors, by the names under which they are caught."""

    student: str
    teacher: str
    loss: Component
    weight: float
    connector: Component
    where: str
    schedule: Schedule | None = None


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
    distill_outputs: tuple[OutputPair, ...] = ()
    distill_features: tuple[FeaturePair, ...] = ()
    test_config: TestConfig = field(default_factory=TestConfig)
    resolved: Mapping[str, Any] = field(default_factory=dict)
