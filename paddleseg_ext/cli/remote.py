"""Teachers on other machines that the flags of the distillation command name."""

import argparse
import logging
import re
from collections.abc import Sequence

from paddle import nn

from paddleseg_ext import config as configuration
from paddleseg_ext.cli.teachers import Member, measure
from paddleseg_ext.cli.training import Session
from paddleseg_ext.config import Config, FeaturePair
from paddleseg_ext.distill.adaptor import AdaptorBase
from paddleseg_ext.distill.class_map import ClassMap
from paddleseg_ext.distill.distiller import names
from paddleseg_ext.errors import ConfigError, DataError, NoTeacherError, closest
from paddleseg_ext.service import addresses
from paddleseg_ext.service.client import ClientOptions, connector
from paddleseg_ext.service.endpoints import FixedEndpoints, OpenSource, Rates, discovery
from paddleseg_ext.service.pipeline import Options, Pipeline
from paddleseg_ext.service.probe import probe
from paddleseg_ext.service.security import Security
from paddleseg_ext.service.spec import ModelSpec, TensorSpec, find
from paddleseg_ext.service.transport import Connect
from paddleseg_ext.teachers.remote import RemoteTeacher, ServedLayer, Service
from paddleseg_ext.types import Batch

_log = logging.getLogger(__name__)

_BEGIN = 10.0  # seconds that teachers of a fixed address may take to be there
_TIMEOUT = 300.0  # seconds without any answer
_AT_MOST = 4  # teachers of a service that one process has a use for
_OF_SERVICES = ("teachers_at_most", "teacher_model", "teacher_timeout", "tls_cert", "tls_key", "tls_ca", "token_file")


def is_served(args: argparse.Namespace) -> bool:
    """Whether the flags name teachers on other machines.

    Raises:
        ConfigError: they contradict each other, cannot be, or would do nothing.
    """
    if bool(args.discovery) != bool(args.teacher_service):
        given, missing = ("discovery", "teacher_service") if args.discovery else ("teacher_service", "discovery")
        raise ConfigError(f"--{given} needs --{missing} too")
    if args.distill_teachers and args.discovery:
        raise ConfigError("--distill_teachers names the teachers and --discovery finds them; leave out one of the two")
    served = bool(args.distill_teachers or args.discovery)
    for name in _OF_SERVICES:
        if not served and getattr(args, name) is not None:
            raise ConfigError(f"--{name} is for teachers on other machines; it needs --distill_teachers or --discovery")
    if served:
        _check_served(args)
    return served


def _check_served(args: argparse.Namespace) -> None:
    if _timeout(args) <= 0:
        raise ConfigError(f"--teacher_timeout: more than 0 seconds are expected, but got {args.teacher_timeout:g}")
    if args.teacher_engine not in (None, "auto"):
        raise ConfigError(f"--teacher_engine {args.teacher_engine}: teachers on other machines choose their own")
    if args.teacher_cache:
        raise ConfigError(
            f"--teacher_cache {args.teacher_cache}: a service answers for itself; leave out one of the two"
        )
    if args.teacher_opts and not args.teacher_config:
        raise ConfigError("--teacher_opts changes values of a --teacher_config, which is not given")
    if args.discovery:
        addresses.endpoints("--discovery", args.discovery)
        addresses.service_name("--teacher_service", args.teacher_service)
    elif args.teachers_at_most is not None:
        raise ConfigError("--teachers_at_most is for --discovery; all of --distill_teachers are asked")
    else:
        addresses.endpoints("--distill_teachers", args.distill_teachers)
    _security(args).channel_credentials()


def open_service_member(
    session: Session, features: Sequence[FeaturePair], adaptor: type[AdaptorBase], batch: Batch
) -> Member:
    """The served teacher, checked against the student's file.

    Args:
        features: the pairs of features, whose teacher's side names outputs of the service, or keys of the adaptor.
        adaptor: names the layers that its keys mean.
        batch: images as the student sees them.

    Raises:
        ConfigError: it cannot be reached, or does not fit.
    """
    args, distill, facts = session.args, session.config.distill, session.data.facts
    where = f"--distill_teachers {args.distill_teachers}" if args.distill_teachers else f"--discovery {args.discovery}"
    if distill.kind != "model" or distill.teachers or distill.cache:
        kind = f"teacher.cache: {distill.cache}" if distill.cache else f"teacher: {distill.kind}"
        what = "teachers" if distill.teachers else kind
        raise ConfigError(f"{where}: {session.config.path} has distill.{what} already; leave out one of the two")
    file = (
        configuration.load(args.teacher_config, opts=args.teacher_opts, model_only=True)
        if args.teacher_config
        else None
    )
    service = _open(args, where, batch)
    _log.info("%s serve '%s' %s", where, service.spec.name, ", ".join(map(_words, service.spec.outputs)))
    wanted = {key: pair for pair in features for key in names(pair.teacher)}
    layers = _layers(adaptor)
    by_key = {key: _output(where, service.spec, (key, layers.get(key, key)), pair) for key, pair in wanted.items()}
    logits = _logits(service.spec, list(by_key.values()))
    if not logits:
        raise ConfigError(f"{where}: '{service.spec.name}' gives no map of logits besides the features")
    classes, class_map = logits[0].shape[1], None
    _check_classes(session, where, logits[0], file)
    if distill.class_map is not None:
        class_map = ClassMap(
            distill.class_map,
            classes,
            facts.num_classes,
            facts.ignore_index,
            f"{session.config.path}: distill.class_map",
        )
    teacher = RemoteTeacher(
        service, [tensor.name for tensor in logits], {key: tensor.name for key, tensor in by_key.items()}
    )
    return Member("teacher", 1.0, teacher, None, None, file, None, class_map)


