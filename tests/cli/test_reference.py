"""docs/configuration.md is what the command writes now, and knows every key that the readers accept."""

import re
from pathlib import Path

import pytest
import yaml

from paddleseg_ext import config as configuration
from paddleseg_ext.cli.reference import reference
from paddleseg_ext.cli.reference_text import SECTIONS
from paddleseg_ext.config import parse, values
from paddleseg_ext.config.yaml_file import dotted
from paddleseg_ext.distill import user_file
from paddleseg_ext.losses import SegChannelwiseLoss
from tests.cli.conftest import World

PAGE = Path(__file__).resolve().parents[2] / "docs/configuration.md"
SCHEDULE = {"start": 1, "warmup": 2, "decay": "linear"}
EVERYTHING = {
    "outputs": [{"loss": "KLLoss", "schedule": SCHEDULE}],
    "features": [{"student": "conv1", "teacher": {"big": "conv1"}, "loss": "HintLoss", "schedule": SCHEDULE}],
    "teacher": {"type": "model", "engine": "auto"},
    "teachers": [{"config": "teacher.yml", "name": "big"}],
}


@pytest.fixture
def accepted(tmp_path, monkeypatch):
    """The keys that the parser knows, by the path of their mapping, seen while it reads a file with every mapping in it."""
    known = {}
    check = values.check_keys

    def noted(raw, key, given, names):
        path = re.sub(r"\[\d+\]", "[]", dotted(key))
        known[path] = set(names := list(names))
        check(raw, key, given, names)

    for module in (values, parse):
        monkeypatch.setattr(module, "check_keys", noted)
    world = World(tmp_path)
    tree = {**world.student, "distill": EVERYTHING, "test_config": {"aug_eval": True}}
    (tmp_path / "all.yml").write_text(yaml.safe_dump(tree))
    configuration.load(str(tmp_path / "all.yml"))
    known["prepare_distill_config()[]"] = set(user_file._KEYS)
    schedules = known.pop("distill.features[].schedule")
    assert schedules == known["distill.outputs[].schedule"]
    return known


def test_every_key_that_is_accepted_is_described_and_no_other(accepted):
    assert {section.path: set(section.keys) for section in SECTIONS} == accepted


def test_the_page_is_what_the_command_writes():
    assert PAGE.read_text(encoding="utf-8") == reference(), "python -m paddleseg_ext.cli.reference"


def test_the_page_gives_the_defaults_that_the_classes_have():
    page = PAGE.read_text(encoding="utf-8")
    assert "| `max_error` | 0 to 1 | 0.05 |" in page and "| `scales` | list of numbers | [1] |" in page
    assert "| `HintLoss` | `norm` `mse` |" in page and "| `KLLoss` | `temperature` 1 |" in page
    assert "| `mlp` | `hidden` the teacher's channels |" in page
    assert "| `SegChannelwiseLoss` | `temperature` 4, with `compat` 1, `compat` none |" in page
    assert [SegChannelwiseLoss(compat=compat).temperature for compat in (None, "paddleslim")] == [4, 1]
