"""YAML and flags to frozen dataclasses; the only reader of raw dictionaries."""

from paddleseg_ext.config.distillation import ENGINES
from paddleseg_ext.config.parse import from_resolved, load
from paddleseg_ext.config.schema import (
    Component,
    Config,
    Distillation,
    FeaturePair,
    LossTerm,
    OutputPair,
    Schedule,
    TeacherSpec,
    TestConfig,
)

__all__ = [
    "ENGINES",
    "Component",
    "Config",
    "Distillation",
    "FeaturePair",
    "LossTerm",
    "OutputPair",
    "Schedule",
    "TeacherSpec",
    "TestConfig",
    "from_resolved",
    "load",
]
