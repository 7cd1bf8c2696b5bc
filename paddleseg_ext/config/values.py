"""Single values of a raw configuration, checked; every error names file, line and key."""

import copy
import math
from collections.abc import Iterable
from typing import Any

from paddleseg_ext.config.schema import Component
from paddleseg_ext.config.yaml_file import KeyPath, RawConfig
from paddleseg_ext.errors import ConfigError, closest


def check_keys(raw: RawConfig, key: KeyPath, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigError for a key that is not known; keys that begin with an underscore are notes."""
    known = list(known)
    for name in given:
        if name not in known and not str(name).startswith("_"):
            raise ConfigError(f"{raw.where((*key, name))}: unknown key '{name}'{closest(str(name), known)}")


def at(raw: RawConfig, key: KeyPath) -> Any:
    """The value at a key."""
    value: Any = raw.tree
    for part in key:
        value = value[part]
    return value


def component(raw: RawConfig, key: KeyPath) -> Component:
    """A mapping with a `type`, or the type alone."""
    value = at(raw, key)
    if isinstance(value, str):
        value = {"type": value}
    if not isinstance(value, dict):
        raise ConfigError(f"{raw.where(key)}: a mapping with a 'type' is expected, but got {value!r}")
    if not isinstance(value.get("type"), str):
        if "type" in value:
            raise ConfigError(f"{raw.where((*key, 'type'))}: a name is expected, but got {value['type']!r}")
        raise ConfigError(f"{raw.where(key)}: the key 'type' is missing{closest('type', map(str, value))}")
    params = {str(name): argument(raw, (*key, name)) for name in value if name != "type"}
    return Component(value["type"], params, raw.where(key))


def argument(raw: RawConfig, key: KeyPath) -> Any:
    """An argument: a component where it has a `type`, a list element by element, anything else as it is."""
    value = at(raw, key)
    if isinstance(value, dict) and "type" in value:
        return component(raw, key)
    if isinstance(value, list):
        return [argument(raw, (*key, index)) for index in range(len(value))]
    return copy.deepcopy(value)


def number(raw: RawConfig, key: KeyPath) -> float:
    """A finite number."""
    value = at(raw, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{raw.where(key)}: a number is expected, but got {value!r}")
    return value


def positive(raw: RawConfig, key: KeyPath) -> int:
    """A whole number of at least 1."""
    value = number(raw, key)
    if int(value) != value or value < 1:
        raise ConfigError(f"{raw.where(key)}: a whole number of at least 1 is expected, but got {value!r}")
    return int(value)


def mapping(raw: RawConfig, key: KeyPath, known: Iterable[str], needed: Iterable[str] = ()) -> dict[str, Any]:
    """A mapping with known keys, the needed ones among them."""
    value = at(raw, key)
    if not isinstance(value, dict):
        raise ConfigError(f"{raw.where(key)}: a mapping is expected, but got {value!r}")
    check_keys(raw, key, value, known)
    for name in needed:
        if name not in value:
            raise ConfigError(f"{raw.where(key)}: the key '{name}' is missing")
    return value
