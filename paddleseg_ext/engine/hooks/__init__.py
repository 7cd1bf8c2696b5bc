"""What happens beside the loop: log, evaluation, pictures, checkpoints, an orderly stop."""

from paddleseg_ext.engine.hooks.checkpoints import CheckpointHook, StopHook
from paddleseg_ext.engine.hooks.evaluation import EvaluateHook, evaluate_with_bar
from paddleseg_ext.engine.hooks.log import LogHook
from paddleseg_ext.engine.hooks.once import OnceHook
from paddleseg_ext.engine.hooks.pictures import PicturesHook
from paddleseg_ext.engine.hooks.sinks import ProgressBar, RecordFile, VisualLog

__all__ = [
    "CheckpointHook",
    "EvaluateHook",
    "LogHook",
    "OnceHook",
    "PicturesHook",
    "ProgressBar",
    "RecordFile",
    "StopHook",
    "VisualLog",
    "evaluate_with_bar",
]
