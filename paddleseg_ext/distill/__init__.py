"""Distillation itself: which tensors are caught, which are compared, and the step that does it."""

from paddleseg_ext.distill.adaptor import AdaptorBase

__all__ = ["AdaptorBase"]
