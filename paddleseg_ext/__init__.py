"""Knowledge distillation for semantic segmentation on PaddlePaddle and PaddleSeg."""

__version__ = "0.1.0"
