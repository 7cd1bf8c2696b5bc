"""The `distill` section of a student's file."""

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import yaml

from paddleseg_ext.config.schema import Component, Distillation, FeaturePair, OutputPair, Schedule, TeacherSpec
from paddleseg_ext.config.values import at, component, mapping, number
from paddleseg_ext.config.yaml_file import KeyPath, RawConfig
from paddleseg_ext.errors import ConfigError, closest

_KEYS = ("outputs", "features", "teacher", "teachers", "combine", "class_map", "unlabelled")
_KINDS = ("model", "ema", "mutual")
_BOUNDS = ("max_error", "mean_error", "same_class")
ENGINES = ("auto", "model", "paddle", "openvino", "onnxruntime")


def read_distillation(raw: RawConfig) -> Distillation:
    """The section, `auto` or a mapping; without one, its defaults.

    Raises:
        ConfigError: a key is unknown or a value cannot be.
    """
    if not raw.tree.get("distill"):
        return Distillation()
    if raw.tree["distill"] == "auto":
        return Distillation(auto=raw.where(("distill",)))
    section = mapping(raw, ("distill",), _KEYS)
    teachers = _teachers(raw)
    names = [spec.name for spec in teachers]
    teacher = _teacher(raw)
    if teachers and teacher.get("cache"):
        raise ConfigError(f"{raw.where(('distill', 'teacher', 'cache'))}: of one teacher; leave distill.teachers out")
    if teachers and teacher["kind"] != "model":
        kind = teacher["kind"]
        raise ConfigError(f"{raw.where(('distill', 'teacher'))}: '{kind}' has one teacher; leave distill.teachers out")
    combine = _choice(raw, ("distill", "combine"), ("mean", "each")) if "combine" in section else "mean"
    if section.get("class_map") and teacher["kind"] == "ema":
        raise ConfigError(
            f"{raw.where(('distill', 'class_map'))}: an 'ema' teacher has the student's classes; leave it out"
        )
    if "combine" in section and not teachers:
        raise ConfigError(
            f"{raw.where(('distill', 'combine'))}: of distill.teachers, which are not there; leave it out"
        )
    return Distillation(
        outputs=tuple(_output_pair(raw, key) for key in _listed(raw, "outputs")),
        features=tuple(pair for key in _listed(raw, "features") for pair in _feature_pairs(raw, key, names)),
        **teacher,
        teachers=teachers,
        combine=combine,
        class_map=_class_map(raw, ("distill", "class_map")) if section.get("class_map") else None,
        unlabelled=_text(raw, ("distill", "unlabelled")) if section.get("unlabelled") else None,
    )


def _listed(raw: RawConfig, name: str) -> list[KeyPath]:
    """Where the elements of a list in the section stand."""
    found = raw.tree["distill"].get(name) or []
    if not isinstance(found, list):
        raise ConfigError(f"{raw.where(('distill', name))}: a list is expected, but got {found!r}")
    return [("distill", name, index) for index in range(len(found))]


def _teacher(raw: RawConfig) -> dict[str, Any]:
    """`distill.teacher`: a kind, or a mapping with its settings."""
    key: KeyPath = ("distill", "teacher")
    given = raw.tree["distill"].get("teacher")
    if given is None:
        return {"kind": "model"}
    if isinstance(given, str):
        return {"kind": _choice(raw, key, _KINDS)}
    section = mapping(raw, key, ("type", "decay", "engine", "cache", *_BOUNDS))
    found: dict[str, Any] = {"kind": _choice(raw, (*key, "type"), _KINDS) if "type" in section else "model"}
    if "decay" in section:
        found["decay"] = _within(raw, (*key, "decay"), 1)
        if found["kind"] != "ema" or found["decay"] == 1:
            raise ConfigError(
                f"{raw.where((*key, 'decay'))}: below 1, of an 'ema' teacher, but got {section['decay']!r}"
            )
    if "engine" in section:
        found["engine"] = _choice(raw, (*key, "engine"), ENGINES)
    if section.get("cache"):
        found["cache"] = _text(raw, (*key, "cache"))
        if "engine" in section:
            raise ConfigError(
                f"{raw.where((*key, 'engine'))}: no engine runs where `cache` has the outputs; leave one out"
            )
    found["bounds"] = {name: _within(raw, (*key, name), 1) for name in _BOUNDS if name in section}
    for name in ("engine", *_BOUNDS):
        if name in section and found["kind"] != "model":
            raise ConfigError(
                f"{raw.where((*key, name))}: an engine runs a teacher of type 'model', not '{found['kind']}'"
            )
    if "cache" in found and found["kind"] != "model":
        raise ConfigError(
            f"{raw.where((*key, 'cache'))}: stored are outputs of a teacher of type 'model', not '{found['kind']}'"
        )
    return found


def _within(raw: RawConfig, key: KeyPath, most: float) -> float:
    found = number(raw, key)
    if not 0 <= found <= most:
        raise ConfigError(f"{raw.where(key)}: 0 to {most} is expected, but got {found!r}")
    return found


def _teachers(raw: RawConfig) -> tuple[TeacherSpec, ...]:
    specs: list[TeacherSpec] = []
    for key in _listed(raw, "teachers"):
        section = mapping(raw, key, ("name", "config", "pretrained", "weight", "class_map"), needed=("config",))
        name = _text(raw, (*key, "name")) if "name" in section else f"teacher_{key[-1]}"
        if name in [spec.name for spec in specs]:
            raise ConfigError(f"{raw.where((*key, 'name'))}: '{name}' is another teacher's name")
        weight = number(raw, (*key, "weight")) if "weight" in section else 1.0
        if weight <= 0:
            raise ConfigError(f"{raw.where((*key, 'weight'))}: a weight above 0 is expected, but got {weight!r}")
        pretrained = _text(raw, (*key, "pretrained")) if section.get("pretrained") else None
        classes = _class_map(raw, (*key, "class_map")) if section.get("class_map") else None
        config = _text(raw, (*key, "config"))
        specs.append(TeacherSpec(name, config, pretrained, weight, classes, raw.where(key)))
    return tuple(specs)


