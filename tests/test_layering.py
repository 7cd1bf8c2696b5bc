"""Which part may import which. Data flows one way: config, models, criterion, trainer, outputs."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "paddleseg_ext"
# Besides itself, `errors` and `types`. What is not here may not be imported; `cli` joins everything.
MAY_IMPORT = {
    "errors": set(),
    "types": set(),
    "config": set(),
    "compat": set(),
    "registry": {"config", "compat"},
    "losses": {"config", "registry"},
    "models": {"config", "registry"},
    "data": {"config", "registry"},
    "distill": {"config", "registry", "losses", "models.weights"},
    "inference": {
        *("config", "models", "distill.recorder", "distill.adaptor", "distill.user_file"),
        *("service.spec", "service.formats", "service.wire"),
    },
    "static": {"compat.old_ir_ops", "losses.functional", "models.safe_load"},
    "service": set(),
    "teachers": {
        *("data.file_marks", "data.geometry", "distill.recorder", "distill.own_resolution"),
        *("losses.functional", "inference", "service"),
    },
    "engine": {"config", "registry", "losses.task", "models.safe_load", "models.weights"},
    "report": {
        "config",
        "distill.adaptor",
        "distill.connector",
        "distill.recorder",
        "engine.evaluate",
        "engine.pictures",
    },
    "cli": {
        "config",
        "registry",
        "compat",
        "losses",
        "models",
        "data",
        "distill",
        "inference",
        "teachers",
        "engine",
        "report",
        "service",
    },
}
ONLY_IN_COMMANDS = {"argparse"}


def modules():
    return sorted((ROOT / PACKAGE).rglob("*.py"))


def imports(code):
    """Every module that the code imports, anywhere in it, in full."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def offences(part, code):
    """What a module of `part` (a folder or file of the package) does that it may not."""
    found = []
    for name in imports(code):
        first, *rest = name.split(".")
        if first in ("slim", "tests", "train") or first in ONLY_IN_COMMANDS and part != "cli":
            found.append(name)
        elif first == PACKAGE:
            target = ".".join(rest)
            allowed = {part, "errors", "types", "__version__", *MAY_IMPORT.get(part, ())}
            if not any(target == a or target.startswith(f"{a}.") for a in allowed):
                found.append(name)
    prints = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print"]
    return found + ["print"] * (bool(prints) and part != "cli")


def part_of(path):
    return path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT / PACKAGE)))
def test_a_module_imports_only_what_lies_below_it(path):
    assert offences(part_of(path), path.read_text()) == []


def test_every_part_has_its_rule():
    assert {part_of(path) for path in modules()} - {"__init__"} == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("part", "code", "offence"),
    [
        (
            "engine",
            "from paddleseg_ext.distill.distiller import Distiller",
            "paddleseg_ext.distill.distiller.Distiller",
        ),
        ("distill", "def f():\n    from paddleseg_ext.engine import env", "paddleseg_ext.engine.env"),
        ("engine", "from paddleseg_ext.losses.logit import KLLoss", "paddleseg_ext.losses.logit.KLLoss"),
        ("losses", "import paddleseg_ext.cli.args", "paddleseg_ext.cli.args"),
        ("config", "from paddleseg_ext import registry", "paddleseg_ext.registry"),
        ("data", "import argparse", "argparse"),
        ("data", "print(1)", "print"),
        ("models", "from tests.cli import launch", "tests.cli.launch"),
    ],
)
def test_the_rule_notices_an_offence(part, code, offence):
    assert offences(part, code) == [offence]


def test_paddleslim_and_visualdl_are_asked_for_only_where_they_are_needed():
    """Users of another layer do without them: they are imported inside functions."""
    for path in modules():
        top = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)]
        names = [a.name for n in top for a in n.names] + [n.module for n in top if isinstance(n, ast.ImportFrom)]
        assert not [n for n in names if n and n.split(".")[0] in ("paddleslim", "visualdl")], path
