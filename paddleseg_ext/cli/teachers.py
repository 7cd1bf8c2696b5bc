"""The teachers that a student's file and the flags ask for, built and ready to be asked."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from paddle import nn

from paddleseg_ext import config as configuration
from paddleseg_ext.cli.cached import cache_folder, check_teacher, open_cached
from paddleseg_ext.cli.training import Session
from paddleseg_ext.config import Component, Config, FeaturePair, TeacherSpec
from paddleseg_ext.data.build import dataset_facts
from paddleseg_ext.distill.adaptor import AdaptorBase
from paddleseg_ext.distill.class_map import ClassMap
from paddleseg_ext.distill.distiller import names
from paddleseg_ext.distill.own_resolution import own_logits
from paddleseg_ext.distill.recorder import Recorder
from paddleseg_ext.engine import env
from paddleseg_ext.engine.hooks import evaluate_with_bar
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.losses.build import build_task_losses
from paddleseg_ext.losses.task import TaskLoss
from paddleseg_ext.models import LoadReport, build_model, without_pretrained
from paddleseg_ext.teachers import EmaTeacher, ModelTeacher, PeerTeacher
from paddleseg_ext.types import Batch, Teacher

_log = logging.getLogger(__name__)

# Below these, a teacher was probably never really loaded.
_FEW_WEIGHTS = 0.95  # share of its tensors found in the weights file
_NEAR_CHANCE = 1.25  # its mIoU over that of the best constant prediction


@dataclass(frozen=True)
class Member:
    """One teacher: what it is called, counts for and was made from.

    `config` is None for the student's own past; `model` and `component` are where stored outputs or a service stand for it.
    """

    name: str
    weight: float
    teacher: Teacher
    model: nn.Layer | None
    component: Component | None
    config: Config | None
    report: LoadReport | None
    class_map: ClassMap | None

    @property
    def is_fixed(self) -> bool:
        """Whether it was trained before and is in this process."""
        return self.config is not None and self.model is not None and not isinstance(self.teacher, PeerTeacher)


def open_teachers(
    session: Session, student: nn.Layer, adaptor: type[AdaptorBase], batch: Batch, stack: ExitStack
) -> list[Member]:
    """Build every teacher, its internal tensors caught until `stack` closes.

    Raises:
        ConfigError, WeightsError
    """
    distill, given = session.config.distill, session.args.teacher_config
    where = f"{session.config.path}: distill"
    folder, args = cache_folder(session), session.args
    if args.teacher_opts and not (given or distill.teachers):
        raise ConfigError("--teacher_opts changes values of a --teacher_config, which is not given")
    if args.teacher_engine not in (None, "auto") and distill.kind != "model":
        raise ConfigError(
            f"--teacher_engine {args.teacher_engine}: an engine runs a teacher of type 'model', not '{distill.kind}'"
        )
    if folder is not None:
        return [_cached(session, folder, adaptor, batch, stack)]
    if distill.kind == "ema":
        if given:
            raise ConfigError(f"{where}.teacher: 'ema' makes its own teacher; leave out --teacher_config {given}")
        return [_ema(session, student, adaptor, batch, stack)]
    if distill.teachers and given:
        raise ConfigError(f"{where}.teachers has the teachers' files; leave out --teacher_config {given}")
    if not distill.teachers and not given:
        raise ConfigError(
            "--teacher_config is missing (or distill.teachers, or distill.teacher: ema, in "
            f"{session.config.path}, or --teacher_cache)"
        )
    specs = distill.teachers or (TeacherSpec("teacher", given, None, 1.0, None, where),)
    return [_member(session, spec, adaptor, batch, stack) for spec in specs]


def show_teacher(session: Session, member: Member) -> None:
    """With --do_eval, measure a teacher that was trained before; warn where it seems not to be."""
    assert member.model is not None
    warn_of_weights(member)
    measure(session, member, member.model)


def measure(session: Session, member: Member, model: nn.Layer) -> None:
    """With --do_eval, show how good a teacher is by this model of it; warn where it seems not to be trained."""
    limit = session.args.teacher_eval_images
    if session.data.val is None or limit == 0 or member.class_map is not None:
        return
    options = {"precision": session.args.precision, "num_workers": session.args.num_workers, "limit": limit}
    metrics = evaluate_with_bar(model, session.data.val, session.config.test_config, member.name, **options)
    if env.rank() == 0:
        _log.info("[%s] %s", member.name.upper(), metrics)
    if metrics.miou < _NEAR_CHANCE * metrics.chance:
        _log.warning(
            "the %s's mIoU of %.4f is near chance (%.4f for always the commonest class): is it really trained?",
            *(member.name, metrics.miou, metrics.chance),
        )


def warn_of_weights(member: Member) -> None:
    """Warn where a teacher that was trained before has no weights, or few of them."""
    assert member.config is not None
    if member.report is None:
        _log.warning("the %s has no weights: %s has no model.pretrained", member.name, member.config.path)
    elif member.report.matched < _FEW_WEIGHTS * member.report.total:
        _log.warning("the %s's weights hardly fit: %s", member.name, member.report)


def _member(session: Session, spec: TeacherSpec, adaptor: type[AdaptorBase], batch: Batch, stack: ExitStack) -> Member:
    distill, facts = session.config.distill, session.data.facts
    learns = distill.kind == "mutual"
    file = configuration.load(spec.config, opts=session.args.teacher_opts, model_only=not learns)
    component = file.model
    if spec.pretrained is not None:
        component = component.with_params(pretrained=spec.pretrained)
    mapping = spec.class_map or distill.class_map
    classes = _classes(file, component, facts.num_classes, mapping)
    class_map = None
    if mapping is not None:
        class_map = ClassMap(mapping, classes, facts.num_classes, facts.ignore_index, f"{spec.where}.class_map")
    model, report = build_model(component, classes, facts.img_channels, name_prefix=f"{spec.name}_", strict=not learns)
    model.train()
    if not learns:
        model.eval()
    enlarged = _at_label_resolution(session)
    own = own_logits(model, batch, enlarged if learns else ())
    caught = stack.enter_context(
        Recorder(
            adaptor(model),
            [*_layers(session.config.distill.features, spec.name), *(source.layer for source in own.values())],
            f"{session.config.path}: distill.features",
        )
    )
    teacher: Teacher
    if learns:
        terms = build_task_losses(file.loss, facts.ignore_index)
        teacher = PeerTeacher(model, caught, TaskLoss(terms, model, f"{file.path}: loss"), own, facts.ignore_index)
    else:
        teacher = ModelTeacher(model, caught, own, enlarged)
    component = component.with_params(num_classes=classes)
    return Member(spec.name, spec.weight, teacher, model, component, file, report, class_map)


def _cached(session: Session, folder: str, adaptor: type[AdaptorBase], batch: Batch, stack: ExitStack) -> Member:
    """The teacher as it was stored; the one of --teacher_config, where it is given, must be the same and can be measured."""
    given, facts, mapping = session.args.teacher_config, session.data.facts, session.config.distill.class_map
    teacher = open_cached(session, folder)
    where = f"{session.config.path}: distill"
    if given:
        member = _member(session, TeacherSpec("teacher", given, None, 1.0, None, where), adaptor, batch, stack)
        assert isinstance(member.teacher, ModelTeacher)
        assert member.component is not None
        check_teacher(teacher, member.teacher, member.component, given)
        return replace(member, teacher=teacher)
    manifest, class_map = teacher.store.manifest, None
    if mapping is not None:
        class_map = ClassMap(mapping, manifest.classes, facts.num_classes, facts.ignore_index, f"{where}.class_map")
    return Member("teacher", 1.0, teacher, None, None, None, None, class_map)


def _ema(session: Session, student: nn.Layer, adaptor: type[AdaptorBase], batch: Batch, stack: ExitStack) -> Member:
    facts, distill = session.data.facts, session.config.distill
    component = without_pretrained(session.config.model)
    model, _ = build_model(component, facts.num_classes, facts.img_channels, name_prefix="teacher_")
    model.eval()
    own = own_logits(model, batch, _at_label_resolution(session))
    caught = stack.enter_context(
        Recorder(
            adaptor(model),
            [*_layers(distill.features, "teacher"), *(source.layer for source in own.values())],
            f"{session.config.path}: distill.features",
        )
    )
    teacher = EmaTeacher(model, caught, student, distill.decay, own)
    return Member("teacher", 1.0, teacher, model, component, None, None, None)


def _at_label_resolution(session: Session) -> set[int]:
    return {pair.teacher for pair in session.config.distill.outputs if pair.resolution == "label"}


def _classes(file: Config, component: Component, wanted: int, mapping: Mapping[int, int] | None) -> int:
    """How many classes a teacher has: the student's, unless a class map says which are the same."""
    given = component.params.get("num_classes")
    if given is None and mapping is not None and file.train_dataset is not None:
        given = dataset_facts(file.train_dataset).num_classes
    given = wanted if given is None else given
    if given != wanted and mapping is None:
        raise ConfigError(
            f"{component.where}.num_classes: the teacher has {given} classes, the student {wanted}; "
            "distill.class_map in the student's file says which are the same"
        )
    return given


def _layers(features: Sequence[FeaturePair], teacher: str) -> list[str]:
    return [name for pair in features if pair.only in (None, teacher) for name in names(pair.teacher)]
