"""PaddleSeg models: built from a configuration, their weights loaded safely."""

from paddleseg_ext.models.build import build_model, build_trained_model, without_pretrained
from paddleseg_ext.models.weights import LoadReport, load_weights

__all__ = ["LoadReport", "build_model", "build_trained_model", "load_weights", "without_pretrained"]
