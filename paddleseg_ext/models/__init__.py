"""PaddleSeg models: built from a configuration, their weights loaded safely."""

from paddleseg_ext.models.build import build_model
from paddleseg_ext.models.weights import LoadReport, load_weights

__all__ = ["LoadReport", "build_model", "load_weights"]
