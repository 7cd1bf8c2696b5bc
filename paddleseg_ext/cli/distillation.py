"""What the distillation command adds to training: the teachers, the pairs, and a look at both before the start."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor, nn

from paddleseg_ext.cli.cached import cache_folder, check_asked, follow_images
from paddleseg_ext.cli.engines import faster
from paddleseg_ext.cli.remote import is_served, open_service_member, show_service
from paddleseg_ext.cli.teachers import Member, open_teachers, show_teacher
from paddleseg_ext.cli.training import Session, build_task_loss, train
from paddleseg_ext.config import FeaturePair
from paddleseg_ext.data.loader import sample_images
from paddleseg_ext.distill.balance import term_shares
from paddleseg_ext.distill.distiller import Distiller, Pair, names
from paddleseg_ext.distill.own_resolution import own_logits
from paddleseg_ext.distill.pairs import DryRun, build_pairs, describe, dry_run, output_pairs
from paddleseg_ext.distill.recorder import Recorder
from paddleseg_ext.distill.user_file import UserDistillation
from paddleseg_ext.engine import env
from paddleseg_ext.engine.hooks import OnceHook
from paddleseg_ext.engine.recompute import activations_kept
from paddleseg_ext.engine.trainer import Hook
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.inference.job import plain
from paddleseg_ext.losses import Loss
from paddleseg_ext.models.weights import digest
from paddleseg_ext.teachers import (
    CachedTeacher,
    EmaTeacher,
    EngineTeacher,
    ModelTeacher,
    PeerTeacher,
    RemoteTeacher,
    SeveralTeachers,
)
from paddleseg_ext.teachers.engine import Wanted
from paddleseg_ext.types import Batch, Teacher, TeacherOutputs

_log = logging.getLogger(__name__)

_BALANCE_AFTER = 50  # iterations


@dataclass(frozen=True)
class Distillation:
    """The step of distillation, those who teach in it, and what it compares, for the run's provenance."""

    step: Distiller
    members: Sequence[Member]
    record: Sequence[Mapping[str, Any]]


@contextlib.contextmanager
def open_distillation(session: Session, student: nn.Layer, user: UserDistillation) -> Iterator[Distillation]:
    """Build teachers and pairs, check them by one dry run and show them in the log.

    Raises:
        ConfigError, WeightsError: a teacher or a pair that cannot work, or no pair at all.
    """
    config, facts = session.config, session.data.facts
    if cache_folder(session) is not None:
        follow_images(session)
    batch = sample_images(session.data.train, session.state.seed, min(2, config.batch_size))
    features = (*config.distill.features, *user.pairs)
    with ExitStack() as stack:
        student.train()
        asked = config.distill.outputs
        own = own_logits(student, batch, {pair.student for pair in asked if pair.resolution == "label"})
        layers = [name for pair in config.distill.features for name in names(pair.student)]
        where = f"{config.path}: distill.features"
        caught = stack.enter_context(
            Recorder(user.student_adaptor(student), [*layers, *(s.layer for s in own.values())], where)
        )
        if is_served(session.args):
            members = [open_service_member(session, features, user.teacher_adaptor, batch)]
        else:
            members = open_teachers(session, student, user.teacher_adaptor, batch, stack)

        def tried(teacher: Teacher) -> DryRun:
            return dry_run(student, caught, teacher, batch, own)

        pairs = _pairs(session, members, features, tried)
        if not pairs:
            raise ConfigError(
                f"{config.path}: nothing to distil: give distill_loss, distill.outputs, distill.features "
                f"or the pairs of {session.args.distill_config}"
            )
        for pair in pairs:
            if config.distill.unlabelled and not isinstance(pair.loss, Loss):
                raise ConfigError(
                    f"{config.path}: distill.unlabelled: {type(pair.loss).__name__} takes labelled images only"
                )
        offsets = _offsets(members, batch)
        record = [_recorded(pair, caught, members, offsets) for pair in pairs]
        members = [replace(member, teacher=_quick(session, member, members, pairs, batch)) for member in members]
        teacher = members[0].teacher if len(members) == 1 else _as_one(session, members)
        if user.prepare_teacher is not None:
            teacher = _prepared(teacher, user.prepare_teacher, batch, session.args.distill_config)
        task_loss = build_task_loss(session, student)
        yield Distillation(
            Distiller(student, caught, teacher, task_loss, pairs, own, facts.ignore_index), members, record
        )


