"""Raw dictionaries to the dataclasses of `schema`; every error names file, line and key."""

import copy
import math
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from paddleseg_ext.config import yaml_file
from paddleseg_ext.config.schema import Component, Config, FeaturePair, LossTerm, OutputPair, Schedule, TestConfig
from paddleseg_ext.config.yaml_file import KeyPath, RawConfig
from paddleseg_ext.errors import ConfigError, closest

# The last four are PaddleSeg's for its other tools; they are accepted and not used here.
_TOP_LEVEL = (
    *("batch_size", "iters", "model", "train_dataset", "val_dataset", "optimizer", "lr_scheduler", "loss"),
    *("distill_loss", "distill", "test_config", "export", "to_static_training", "test_dataset", "learning_rate"),
)
_DISTILL = ("outputs", "features")
_NEEDED_TO_TRAIN = ("batch_size", "iters", "train_dataset", "optimizer", "lr_scheduler", "loss", "model")


def load(
    path: str,
    *,
    opts: list[str] | None = None,
    batch_size: int | None = None,
    iters: int | None = None,
    learning_rate: float | None = None,
    model_only: bool = False,
) -> Config:
    """Read one YAML file for training, or only its `model` (a teacher's file).

    Args:
        path: the YAML file; `_base_` and `_inherited_` work as in PaddleSeg.
        opts: `key=value` items that overwrite single values; keys are dotted, list elements by number.
        batch_size, iters, learning_rate: overwrite the file's values when not None.
        model_only: nothing but `model` is needed.

    Raises:
        ConfigError: the file or a key of it is missing, unknown or of the wrong kind.
    """
    raw = yaml_file.read(path, opts)
    for key, value in (("batch_size", batch_size), ("iters", iters), ("lr_scheduler.learning_rate", learning_rate)):
        if value is not None:
            raw.set(key, value, f"--{key.split('.')[-1]}")
    _check_keys(raw, (), raw.tree, _TOP_LEVEL)
    for key in ("model",) if model_only else _NEEDED_TO_TRAIN:
        if raw.tree.get(key) is None:
            raise ConfigError(f"{path}: the key '{key}' is missing{closest(key, set(raw.tree) - set(_TOP_LEVEL))}")
    if model_only:
        data = _component(raw, ("train_dataset",)) if raw.tree.get("train_dataset") else None
        return Config(path, _component(raw, ("model",)), train_dataset=data, resolved=copy.deepcopy(raw.tree))
    return Config(
        path=path,
        model=_component(raw, ("model",)),
        batch_size=_positive(raw, ("batch_size",)),
        iters=_positive(raw, ("iters",)),
        train_dataset=_component(raw, ("train_dataset",)),
        val_dataset=_component(raw, ("val_dataset",)) if raw.tree.get("val_dataset") else None,
        optimizer=_component(raw, ("optimizer",)),
        lr_scheduler=_component(raw, ("lr_scheduler",)),
        loss=_loss_terms(raw, "loss"),
        distill_loss=_loss_terms(raw, "distill_loss") if raw.tree.get("distill_loss") else (),
        distill_outputs=_output_pairs(raw),
        distill_features=_feature_pairs(raw),
        test_config=_test_config(raw),
        resolved=copy.deepcopy(raw.tree),
    )


