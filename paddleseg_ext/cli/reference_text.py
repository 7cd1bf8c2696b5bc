"""What each key of a configuration means: the words of docs/configuration.md.

Sections are in the order of the page. A key's default is read off the dataclass that holds it, where there is one.
"""

from dataclasses import dataclass, field

from paddleseg_ext.config import Distillation, Schedule, TestConfig
from paddleseg_ext.inference.select import Bounds


@dataclass(frozen=True)
class Section:
    """The keys of one mapping.

    path: as in messages, `[]` for each element of a list and `{}` for each name. keys: by name, what it takes and what it
    means. holder: the dataclass with the defaults. defaults: those that no dataclass has.
    """

    path: str
    text: str
    keys: dict[str, tuple[str, str]]
    holder: type | None = None
    defaults: dict[str, str] = field(default_factory=dict)


_COMPONENT = "mapping with `type`"
_PAIR = {
    "loss": (_COMPONENT + ", or the type alone", "what compares the two; see [losses.md](losses.md)"),
    "weight": ("number", "its factor in the sum of all losses"),
    "schedule": ("mapping", "when it counts, below"),
}
_CLASS_MAP = (
    "mapping {teacher class: student class}, or a YAML file of one",
    "which classes are the same; the others are left out",
)

# Defaults that follow from something else, by component and argument; their signatures say None.
DERIVED = {
    ("SegChannelwiseLoss", "temperature"): "4, with `compat` 1",
    ("mlp", "hidden"): "the teacher's channels",
}