def _output_pair(raw: RawConfig, key: KeyPath) -> OutputPair:
    known = ("student", "teacher", "loss", "weight", "schedule", "resolution")
    section = mapping(raw, key, known, needed=("loss",))
    student, teacher = (_output_index(raw, (*key, side)) if side in section else 0 for side in ("student", "teacher"))
    return OutputPair(
        student,
        teacher,
        component(raw, (*key, "loss")),
        number(raw, (*key, "weight")) if "weight" in section else 1.0,
        raw.where(key),
        _schedule(raw, (*key, "schedule")) if section.get("schedule") else None,
        _choice(raw, (*key, "resolution"), ("network", "label")) if "resolution" in section else "network",
    )


def _feature_pairs(raw: RawConfig, key: KeyPath, teachers: list[str]) -> list[FeaturePair]:
    """One pair, or one for each teacher that `teacher: {name: layer}` names."""
    known = ("student", "teacher", "loss", "weight", "connector", "schedule")
    section = mapping(raw, key, known, needed=("student", "loss"))
    student = _layers(raw, (*key, "student"))
    wanted: dict[str | None, Any] = {None: student}
    if isinstance(section.get("teacher"), dict):
        wanted = {}
        for name in section["teacher"]:
            if name not in teachers:
                raise ConfigError(f"{raw.where((*key, 'teacher'))}: no teacher '{name}'{closest(str(name), teachers)}")
            wanted[name] = _layers(raw, (*key, "teacher", name))
    elif "teacher" in section:
        wanted = {None: _layers(raw, (*key, "teacher"))}
    weight = number(raw, (*key, "weight")) if "weight" in section else 1.0
    connector = (
        component(raw, (*key, "connector")) if section.get("connector") else Component("auto", {}, raw.where(key))
    )
    schedule = _schedule(raw, (*key, "schedule")) if section.get("schedule") else None
    loss = component(raw, (*key, "loss"))
    return [
        FeaturePair(student, layers, loss, weight, connector, raw.where(key), schedule, only)
        for only, layers in wanted.items()
    ]


def _layers(raw: RawConfig, key: KeyPath) -> str | tuple[str, ...]:
    """The name of a layer, or a list of names."""
    found = at(raw, key)
    if isinstance(found, list) and len(found) > 1 and all(isinstance(name, str) for name in found):
        return tuple(found)
    if not isinstance(found, str):
        raise ConfigError(f"{raw.where(key)}: the name of a layer is expected, but got {found!r}")
    return found


def _schedule(raw: RawConfig, key: KeyPath) -> Schedule:
    section = mapping(raw, key, [f.name for f in fields(Schedule)])
    given = {name: number(raw, (*key, name)) for name in ("start", "end", "warmup") if name in section}
    for name, count in given.items():
        if int(count) != count or count < (-1 if name == "end" else 0):
            raise ConfigError(f"{raw.where((*key, name))}: a number of iterations is expected, but got {count!r}")
    decay = section.get("decay") or "none"
    if decay not in ("none", "linear", "cosine"):
        raise ConfigError(f"{raw.where((*key, 'decay'))}: 'none', 'linear' or 'cosine' is expected, but got {decay!r}")
    schedule = Schedule(**{name: int(count) for name, count in given.items()}, decay=decay)
    if schedule.end != -1 and schedule.end <= schedule.start + schedule.warmup:
        raise ConfigError(f"{raw.where(key)}: end {schedule.end} leaves nothing after start and warmup")
    return schedule


def _class_map(raw: RawConfig, key: KeyPath) -> Mapping[int, int]:
    """{teacher class: student class}, written here or in a YAML file of its own."""
    found, where = at(raw, key), raw.where(key)
    if isinstance(found, str):
        if not os.path.isfile(found):
            raise ConfigError(f"{where}: no such file {found}")
        where = f"{where}: {found}"
        try:
            with open(found, encoding="utf-8") as file:
                found = yaml.safe_load(file)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where} cannot be read: {' '.join(str(error).split())}") from None
    whole = isinstance(found, dict) and all(type(n) is int and n >= 0 for pair in found.items() for n in pair)
    if not whole or not found:
        raise ConfigError(f"{where}: {{teacher class: student class}} in numbers is expected, but got {found!r}")
    return dict(found)


def _output_index(raw: RawConfig, key: KeyPath) -> int:
    found = number(raw, key)
    if int(found) != found or found < 0:
        raise ConfigError(f"{raw.where(key)}: the number of an output, counted from 0, is expected, but got {found!r}")
    return int(found)


def _choice(raw: RawConfig, key: KeyPath, known: tuple[str, ...]) -> str:
    found = at(raw, key)
    if found not in known:
        raise ConfigError(
            f"{raw.where(key)}: one of {', '.join(known)} is expected, but got {found!r}{closest(str(found), known)}"
        )
    return str(found)


def _text(raw: RawConfig, key: KeyPath) -> str:
    found = at(raw, key)
    if not isinstance(found, str) or not found:
        raise ConfigError(f"{raw.where(key)}: a text is expected, but got {found!r}")
    return found
