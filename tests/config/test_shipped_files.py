"""The YAML files that ship: PaddleSeg reads them too, and to the same."""

import re
from pathlib import Path

import pytest

from paddleseg_ext import config as configuration
from paddleseg_ext.data.build import agreed_facts
from paddleseg_ext.models import build_model

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(p for p in (ROOT / "configs").rglob("*.yml") if p.parent.name != "_base_")
names = pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)


def test_there_are_files():
    assert len(FILES) >= 8


@names
def test_paddlesegs_own_reader_agrees(path):
    from paddleseg.cvlibs import Config

    theirs, ours = Config(str(path)), configuration.load(str(path))
    assert (theirs.batch_size, theirs.iters) == (ours.batch_size, ours.iters)
    assert theirs.dic["loss"]["coef"] == [term.coef for term in ours.loss]
    assert theirs.model_cfg["type"] == ours.model.type
    assert theirs.lr_scheduler_cfg == {"type": ours.lr_scheduler.type, **ours.lr_scheduler.params}
    assert theirs.optimizer_cfg == {"type": ours.optimizer.type, **ours.optimizer.params}


@names
def test_the_model_is_built_for_the_classes_of_its_data(path):
    config = configuration.load(str(path), opts=["model.pretrained=null"])
    backbone = config.model.params.get("backbone")
    model = config.model
    if backbone is not None:  # ImageNet weights are a download
        model = model.with_params(backbone=backbone.with_params(pretrained=None))
    facts = agreed_facts(config)
    built, _ = build_model(model, facts.num_classes, facts.img_channels)
    assert sum(p.size for p in built.parameters()) > 1000


@names
def test_the_head_of_the_file_gives_its_command_and_what_to_expect(path):
    head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    commands = re.findall(r"python (?:train\.py|slim/distill/distill_train\.py)", head)
    assert commands and "mIoU" in head
    named = re.findall(r"configs/[\w/]+\.yml", head)
    assert str(path.relative_to(ROOT)) in named
    assert all((ROOT / name).is_file() for name in named)


def test_the_tutorials_student_is_the_tutorials():
    config = configuration.load(
        str(ROOT / "configs/quick_start/deeplabv3p_resnet18_os8_optic_disc_512x512_1k_student.yml")
    )
    assert (config.batch_size, config.iters) == (4, 1000)
    assert config.optimizer.params == {"momentum": 0.9, "weight_decay": 4e-5}
    assert config.lr_scheduler.params == {"learning_rate": 0.01, "end_lr": 0, "power": 0.9}
    assert [(t.loss.type, t.coef) for t in config.distill_loss] == [("KLLoss", 3)]
    assert config.model.params["backbone"].type == "ResNet18_vd"