def train_distilled(session: Session, student: nn.Layer, distillation: Distillation) -> None:
    """Show the teachers, train the student and make sure that what was not to learn has not."""
    step, members = distillation.step, distillation.members
    served = next((member.teacher for member in members if isinstance(member.teacher, RemoteTeacher)), None)
    fixed = [member for member in members if member.is_fixed]
    for member in fixed:
        show_teacher(session, member)
    for member in members:
        if isinstance(member.teacher, RemoteTeacher):
            show_service(session, member)
    # The student's own past is no part of the step, but of what resuming needs.
    past = [member.model for member in members if isinstance(member.teacher, EmaTeacher)]
    shown = fixed[0].model if fixed and fixed[0].class_map is None else None
    with unchanged(fixed):
        train(
            *(session, student, step),
            name="student",
            extras=nn.LayerList([*step.extras, *past]),
            teacher=shown,
            pairs=distillation.record,
            teachers=[_recorded_teacher(member) for member in members if member.config is not None],
            further_hooks=_balance_check(session, step),
            ahead=served.ahead() if served is not None else None,
        )
    for member in members:
        if isinstance(member.teacher, PeerTeacher) and env.rank() == 0:
            assert member.model is not None
            path = Path(session.args.save_dir) / "peer" / "model.pdparams"
            paddle.save(member.model.state_dict(), str(path))
            _log.info("the teacher, which learnt too, is in %s", path)


def _pairs(
    session: Session, members: Sequence[Member], features: Sequence[FeaturePair], tried: Callable[[Teacher], DryRun]
) -> list[Pair]:
    """The pairs with all members; where there are several, keys are those of `_as_one`."""
    config, facts = session.config, session.data.facts
    build = partial(
        build_pairs,
        ignore_index=facts.ignore_index,
        num_classes=facts.num_classes,
        iters=config.iters,
        images=config.batch_size,
    )
    if len(members) == 1:
        run = tried(members[0].teacher)
        wanted = output_pairs(config, run)
        if isinstance(members[0].teacher, CachedTeacher):
            check_asked(members[0].teacher, wanted, features)
        pairs = build(wanted, features, run, class_map=members[0].class_map)
        _show(pairs, run)
        return pairs
    mean = config.distill.combine == "mean"
    if mean and len({_class_key(member) for member in members}) > 1:
        raise ConfigError(f"{config.path}: distill.teachers: teachers of different classes need `combine: each`")
    built: list[Pair] = []
    if mean:
        run = tried(_as_one(session, members))
        built = build(output_pairs(config, run), [], run, class_map=members[0].class_map)
        _show(built, run)
    offset, whole = 0, sum(member.weight for member in members)
    for member in members:
        run = tried(member.teacher)
        own = [pair for pair in features if pair.only in (None, member.name)]
        outputs = [] if mean else output_pairs(config, run)
        pairs = build(outputs, own, run, class_map=member.class_map, prefix=f"connector_{member.name}_")
        _show(pairs, run)
        built += [_of_member(pair, member, member.weight / whole, offset) for pair in pairs]
        offset += len(run.teacher_outputs)
    return built


def _as_one(session: Session, members: Sequence[Member]) -> SeveralTeachers:
    weights = [member.weight for member in members]
    teachers = {member.name: member.teacher for member in members}
    return SeveralTeachers(teachers, weights, session.config.distill.combine == "mean")


def _quick(session: Session, member: Member, members: Sequence[Member], pairs: Sequence[Pair], batch: Batch) -> Teacher:
    """A member's teacher by the engine that suits it, where it was trained before; a service gives what is used alone."""
    keys = [name for pair in pairs if not isinstance(pair.teacher, int) for name in names(pair.teacher)]
    if isinstance(member.teacher, RemoteTeacher):
        return member.teacher.only(1 + max((p.teacher for p in pairs if isinstance(p.teacher, int)), default=-1), keys)
    if not member.is_fixed or not isinstance(member.teacher, ModelTeacher) or member.component is None:
        return member.teacher
    if len(members) > 1:
        prefix = f"{member.name}/"
        keys = [name.removeprefix(prefix) for name in keys if name.startswith(prefix)]
    shapes = [x.shape if isinstance(x, Tensor) else () for x in member.teacher(batch).logits]
    used = {pair.teacher for pair in pairs if isinstance(pair.teacher, int)} or {0} if len(members) == 1 else None
    wanted = Wanted.of(member.teacher, batch.images.shape[2:], shapes, dict.fromkeys(keys), used)
    return faster(session, member.name, member.teacher, member.component, wanted)


