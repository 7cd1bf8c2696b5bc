"""YAML files in PaddleSeg's way (`_base_`, `_inherited_`, --opts), remembering where each key was written."""

import ast
import os
import re
from typing import Any

import yaml

from paddleseg_ext.errors import ConfigError, closest

KeyPath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """The safe loader, which also reads `1e-3` as a number, as every user means it."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """PyYAML's; what a value raises (the date 2020-13-45, an `!!int x`) gets its line."""
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as error:
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class RawConfig:
    """The merged dictionary of one YAML file and its bases, with the origin (`file:line` or a flag) of every key."""

    def __init__(self, path: str, tree: dict[str, Any], origins: dict[KeyPath, str]) -> None:
        self.path = path
        self.tree = tree
        self.origins = origins

    def where(self, key: KeyPath = ()) -> str:
        """`student.yml:12: model.backbone`, the origin of the key or of the nearest parent that has one."""
        for end in range(len(key), 0, -1):
            if key[:end] in self.origins:
                return f"{self.origins[key[:end]]}: {dotted(key)}"
        return f"{self.path}: {dotted(key)}" if key else self.path

    def set(self, dotted_key: str, value: Any, flag: str) -> None:
        """Overwrite one value, as `--opts key=value` does. Every part of the key but the last must exist."""
        parts = dotted_key.split(".")
        node: Any = self.tree
        for depth, part in enumerate(parts[:-1]):
            node = _child(node, part, f"{flag}: no key '{'.'.join(parts[: depth + 1])}' in {self.path}")
        last: str | int = parts[-1]
        if isinstance(node, list):
            _child(node, parts[-1], f"{flag}: no element '{dotted_key}' in {self.path}")
            last = int(last)
        elif not isinstance(node, dict):
            raise ConfigError(f"{flag}: '{'.'.join(parts[:-1])}' in {self.path} is a value and has no key '{last}'")
        node[last] = value
        key = tuple(int(p) if p.isdigit() else p for p in parts)
        self.origins = {k: origin for k, origin in self.origins.items() if k[: len(key)] != key} | {key: flag}


def dotted(key: KeyPath) -> str:
    """('a', 0, 'b') as `a[0].b`."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def read(path: str, opts: list[str] | None = None) -> RawConfig:
    """Read a YAML file with its bases and apply `--opts`.

    Raises:
        ConfigError: a file is missing, is no YAML (with the line), is no mapping, or names itself as its base.
    """
    tree, origins = _read_with_bases(path, ())
    raw = RawConfig(path, tree, origins)
    for item in opts or []:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"--opts takes key=value, such as batch_size=2, but got '{item}'")
        raw.set(key, _literal(text), "--opts")
    return raw


def _read_with_bases(path: str, children: tuple[str, ...]) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    real = os.path.realpath(path)
    if real in children:
        raise ConfigError(f"{path}: _base_ leads back to this file")
    tree, origins = _read_one(path)
    bases = tree.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{origins[('_base_',)]}: _base_: a path or a list of paths is expected, but got {bases!r}")
    for base in bases:
        base_tree, base_origins = _read_with_bases(
            os.path.normpath(os.path.join(os.path.dirname(path), base)), (*children, real)
        )
        tree = _merge(tree, base_tree)
        origins = {**base_origins, **origins}
    return _without_marks(tree), origins


def _read_one(path: str) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    if not path.endswith((".yml", ".yaml")):
        raise ConfigError(f"{path}: a configuration is a .yml or .yaml file")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        folder = os.path.dirname(path) or "."
        beside = [os.path.join(folder, f) for f in os.listdir(folder)] if os.path.isdir(folder) else []
        raise ConfigError(f"{path}: no such file{closest(path, [b for b in beside if b.endswith('.yml')])}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    origins: dict[KeyPath, str] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        tree = loader.construct_document(node) if node is not None else {}
        _collect_origins(node, (), path, origins)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem or error}") from None
    except yaml.reader.ReaderError as error:
        number = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{path}:{number}: not valid YAML: {error.reason} (#x{error.character:04x})") from None
    except RecursionError:
        raise ConfigError(
            f"{path}: not valid YAML: nested too deeply, or an alias stands within its own anchor"
        ) from None
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: a configuration is a mapping of keys to values, but this is a {type(tree).__name__}"
        )
    return tree, origins


def _collect_origins(node: yaml.Node | None, key: KeyPath, path: str, origins: dict[KeyPath, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            child = (*key, key_node.value)
            origins[child] = f"{path}:{key_node.start_mark.line + 1}"
            _collect_origins(value_node, child, path, origins)
    elif isinstance(node, yaml.SequenceNode):
        for index, value_node in enumerate(node.value):
            origins[(*key, index)] = f"{path}:{value_node.start_mark.line + 1}"
            _collect_origins(value_node, (*key, index), path, origins)


def _merge(tree: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """`tree` over `base`, key by key; a mapping with `_inherited_: False` replaces the base's whole."""
    tree = dict(tree)
    if not tree.pop("_inherited_", True):
        return tree
    merged = dict(base)
    for key, value in tree.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(value, base[key]) if both else value
    return merged


def _without_marks(value: Any) -> Any:
    """The same without `_inherited_`, which means nothing where no base has the mapping."""
    if isinstance(value, dict):
        return {key: _without_marks(item) for key, item in value.items() if key != "_inherited_"}
    return [_without_marks(item) for item in value] if isinstance(value, list) else value


def _child(node: Any, part: str, message: str) -> Any:
    if isinstance(node, dict) and part in node:
        return node[part]
    if isinstance(node, list) and part.isdigit() and int(part) < len(node):
        return node[int(part)]
    raise ConfigError(message + (closest(part, map(str, node)) if isinstance(node, dict) else ""))


def _literal(text: str) -> Any:
    """A Python literal, a word YAML knows (`null`, `true`), or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        value = yaml.load(text, Loader=_Loader) if text.lower() in ("null", "true", "false") else text
        return value
