"""Reads the Python file that users edit: which tensors, and which losses between them."""

import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from paddleseg_ext.config import Component, FeaturePair
from paddleseg_ext.distill.adaptor import AdaptorBase
from paddleseg_ext.errors import ConfigError, closest
from paddleseg_ext.types import Teacher

_KEYS = ("feature_type", "s_feature_idx", "t_feature_idx", "loss_function", "weight", "connector")


@dataclass(frozen=True)
class UserDistillation:
    """What a distill_config.py says. `prepare_teacher`: what it makes of a teacher, None where it leaves it as it is."""

    student_adaptor: type[AdaptorBase]
    teacher_adaptor: type[AdaptorBase]
    pairs: tuple[FeaturePair, ...]
    prepare_teacher: Callable[[Teacher], Teacher] | None = None


def load_user_file(path: str) -> UserDistillation:
    """Run a distill_config.py (the user's own code) and ask its two functions.

    Raises:
        ConfigError: the file is missing, does not run, lacks a function or returns something else.
    """
    module = _run(path)
    adaptors = _ask(module, path, "prepare_distill_adaptor")
    if not (isinstance(adaptors, tuple) and len(adaptors) == 2 and all(isinstance(a, type) for a in adaptors)):
        raise ConfigError(f"{path}: prepare_distill_adaptor returns the classes StudentAdaptor, TeacherAdaptor")
    for adaptor in adaptors:
        if not issubclass(adaptor, AdaptorBase):
            raise ConfigError(f"{path}: {adaptor.__name__} must subclass paddleseg_ext.distill.AdaptorBase")
    entries = _ask(module, path, "prepare_distill_config") or []
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: prepare_distill_config returns a list, but got a {type(entries).__name__}")
    pairs = tuple(_pair(entry, f"{path}: prepare_distill_config[{i}]") for i, entry in enumerate(entries))
    prepare_teacher = getattr(module, "prepare_teacher", None)
    if prepare_teacher is not None and not callable(prepare_teacher):
        raise ConfigError(f"{path}: prepare_teacher is a function of a teacher, but got {prepare_teacher!r}")
    return UserDistillation(adaptors[0], adaptors[1], pairs, prepare_teacher)


def _run(path: str) -> ModuleType:
    if not os.path.isfile(path):
        raise ConfigError(f"{path}: no such file (--distill_config)")
    _offer_to_paddleslim_imports(path)
    spec = importlib.util.spec_from_file_location("distill_config", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: a Python file is expected (--distill_config)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ConfigError(f"{path}:{error.lineno}: {error.msg}") from None
    except Exception as error:
        raise ConfigError(f"{path}: does not run: {type(error).__name__}: {error}") from error
    return module


def _offer_to_paddleslim_imports(path: str) -> None:
    """Files written for the tutorial import AdaptorBase from PaddleSlim, whose releases never had it. Give it to them."""
    with open(path, encoding="utf-8") as file:
        if "paddleslim" not in file.read():
            return
    import paddleslim.dygraph.dist

    if not hasattr(paddleslim.dygraph.dist, "AdaptorBase"):
        paddleslim.dygraph.dist.AdaptorBase = AdaptorBase


def _ask(module: ModuleType, path: str, name: str) -> Any:
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{path}: the function {name} is missing{closest(name, vars(module))}")
    return function()


def _pair(entry: Any, where: str) -> FeaturePair:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: a dict with {', '.join(_KEYS)} is expected, but got {entry!r}")
    for key in ("s_feature_idx", "t_feature_idx", "loss_function"):
        if key not in entry:
            raise ConfigError(f"{where}: the key '{key}' is missing{closest(key, map(str, entry))}")
    kind, name = entry.get("feature_type", "hidden"), entry["loss_function"]
    if not isinstance(name, str):
        raise ConfigError(f"{where}: loss_function is the name of a loss, but got {name!r}")
    weight = entry.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise ConfigError(f"{where}: weight is a number, but got {weight!r}")
    # Every further key is an argument of the loss, such as its temperature.
    arguments = {str(key): value for key, value in entry.items() if key not in _KEYS}
    keys = (f"{kind}_{entry['s_feature_idx']}", f"{kind}_{entry['t_feature_idx']}")
    # Without a connector, shapes that differ are an error, as they are in the tutorial.
    connector = Component(str(entry.get("connector") or "none"), {}, where)
    return FeaturePair(*keys, Component(name, arguments, where), float(weight), connector, where)
