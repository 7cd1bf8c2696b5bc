"""--baseline: the student alone, trained alike, and the gain."""

import json
import re
import signal
import subprocess

import psutil
import pytest

from tests.cli.conftest import DISTILL, LAUNCH, TRAIN, same_bits


@pytest.fixture
def small(world):
    """A world with a model of PaddleSeg's: the baseline is a process of its own, which does not know the tests'."""
    world.student["model"] = {"type": "LPSNet", "num_classes": 3, "pretrained": None}
    world.student["model"] |= {"depths": [1] * 5, "channels": [4, 4, 8, 8, 8], "scale_ratios": [1.0, 0.5]}
    for part in ("train", "val"):
        world.student[f"{part}_dataset"]["transforms"].insert(0, {"type": "Resize", "target_size": [64, 64]})
    world.write()
    return world


def seed(world, folder):
    return json.loads((world.folder / folder / "state.json").read_text())["seed"]


def test_it_is_the_same_run_without_a_teacher_and_the_gain_is_shown(small):
    flags = {"do_eval": True, "save_interval": 2}
    text = small.run(DISTILL, "--opts", "iters=4", "--baseline", resume_model="auto", seed=None, **flags)
    alone, distilled = (max(r["mIoU"] for r in small.records("eval", d)) for d in ("out/baseline", "out"))
    assert (
        f"[GAIN] best mIoU: student alone {alone:.4f}, distilled {distilled:.4f}, gain {distilled - alone:+.4f}" in text
    )
    assert seed(small, "out/iter_4") == seed(small, "out/baseline/iter_4")
    small.run(TRAIN, iters=4, save_dir="again", seed=seed(small, "out/iter_4"), **flags)
    assert same_bits(small.weights("again/iter_4/model.pdparams"), small.weights("out/baseline/iter_4/model.pdparams"))


@pytest.mark.parametrize("whom", ["both", "baseline"])
def test_asked_to_end_while_the_student_trains_alone_it_saves_and_does_not_distil(small, whom):
    flags = {"do_eval": True, "iters": 100000, "save_interval": 100000, "seed": 0}
    command = [*LAUNCH, *small.command(DISTILL, "--baseline", **flags)]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=small.folder, **pipe)
    for line in process.stdout:
        if "iter: 3/" in line:
            break
    children = psutil.Process(process.pid).children(recursive=True)
    (process if whom == "both" else children[0]).send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait() == 0 and "stopped while the student trained alone; go on with --resume_model auto" in rest
    assert "student distilled" not in rest and not psutil.wait_procs(children, timeout=20)[1]
    (left,) = (small.folder / "out/baseline").glob("iter_*")
    iters = int(left.name.split("_")[1]) + 1
    flags |= {"iters": iters, "save_interval": 1000, "seed": None}
    text = small.run(DISTILL, "--baseline", resume_model="auto", **flags)
    assert re.search(rf"resumed from out/baseline/{left.name}", text) and "[GAIN]" in text
    assert seed(small, f"out/iter_{iters}") == seed(small, f"out/baseline/{left.name}") == 0


def test_one_that_cannot_be_compared_is_an_error(world):
    assert "error: --baseline compares by mIoU and needs --do_eval" in world.run(DISTILL, "--baseline", code=2)
    for folder, number in (("out", 1), ("out/baseline", 2)):
        world.run(TRAIN, iters=1, save_dir=folder, seed=number)
    text = world.run(DISTILL, "--baseline", do_eval=True, resume_model="auto", seed=None, code=2)
    assert "out/iter_1 was trained with seed 1 and out/baseline/iter_1 was trained with seed 2; they cannot" in text