SECTIONS = (
    Section(
        "",
        "The top level. `_base_` names one file or several whose keys this one takes over, and `_inherited_: False` in a mapping "
        "replaces the base's whole mapping instead of merging with it. Keys that begin with an underscore are notes.",
        {
            "batch_size": ("whole number", "images per batch of one card or CPU process; also `--batch_size`"),
            "iters": ("whole number", "iterations to train; also `--iters`"),
            "model": (
                _COMPONENT,
                "a model of PaddleSeg ([models.md](models.md)) with its arguments; of a teacher's file, all that is needed",
            ),
            "train_dataset": (
                _COMPONENT,
                "a data set of PaddleSeg, or `FundusDataset`; its `transforms` is a list of types with arguments",
            ),
            "val_dataset": (_COMPONENT, "the same for `--do_eval`, val, predict, export and report"),
            "optimizer": (
                _COMPONENT,
                "an optimizer of PaddleSeg, such as `SGD` with `momentum` and `weight_decay`, or `AdamW`",
            ),
            "lr_scheduler": (
                _COMPONENT,
                "a schedule of `paddle.optimizer.lr`, such as `PolynomialDecay`; `warmup_iters` with `warmup_start_lr` put a "
                "linear warm-up before it; its `learning_rate` is also `--learning_rate`",
            ),
            "loss": ("mapping", "the losses against the labels, below"),
            "distill_loss": ("mapping", "the tutorial's way to name losses against the teacher's outputs, below"),
            "distill": (
                "mapping, or `auto`",
                "all of distillation, below; `auto` is a recipe for any pair of models",
            ),
            "test_config": ("mapping", "how a model is applied to an image in evaluation, below"),
            "export": ("anything", "PaddleSeg's, accepted and not used; flags of `cli.export` say it here"),
            "to_static_training": ("anything", "PaddleSeg's, accepted and not used"),
            "test_dataset": ("anything", "PaddleSeg's, accepted and not used"),
            "learning_rate": ("anything", "PaddleSeg's of older files, accepted and not used; `lr_scheduler` has it"),
        },
        defaults={
            **dict.fromkeys(
                ("batch_size", "iters", "model", "train_dataset", "optimizer", "lr_scheduler", "loss"), "needed"
            ),
            **dict.fromkeys(
                ("val_dataset", "distill_loss", "distill", "export", "to_static_training", "test_dataset"), "none"
            ),
            **{"test_config": "whole image", "learning_rate": "none"},
        },
    ),
    Section(
        "loss",
        "One loss for each output that the model has in training. One type for several coefficients stands for all, and so "
        "does one coefficient.",
        {
            "types": (
                "list of mappings with `type`",
                "losses of PaddleSeg or ours; `MixedLoss` sums several on one output",
            ),
            "coef": ("list of numbers", "their factors"),
        },
        defaults={"types": "needed", "coef": "needed"},
    ),
    Section(
        "distill_loss",
        "As `loss`, against the teacher's outputs. `distill.outputs` replaces it.",
        {
            "types": ("list of mappings with `type`", "distillation losses ([losses.md](losses.md))"),
            "coef": ("list of numbers", "their factors"),
        },
        defaults={"types": "needed", "coef": "needed"},
    ),
    Section(
        "distill",
        "What is learnt from whom ([distillation.md](distillation.md)).",
        {
            "outputs": ("list of mappings", "pairs of outputs, below; without it, `distill_loss` says them"),
            "features": ("list of mappings", "pairs of internal tensors, below"),
            "teacher": ("`model`, `ema`, `mutual`, or a mapping", "the kind of the teacher and what runs it, below"),
            "teachers": ("list of mappings", "several teachers, below, instead of `--teacher_config`"),
            "combine": (
                "`mean` or `each`",
                "of several teachers, the mean of their probabilities or every one by itself",
            ),
            "class_map": _CLASS_MAP,
            "unlabelled": (
                "path",
                "a list of images without labels, one a line, relative to the training set's `dataset_root`",
            ),
        },
        Distillation,
        {"outputs": "none", "features": "none", "teacher": "`model`", "teachers": "none"},
    ),
    Section(
        "distill.outputs[]",
        "One loss between two outputs.",
        {
            "student": ("number of an output", "counted from 0"),
            "teacher": ("number of an output", "counted from 0"),
            **_PAIR,
            "resolution": (
                "`network` or `label`",
                "compare at the networks' own resolution, the finer of the two, or at that of the labels",
            ),
        },
        defaults={
            "student": "0",
            "teacher": "0",
            "loss": "needed",
            "weight": "1",
            "schedule": "always",
            "resolution": "`network`",
        },
    ),
    Section(
        "distill.features[]",
        "One loss between internal tensors.",
        {
            "student": ("name of a layer, or a list of names", "also `name:input`, `name[1]`, `name.method()`"),
            "teacher": (
                "the same, or a mapping {teacher's name: layer}",
                "the same name as the student's where it is left out",
            ),
            **_PAIR,
            "connector": (
                "`auto`, `none`, `conv1x1`, `conv3x3`, `mlp`, or a mapping with `type`",
                "what brings the student's tensor to the teacher's shape",
            ),
        },
        defaults={
            "student": "needed",
            "teacher": "`student`",
            "loss": "needed",
            "weight": "1",
            "schedule": "always",
            "connector": "`auto`",
        },
    ),
    Section(
        "distill.outputs[].schedule",
        "And of `distill.features[]`, the same. The factor is 0 before `start` and from `end` on, rises over `warmup`, then "
        "falls by `decay`.",
        {
            "start": ("iteration", "the first that counts"),
            "end": ("iteration", "the first that counts no more; -1: the end of training"),
            "warmup": ("iterations", "of a linear rise from 0"),
            "decay": ("`none`, `linear` or `cosine`", "how it falls to 0 at `end`"),
        },
        Schedule,
    ),
    Section(
        "distill.teacher",
        "The bounds say how far an engine may differ from the Paddle layer: errors as shares of a tensor's range.",
        {
            "type": (
                "`model`, `ema` or `mutual`",
                "trained before; the mean of the student's own past; trained together with the student",
            ),
            "decay": ("number below 1", "of `ema`, how slowly it follows the student"),
            "engine": (
                "`auto`, `model`, `paddle`, `openvino` or `onnxruntime`",
                "what runs a teacher of type `model`; also `--teacher_engine`",
            ),
            "cache": ("a folder", "the outputs that `cache_teacher` stored of a teacher, in place of it"),
            "max_error": ("0 to 1", "largest error of any value"),
            "mean_error": ("0 to 1", "mean error of any tensor"),
            "same_class": ("0 to 1", "share of pixels that must get the same class"),
        },
        Bounds,
        {
            "type": "`model`",
            "decay": str(Distillation.decay),
            "engine": f"`{Distillation.engine}`",
            "cache": "none: the teacher computes",
        },
    ),
    Section(
        "distill.teachers[]",
        "One of several teachers.",
        {
            "name": ("text", "for messages and for `teacher: {name: layer}`"),
            "config": ("path", "its YAML file, of which `model` is read"),
            "pretrained": ("path", "weights, instead of the file's `model.pretrained`"),
            "weight": ("number above 0", "its share among the teachers"),
            "class_map": _CLASS_MAP,
        },
        defaults={
            "name": "`teacher_0`, ...",
            "config": "needed",
            "pretrained": "the file's",
            "weight": "1",
            "class_map": "`distill.class_map`",
        },
    ),
    Section(
        "test_config",
        "Names and meanings are PaddleSeg's. Sizes are [width, height] in pixels.",
        {
            "is_slide": ("boolean", "by a sliding window"),
            "crop_size": ("[width, height]", "of the window"),
            "stride": ("[x, y]", "of the window"),
            "aug_eval": ("boolean", "average over scales and flips"),
            "scales": ("list of numbers", "of `aug_eval`"),
            "flip_horizontal": ("boolean", "of `aug_eval`"),
            "flip_vertical": ("boolean", "of `aug_eval`"),
            "auc_roc": ("anything", "PaddleSeg's, accepted and not used"),
        },
        TestConfig,
        {"auc_roc": "none"},
    ),
    Section(
        "prepare_distill_config()[]",
        "Not YAML: the dictionaries that `prepare_distill_config` in a `distill_config.py` returns. Any other key is an argument "
        "of the loss.",
        {
            "feature_type": ("text", "`hidden` for the adaptors' keys `hidden_0`, `hidden_1`, ..."),
            "s_feature_idx": ("whole number", "1 means the student's `hidden_1`"),
            "t_feature_idx": ("whole number", "the teacher's"),
            "loss_function": ("text", "the type of a loss"),
            "weight": ("number", "its factor"),
            "connector": ("text", "as above"),
        },
        defaults={
            **{"feature_type": "`hidden`", "s_feature_idx": "needed", "t_feature_idx": "needed"},
            **{"loss_function": "needed", "weight": "1", "connector": "`none`"},
        },
    ),
)
