"""Writes docs/configuration.md: every key of a configuration, with its default and meaning.

python -m paddleseg_ext.cli.reference --save_path docs/configuration.md
"""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from paddleseg_ext import registry
from paddleseg_ext.cli import args as flags
from paddleseg_ext.cli.reference_text import DERIVED, SECTIONS, Section
from paddleseg_ext.cli.screen import user_errors
from paddleseg_ext.config import Component
from paddleseg_ext.distill.connector import PROJECTIONS
from paddleseg_ext.engine.checkpoint import write_atomically
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.losses import Loss

_HEAD = """# Every key of a configuration

Made by `python -m paddleseg_ext.cli.reference` from what reads the files; do not edit. An unknown key is an error that names its
file, line and the closest known ones. Any value can be overwritten by `--opts key=value`, keys dotted and list elements by
number, such as `--opts distill.outputs.0.weight=2`. "needed" in the column of defaults: there is none.
"""
_GIVEN = ("num_classes", "ignore_index", "channels_in", "channels_out")  # by the program, not by the file


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = flags.parser("Write the reference of every key of a configuration.")
    parser.add_argument("--save_path", type=Path, default=Path("docs/configuration.md"), help="file to write")
    args = parser.parse_args(argv)
    with user_errors():
        if not args.save_path.parent.is_dir():
            raise ConfigError(f"--save_path {args.save_path}: no such folder {args.save_path.parent}")
        write_atomically(args.save_path, reference())


def reference() -> str:
    """The page as Markdown."""
    parts = [_HEAD, *(_section(section) for section in SECTIONS)]
    losses = {name: made for name in registry.names("loss") if _is_ours(made := _loss(name))}
    parts.append(_components("Losses to distil with", "`loss` of a pair and `types` of `distill_loss`", losses))
    parts.append(_components("Connectors", "`connector` of a feature pair, besides `auto` and `none`", PROJECTIONS))
    return "\n".join(parts)


def _section(section: Section) -> str:
    lines = [f"## `{section.path}`" if section.path else "## Top level", "", section.text, ""]
    lines += ["| key | takes | default | meaning |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{name}` | {kind} | {_default(section, name)} | {meaning} |"
        for name, (kind, meaning) in section.keys.items()
    ]
    return "\n".join(lines) + "\n"


def _default(section: Section, name: str) -> str:
    if name in section.defaults:
        return section.defaults[name]
    assert section.holder is not None and dataclasses.is_dataclass(section.holder), (section.path, name)
    (found,) = (f.default for f in dataclasses.fields(section.holder) if f.name == name)
    return _said(found)


def _components(title: str, where: str, made: dict[str, Any]) -> str:
    lines = [f"## {title}", "", f"Types for {where}.", "", "| type | arguments and defaults |", "| --- | --- |"]
    for name in sorted(made):
        parameters = inspect.signature(made[name]).parameters.values()
        defaults = {p.name: DERIVED.get((name, p.name), _said(p.default)) for p in parameters if p.name not in _GIVEN}
        lines.append(f"| `{name}` | {', '.join(f'`{key}` {value}' for key, value in defaults.items()) or 'none'} |")
    return "\n".join(lines) + "\n"


def _loss(name: str) -> Callable[..., Any]:
    return registry.component_class(Component(name, {}, "the reference"), "loss")


def _is_ours(made: Any) -> bool:
    return isinstance(made, type) and issubclass(made, Loss) and made.__module__.startswith("paddleseg_ext.")


def _said(value: Any) -> str:
    """A default as YAML writes it."""
    if value is inspect.Parameter.empty:
        return "needed"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"`{value}`"
    return f"[{', '.join(map(_said, value))}]" if isinstance(value, list | tuple) else f"{value:g}"


if __name__ == "__main__":
    main()
