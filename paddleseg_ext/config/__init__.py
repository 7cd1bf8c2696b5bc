"""YAML and flags to frozen dataclasses; the only reader of raw dictionaries."""

from paddleseg_ext.config.parse import load
from paddleseg_ext.config.schema import Component, Config, FeaturePair, LossTerm, OutputPair, Schedule, TestConfig

__all__ = ["Component", "Config", "FeaturePair", "LossTerm", "OutputPair", "Schedule", "TestConfig", "load"]