def _prepared(teacher: Teacher, prepare: Callable[[Teacher], Teacher], batch: Batch, path: str) -> Teacher:
    """What the user's file makes of a teacher, tried once."""
    if isinstance(teacher, nn.Layer | RemoteTeacher):
        raise ConfigError(f"{path}: prepare_teacher is for a teacher in this process that does not learn too")
    trying = True

    def stored(given: Batch) -> TeacherOutputs:
        if trying and given.images is not batch.images:
            raise ConfigError(
                f"{path}: prepare_teacher asks about other images than the batch's, of which nothing is stored"
            )
        return teacher(given)

    made = prepare(stored if isinstance(teacher, CachedTeacher) else teacher)
    before, after = teacher(batch), made(batch) if callable(made) else None
    trying = False
    if not isinstance(after, TeacherOutputs):
        raise ConfigError(f"{path}: prepare_teacher returns a function of a Batch that gives TeacherOutputs")
    if [x.shape for x in after.logits] != [x.shape for x in before.logits] or set(before.features) - set(
        after.features
    ):
        raise ConfigError(f"{path}: prepare_teacher: the outputs' shapes and the features' names stay as they were")
    return made


def _offsets(members: Sequence[Member], batch: Batch) -> dict[str, int]:
    """Of several teachers, the number of each one's first output among those of all."""
    counts = [len(member.teacher(batch).logits) for member in members] if len(members) > 1 else [0]
    return {member.name: sum(counts[:position]) for position, member in enumerate(members)}


def _recorded(pair: Pair, caught: Recorder, members: Sequence[Member], offsets: Mapping[str, int]) -> dict[str, Any]:
    """A pair by the names of its layers; numbers are outputs. `of`: the one that is meant of several teachers."""
    of = next((m for m in members if len(members) > 1 and pair.name.endswith(f"@{m.name}")), None)
    one = of or members[0]
    specs = one.teacher.recorder.specs if isinstance(one.teacher, ModelTeacher) else {}

    def said(key: int | str | tuple[str, ...], specs: Mapping[str, str]) -> int | list[str]:
        return key if isinstance(key, int) else [specs.get(name, name) for name in names(key)]

    key = pair.teacher
    if of is not None:
        prefix = f"{of.name}/"
        key = key - offsets[of.name] if isinstance(key, int) else tuple(n.removeprefix(prefix) for n in names(key))
    return {
        **{"name": pair.name, "student": said(pair.student, caught.specs), "teacher": said(key, specs)},
        **{"of": of.name if of is not None else None, "loss": type(pair.loss).__name__, "weight": pair.weight},
    }


def _recorded_teacher(member: Member) -> dict[str, Any]:
    """Its file as it was used, with the weights that it was given."""
    assert member.config is not None
    resolved = dict(member.config.resolved)
    if member.component is not None:
        resolved["model"] = plain(member.component)
    return {"name": member.name, "path": member.config.path, "resolved": resolved}


def _of_member(pair: Pair, member: Member, share: float, offset: int) -> Pair:
    """A pair with one teacher as a pair with all of them."""
    if isinstance(pair.teacher, int):
        key: int | str | tuple[str, ...] = pair.teacher + offset
    elif isinstance(pair.teacher, tuple):
        key = tuple(f"{member.name}/{name}" for name in pair.teacher)
    else:
        key = f"{member.name}/{pair.teacher}"
    return replace(pair, name=f"{pair.name}@{member.name}", teacher=key, weight=pair.weight * share)


def _class_key(member: Member) -> tuple[Any, ...] | None:
    """What teachers whose outputs are averaged must have in common."""
    shared = member.class_map
    return None if shared is None else (shared.teacher_classes, *sorted(shared.mapping.items()))


def _show(pairs: Sequence[Pair], run: DryRun) -> None:
    for pair in pairs:
        _log.info("distil %s", describe(pair, run))


def _balance_check(session: Session, distiller: Distiller) -> list[Hook]:
    """A hook that shows, early in training, how much each loss weighs, and warns of one that does nothing or everything.

    Every rank measures: batch norm may be over all of them.
    """

    def show(batch: Batch) -> None:
        with activations_kept(distiller.student):  # a backward for each loss goes through them
            shares = term_shares(distiller, distiller.student, batch.parts(session.args.accumulate)[0])
        _log.info("[BALANCE] %s", "; ".join(map(str, shares)))
        for share in shares if len(shares) > 1 else ():
            if share.warning:
                _log.warning("%s", share.warning)

    return [OnceHook(min(_BALANCE_AFTER, session.config.iters), show)]


def _digest(member: Member) -> str:
    assert member.model is not None
    if isinstance(member.teacher, EngineTeacher):
        member.teacher.wake()
    return digest(member.model)


@contextlib.contextmanager
def unchanged(members: Sequence[Member]) -> Iterator[None]:
    """Make sure that teachers' weights are the same after training as before."""
    before = [_digest(member) for member in members]
    yield
    for member, earlier in zip(members, before, strict=True):
        if _digest(member) != earlier:
            raise RuntimeError(f"the {member.name}'s weights changed during training")