def show_service(session: Session, member: Member) -> None:
    """With --do_eval, measure the served teacher as one in this process."""
    assert isinstance(member.teacher, RemoteTeacher)
    try:
        measure(session, member, ServedLayer(member.teacher))
    except DataError as error:  # it may take the images of training and no others
        _log.warning("the served teacher cannot be measured: %s", error)


def _open(args: argparse.Namespace, where: str, batch: Batch) -> Service:
    """Find the teachers and learn what they serve."""
    connect = connector(ClientOptions(args.teacher_model or "", security=_security(args)))
    open_source, spec = _fixed(args, where, connect) if args.distill_teachers else _discovered(args, where, connect)
    if len(spec.inputs) != 1:
        raise ConfigError(
            f"{where}: '{spec.name}' takes {', '.join(map(_words, spec.inputs))}, but only images are sent"
        )
    [image] = spec.inputs
    shape = list(batch.images.shape)
    fits = len(image.shape) == 4 and all(w in (-1, size) for w, size in zip(image.shape[1:], shape[1:], strict=True))
    if not fits or image.datatype not in ("FP32", "FP16", "BF16", "FP64"):
        raise ConfigError(f"{where}: '{spec.name}' takes {_words(image)}, but images of training are FP32 {shape}")
    return Service(spec, image.name, open_source, connect, _timeout(args))


def _fixed(args: argparse.Namespace, where: str, connect: Connect) -> tuple[OpenSource, ModelSpec]:
    endpoints = addresses.endpoints("--distill_teachers", args.distill_teachers)
    spec, away = probe(where, endpoints, connect, min(_BEGIN, _timeout(args)))
    for endpoint, reason in away.items():
        _log.warning("teacher %s cannot be reached yet: %s", endpoint, reason)
    return lambda _: FixedEndpoints(endpoints), spec


def _discovered(args: argparse.Namespace, where: str, connect: Connect) -> tuple[OpenSource, ModelSpec]:
    servers = addresses.endpoints("--discovery", args.discovery)
    name = addresses.service_name("--teacher_service", args.teacher_service)
    open_source, rates = discovery(servers, name, args.teachers_at_most or _AT_MOST, _security(args)), Rates()
    source = open_source(rates)
    with Pipeline(source, connect, Options(timeout=_timeout(args))) as pipeline:
        if hasattr(source, "wait"):
            source.wait(min(_BEGIN, _timeout(args)))  # no balance server at all is said at once
        try:
            return open_source, pipeline.spec()
        except NoTeacherError as error:
            raise NoTeacherError(f"{where} --teacher_service {name}: {error}") from None


def _timeout(args: argparse.Namespace) -> float:
    return _TIMEOUT if args.teacher_timeout is None else args.teacher_timeout


def _security(args: argparse.Namespace) -> Security:
    return Security.of(args.tls_cert, args.tls_key, args.tls_ca, args.token_file)


def _layers(adaptor: type[AdaptorBase]) -> dict[str, str]:
    """The names of layers that a TeacherAdaptor gives without having its model."""
    try:
        mapping = adaptor(nn.Layer()).mapping_layers()
    except AttributeError:  # it looks into the model
        return {}
    return {key: name for key, name in mapping.items() if isinstance(name, str)}


def _output(where: str, spec: ModelSpec, names: Sequence[str], pair: FeaturePair) -> TensorSpec:
    """The output that has one of these names."""
    for name in names:
        tensor = find(spec.outputs, name)
        if tensor is not None:
            return tensor
    known = {name for output in spec.outputs for name in (output.name, output.alias) if name}
    said = " or ".join(f"'{name}'" for name in dict.fromkeys(names))
    raise ConfigError(
        f"{pair.where}: the model that {where} serve has no output {said} for the teacher's feature{closest(names[-1], known)}"
    )


def _logits(spec: ModelSpec, features: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The outputs that are maps of logits: by the alias that our exports give them, else all that are like the first."""
    maps = [t for t in spec.outputs if len(t.shape) == 4 and t not in features]
    named = [t for t in maps if re.fullmatch(r"prediction(_[0-9]+)?", t.alias)]
    return named or [t for t in maps if t.shape[1] == maps[0].shape[1]]


def _check_classes(session: Session, where: str, logits: TensorSpec, file: Config | None) -> None:
    classes, wanted = logits.shape[1], session.data.facts.num_classes
    if file is not None and file.model.params.get("num_classes", wanted) != classes:
        raise ConfigError(
            f"{file.model.where}.num_classes: {file.model.params['num_classes']}, but the model that {where} serve has {classes}"
        )
    if session.config.distill.class_map is None and classes not in (-1, wanted):
        raise ConfigError(
            f"{where}: '{logits.name}' has {classes} classes, the student {wanted}; is it another model? "
            "(distill.class_map in the student's file says which classes are the same)"
        )


def _words(tensor: TensorSpec) -> str:
    alias = f" or '{tensor.alias}'" if tensor.alias not in ("", tensor.name) else ""
    return f"'{tensor.name}'{alias} {tensor.datatype} {list(tensor.shape)}"
