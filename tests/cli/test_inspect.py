"""The command that shows what is inside a model, and which layers to distil."""

import re
import subprocess
import sys

import pytest
import yaml

from paddleseg_ext.models.catalogue import model_config
from tests.cli.conftest import DISTILL, ROOT

INSPECT = [sys.executable, "-m", "paddleseg_ext.cli.inspect"]


def run(folder, *args, code=0):
    done = subprocess.run(
        [*INSPECT, *args], cwd=folder, env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder)}, text=True,
        timeout=120, capture_output=True,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr.splitlines()[-1]


@pytest.fixture
def files(tmp_path):
    def write(name, model):
        (tmp_path / name).write_text(yaml.safe_dump({"model": model}))
        return name

    return write


def test_it_lists_every_layer_with_its_output_and_share(files, tmp_path):
    name = files("m.yml", model_config("DeepLabV3P", 5))
    text = run(tmp_path, "--config", name, "--input_size", "64", "96", "--depth", "2")
    assert "model: DeepLabV3P of m.yml, " in text and "input 64x96" in text
    line = next(line for line in text.splitlines() if line.startswith("backbone.bb_3_1 "))
    assert re.search(r"BasicBlock +1x512x8x12 +8 +4,?\d+,\d+ +\d+\.\d", line)


def test_the_block_to_paste_trains(world):
    student, teacher = model_config("FastSCNN", 3), model_config("LRASPP", 3)
    world.student["model"], world.teacher["model"] = student, teacher
    world.student["loss"]["coef"] = [1, 0.4]
    world.student["batch_size"], world.student["iters"] = 2, 2
    resize = {"type": "Resize", "target_size": [64, 64]}
    for part in ("train", "val"):
        world.student[f"{part}_dataset"]["transforms"].insert(0, resize)
    world.write()
    text = run(world.folder, "--student_config", "student.yml", "--teacher_config", "teacher.yml")
    block = text[text.index("distill:") :]
    (pair,) = yaml.safe_load(block)["distill"]["features"]
    assert pair["student"].startswith("global_feature_extractor") and pair["teacher"].startswith("backbone.")
    (world.folder / "student.yml").write_text((world.folder / "student.yml").read_text() + block)
    shown = world.run(DISTILL, save_interval=2)
    assert f"feature {pair['student']} [" in shown and f"<- teacher feature {pair['teacher']} [" in shown


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "error: give --config, or --student_config and --teacher_config"),
        (("--student_config", "m.yml"), "error: give --config, or --student_config and --teacher_config"),
        (("--config", "n.yml"), "error: n.yml: no such file; closest: './m.yml'"),
        (
            ("--config", "m.yml", "--input_size", "0", "3"),
            "error: --input_size is height and width in pixels, but got [0, 3]",
        ),
    ],
)
def test_what_is_wrong_is_named(files, tmp_path, args, message):
    files("m.yml", model_config("FastSCNN", 3))
    assert run(tmp_path, *args, code=2) == message
