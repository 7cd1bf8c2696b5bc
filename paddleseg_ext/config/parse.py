"""Raw dictionaries to the dataclasses of `schema`; every error names file, line and key."""

import copy
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from paddleseg_ext.config import yaml_file
from paddleseg_ext.config.distillation import read_distillation
from paddleseg_ext.config.schema import Config, LossTerm, TestConfig
from paddleseg_ext.config.values import check_keys, component, mapping, number, positive
from paddleseg_ext.config.yaml_file import RawConfig
from paddleseg_ext.errors import ConfigError, closest

# The last four are PaddleSeg's for its other tools; they are accepted and not used here.
_TOP_LEVEL = (
    *("batch_size", "iters", "model", "train_dataset", "val_dataset", "optimizer", "lr_scheduler", "loss"),
    *("distill_loss", "distill", "test_config", "export", "to_static_training", "test_dataset", "learning_rate"),
)
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
    return _parsed(raw, model_only)


def from_resolved(path: str, tree: Mapping[str, Any], *, model_only: bool = False) -> Config:
    """A configuration from what an earlier one had as `resolved`, such as a run's provenance holds; `path` is its name.

    Raises:
        ConfigError
    """
    return _parsed(RawConfig(path, copy.deepcopy(dict(tree)), {}), model_only)


def _parsed(raw: RawConfig, model_only: bool) -> Config:
    path = raw.path
    check_keys(raw, (), raw.tree, _TOP_LEVEL)
    for key in ("model",) if model_only else _NEEDED_TO_TRAIN:
        if raw.tree.get(key) is None:
            raise ConfigError(f"{path}: the key '{key}' is missing{closest(key, set(raw.tree) - set(_TOP_LEVEL))}")
    if model_only:
        data = component(raw, ("train_dataset",)) if raw.tree.get("train_dataset") else None
        return Config(path, component(raw, ("model",)), train_dataset=data, resolved=copy.deepcopy(raw.tree))
    return Config(
        path=path,
        model=component(raw, ("model",)),
        batch_size=positive(raw, ("batch_size",)),
        iters=positive(raw, ("iters",)),
        train_dataset=component(raw, ("train_dataset",)),
        val_dataset=component(raw, ("val_dataset",)) if raw.tree.get("val_dataset") else None,
        optimizer=component(raw, ("optimizer",)),
        lr_scheduler=component(raw, ("lr_scheduler",)),
        loss=_loss_terms(raw, "loss"),
        distill_loss=_loss_terms(raw, "distill_loss") if raw.tree.get("distill_loss") else (),
        distill=read_distillation(raw),
        test_config=_test_config(raw),
        resolved=copy.deepcopy(raw.tree),
    )


def _loss_terms(raw: RawConfig, name: str) -> tuple[LossTerm, ...]:
    """PaddleSeg's `types` and `coef`: one type for several coefficients stands for all, and so does one coefficient."""
    section = mapping(raw, (name,), ("types", "coef"), needed=("types", "coef"))
    for key in ("types", "coef"):
        if not isinstance(section[key], list) or not section[key]:
            raise ConfigError(f"{raw.where((name, key))}: a list is expected, but got {section[key]!r}")
    types = [component(raw, (name, "types", index)) for index in range(len(section["types"]))]
    coefs = [number(raw, (name, "coef", index)) for index in range(len(section["coef"]))]
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


def _test_config(raw: RawConfig) -> TestConfig:
    if not raw.tree.get("test_config"):
        return TestConfig()
    names = [f.name for f in fields(TestConfig)]
    given = mapping(raw, ("test_config",), [*names, "auc_roc"])
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
    found = TestConfig(**section)
    if found.leaves_gaps:
        sizes = f"a stride of {list(found.stride or ())} leaves gaps between windows of {list(found.crop_size or ())}"
        raise ConfigError(f"{raw.where(('test_config',))}: {sizes}")
    return found
