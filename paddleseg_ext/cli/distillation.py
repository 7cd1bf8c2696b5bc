"""What the distillation command adds to training: the teacher, the pairs, and a look at both before the start."""

import contextlib
import logging
from collections.abc import Iterator, Sequence

from paddle import nn

from paddleseg_ext import config as configuration
from paddleseg_ext.cli.training import Session, build_task_loss
from paddleseg_ext.config import Config, FeaturePair
from paddleseg_ext.data.loader import sample_images
from paddleseg_ext.distill.balance import term_shares
from paddleseg_ext.distill.distiller import Distiller
from paddleseg_ext.distill.pairs import build_pairs, describe, dry_run, output_pairs
from paddleseg_ext.distill.recorder import Recorder
from paddleseg_ext.engine import env
from paddleseg_ext.engine.hooks import OnceHook, evaluate_with_bar
from paddleseg_ext.engine.trainer import Hook
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.models import LoadReport, build_model
from paddleseg_ext.teachers import ModelTeacher
from paddleseg_ext.types import Batch

_log = logging.getLogger(__name__)

# Below these, a teacher was probably never really loaded.
_FEW_WEIGHTS = 0.95  # share of its tensors found in the weights file
_NEAR_CHANCE = 1.25  # its mIoU over that of the best constant prediction

_BALANCE_AFTER = 50  # iterations


def teacher_config(session: Session) -> Config:
    """The teacher's file, of which only `model` is needed."""
    return configuration.load(session.args.teacher_config, opts=session.args.teacher_opts, model_only=True)


def build_teacher(session: Session, config: Config) -> tuple[nn.Layer, LoadReport | None]:
    """The `model` of the teacher's file, with its weights.

    Raises:
        ConfigError, WeightsError
    """
    facts = session.data.facts
    given = config.model.params.get("num_classes", facts.num_classes)
    if given != facts.num_classes:
        raise ConfigError(
            f"{config.model.where}.num_classes: the teacher has {given} classes, the student {facts.num_classes}"
        )
    return build_model(config.model, facts.num_classes, facts.img_channels, name_prefix="teacher_", strict=True)


def build_distiller(
    session: Session,
    student: nn.Layer,
    caught: Recorder,
    teacher: nn.Layer,
    taught: Recorder,
    features: Sequence[FeaturePair],
) -> Distiller:
    """The step of distillation, its pairs checked by one dry run and shown in the log.

    Raises:
        ConfigError: a pair that cannot work, or no pair at all.
    """
    model_teacher = ModelTeacher(teacher, taught)
    batch = sample_images(session.data.train, session.state.seed, min(2, session.config.batch_size))
    run = dry_run(student, caught, model_teacher, batch)
    outputs = output_pairs(session.config, run)
    if not outputs and not features:
        raise ConfigError(
            f"{session.config.path}: nothing to distil: give distill_loss, distill.outputs, distill.features "
            f"or the pairs of {session.args.distill_config}"
        )
    facts = session.data.facts
    numbers = {"ignore_index": facts.ignore_index, "num_classes": facts.num_classes, "iters": session.config.iters}
    pairs = build_pairs(outputs, features, run, **numbers)
    for pair in pairs:
        _log.info("distil %s", describe(pair, run))
    return Distiller(student, caught, model_teacher, build_task_loss(session, student), pairs)


def show_teacher(session: Session, teacher: nn.Layer, report: LoadReport | None) -> None:
    """With --do_eval, measure the teacher; warn where it seems not to be trained."""
    if report is None:
        _log.warning("the teacher has no weights: %s has no model.pretrained", session.args.teacher_config)
    elif report.matched < _FEW_WEIGHTS * report.total:
        _log.warning("the teacher's weights hardly fit: %s", report)
    limit = session.args.teacher_eval_images
    if session.data.val is None or limit == 0:
        return
    options = {"precision": session.args.precision, "num_workers": session.args.num_workers, "limit": limit}
    metrics = evaluate_with_bar(teacher, session.data.val, session.config.test_config, "teacher", **options)
    if env.rank() == 0:
        _log.info("[TEACHER] %s", metrics)
    if metrics.miou < _NEAR_CHANCE * metrics.chance:
        _log.warning(
            "the teacher's mIoU of %.4f is near chance (%.4f for always the commonest class): is it really trained?",
            metrics.miou,
            metrics.chance,
        )


def balance_check(session: Session, distiller: Distiller) -> list[Hook]:
    """A hook that shows, early in training, how much each loss weighs, and warns of one that does nothing or everything."""

    def show(batch: Batch) -> None:
        shares = term_shares(distiller, distiller.student, batch)
        _log.info("[BALANCE] %s", "; ".join(map(str, shares)))
        for share in shares if len(shares) > 1 else ():
            if share.warning:
                _log.warning("%s", share.warning)

    return [OnceHook(min(_BALANCE_AFTER, session.config.iters), show)] if env.rank() == 0 else []


@contextlib.contextmanager
def unchanged(teacher: ModelTeacher) -> Iterator[None]:
    """Make sure that the teacher's weights are the same after training as before."""
    before = teacher.digest()
    yield
    if teacher.digest() != before:
        raise RuntimeError("the teacher's weights changed during training")