def _check_keys(raw: RawConfig, key: KeyPath, given: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in given:
        if name not in known and not str(name).startswith("_"):
            raise ConfigError(f"{raw.where((*key, name))}: unknown key '{name}'{closest(str(name), known)}")


def _at(raw: RawConfig, key: KeyPath) -> Any:
    value: Any = raw.tree
    for part in key:
        value = value[part]
    return value


def _component(raw: RawConfig, key: KeyPath) -> Component:
    value = _at(raw, key)
    if isinstance(value, str):
        value = {"type": value}
    if not isinstance(value, dict):
        raise ConfigError(f"{raw.where(key)}: a mapping with a 'type' is expected, but got {value!r}")
    if not isinstance(value.get("type"), str):
        if "type" in value:
            raise ConfigError(f"{raw.where((*key, 'type'))}: a name is expected, but got {value['type']!r}")
        raise ConfigError(f"{raw.where(key)}: the key 'type' is missing{closest('type', map(str, value))}")
    params = {str(name): _value(raw, (*key, name)) for name in value if name != "type"}
    return Component(value["type"], params, raw.where(key))


def _value(raw: RawConfig, key: KeyPath) -> Any:
    """An argument: a component where it has a `type`, a list element by element, anything else as it is."""
    value = _at(raw, key)
    if isinstance(value, dict) and "type" in value:
        return _component(raw, key)
    if isinstance(value, list):
        return [_value(raw, (*key, index)) for index in range(len(value))]
    return copy.deepcopy(value)


def _number(raw: RawConfig, key: KeyPath) -> float:
    value = _at(raw, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{raw.where(key)}: a number is expected, but got {value!r}")
    return value


def _positive(raw: RawConfig, key: KeyPath) -> int:
    value = _number(raw, key)
    if int(value) != value or value < 1:
        raise ConfigError(f"{raw.where(key)}: a whole number of at least 1 is expected, but got {value!r}")
    return int(value)


def _mapping(raw: RawConfig, key: KeyPath, known: Iterable[str], needed: Iterable[str] = ()) -> dict[str, Any]:
    value = _at(raw, key)
    if not isinstance(value, dict):
        raise ConfigError(f"{raw.where(key)}: a mapping is expected, but got {value!r}")
    _check_keys(raw, key, value, known)
    for name in needed:
        if name not in value:
            raise ConfigError(f"{raw.where(key)}: the key '{name}' is missing")
    return value


def _loss_terms(raw: RawConfig, name: str) -> tuple[LossTerm, ...]:
    """PaddleSeg's `types` and `coef`: one type for several coefficients stands for all, and so does one coefficient."""
    section = _mapping(raw, (name,), ("types", "coef"), needed=("types", "coef"))
    for key in ("types", "coef"):
        if not isinstance(section[key], list) or not section[key]:
            raise ConfigError(f"{raw.where((name, key))}: a list is expected, but got {section[key]!r}")
    types = [_component(raw, (name, "types", index)) for index in range(len(section["types"]))]
    coefs = [_number(raw, (name, "coef", index)) for index in range(len(section["coef"]))]
    repeated = len(types) == 1 and len(coefs) > 1
    if repeated:
        types = types * len(coefs)
    elif len(coefs) == 1:
        coefs = coefs * len(types)
    if len(types) != len(coefs):
        raise ConfigError(
            f"{raw.where((name,))}: {len(types)} types need as many coef, or one, but there are {len(coefs)}"
        )
    # A `loss` is always output by output. A `distill_loss` says so only by one type for several coefficients;
    # what several types mean depends on how many outputs the two models have.
    by_output = name == "loss" or repeated
    return tuple(
        LossTerm(loss, coef, index if by_output else None)
        for index, (loss, coef) in enumerate(zip(types, coefs, strict=True))
    )


def _pair_keys(raw: RawConfig, name: str) -> list[KeyPath]:
    """Where the pairs of `distill.outputs` or `distill.features` stand."""
    if not raw.tree.get("distill"):
        return []
    listed = _mapping(raw, ("distill",), _DISTILL).get(name) or []
    if not isinstance(listed, list):
        raise ConfigError(f"{raw.where(('distill', name))}: a list is expected, but got {listed!r}")
    return [("distill", name, index) for index in range(len(listed))]


def _output_pairs(raw: RawConfig) -> tuple[OutputPair, ...]:
    pairs = []
    for key in _pair_keys(raw, "outputs"):
        value = _mapping(raw, key, ("student", "teacher", "loss", "weight", "schedule"), needed=("loss",))
        weight = _number(raw, (*key, "weight")) if "weight" in value else 1.0
        schedule = _schedule(raw, (*key, "schedule")) if value.get("schedule") else None
        student, teacher = (_output_index(raw, (*key, side)) if side in value else 0 for side in ("student", "teacher"))
        loss = _component(raw, (*key, "loss"))
        pairs.append(OutputPair(student, teacher, loss, weight, raw.where(key), schedule))
    return tuple(pairs)


def _feature_pairs(raw: RawConfig) -> tuple[FeaturePair, ...]:
    pairs = []
    for key in _pair_keys(raw, "features"):
        known = ("student", "teacher", "loss", "weight", "connector", "schedule")
        value = _mapping(raw, key, known, needed=("student", "loss"))
        names = [value["student"], value.get("teacher", value["student"])]
        for side, name in zip(("student", "teacher"), names, strict=True):
            if not isinstance(name, str):
                raise ConfigError(f"{raw.where((*key, side))}: the name of a layer is expected, but got {name!r}")
        weight = _number(raw, (*key, "weight")) if "weight" in value else 1.0
        connector = Component("auto", {}, raw.where(key))
        if value.get("connector"):
            connector = _component(raw, (*key, "connector"))
        schedule = _schedule(raw, (*key, "schedule")) if value.get("schedule") else None
        loss = _component(raw, (*key, "loss"))
        pairs.append(FeaturePair(names[0], names[1], loss, weight, connector, raw.where(key), schedule))
    return tuple(pairs)


def _schedule(raw: RawConfig, key: KeyPath) -> Schedule:
    value = _mapping(raw, key, [f.name for f in fields(Schedule)])
    numbers = {name: _number(raw, (*key, name)) for name in ("start", "end", "warmup") if name in value}
    for name, number in numbers.items():
        if int(number) != number or number < (-1 if name == "end" else 0):
            raise ConfigError(f"{raw.where((*key, name))}: a number of iterations is expected, but got {number!r}")
    decay = value.get("decay") or "none"
    if decay not in ("none", "linear", "cosine"):
        raise ConfigError(f"{raw.where((*key, 'decay'))}: 'none', 'linear' or 'cosine' is expected, but got {decay!r}")
    schedule = Schedule(**{name: int(number) for name, number in numbers.items()}, decay=decay)
    if schedule.end != -1 and schedule.end <= schedule.start + schedule.warmup:
        raise ConfigError(f"{raw.where(key)}: end {schedule.end} leaves nothing after start and warmup")
    return schedule


def _output_index(raw: RawConfig, key: KeyPath) -> int:
    value = _number(raw, key)
    if int(value) != value or value < 0:
        raise ConfigError(f"{raw.where(key)}: the number of an output, counted from 0, is expected, but got {value!r}")
    return int(value)


def _test_config(raw: RawConfig) -> TestConfig:
    if not raw.tree.get("test_config"):
        return TestConfig()
    names = [f.name for f in fields(TestConfig)]
    given = _mapping(raw, ("test_config",), [*names, "auc_roc"])
    section = {name: given[name] for name in names if name in given}
    for name in ("is_slide", "aug_eval", "flip_horizontal", "flip_vertical"):
        if not isinstance(section.get(name, False), bool):
            raise ConfigError(
                f"{raw.where(('test_config', name))}: True or False is expected, but got {section[name]!r}"
            )
    for name in ("crop_size", "stride"):
        size = section.get(name)
        if size is not None:
            whole = isinstance(size, list | tuple) and all(type(v) is int and v > 0 for v in size)
            if not whole or len(size) != 2:
                raise ConfigError(
                    f"{raw.where(('test_config', name))}: [width, height] in pixels is expected, but got {size!r}"
                )
            section[name] = tuple(size)
    if "scales" in section:
        scales = section["scales"] if isinstance(section["scales"], list | tuple) else [section["scales"]]
        if not scales or not all(type(s) in (int, float) and 0 < s < math.inf for s in scales):
            raise ConfigError(
                f"{raw.where(('test_config', 'scales'))}: positive numbers are expected, but got {scales}"
            )
        section["scales"] = tuple(float(s) for s in scales)
    if section.get("is_slide") and not (section.get("crop_size") and section.get("stride")):
        raise ConfigError(f"{raw.where(('test_config',))}: is_slide needs crop_size and stride")
    return TestConfig(**section)
