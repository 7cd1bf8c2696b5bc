"""Two processes under paddle.distributed.launch train and evaluate as one does."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from tests.cli.conftest import DISTILL, LAUNCH, TRAIN

PARALLEL = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", "log"]


def in_two(*_):
    return [*PARALLEL, LAUNCH[1]]


@pytest.mark.parametrize(("launcher", "parts"), [(TRAIN, 1), (DISTILL, 1), (DISTILL, 2)])
def test_losses_weights_and_evaluation_agree_with_one_process_at_the_same_global_batch(world, launcher, parts):
    # Without dropout, whose draws differ by rank, and without batch norm, whose statistics are each rank's own on a CPU.
    config = {("config" if launcher == TRAIN else "student_config"): world.changed(model__dropout=0.0)}
    flags = {"iters": 8, "do_eval": True, **config}
    world.run(launcher, save_dir="one", batch_size=4, **flags)
    world.run(launcher, save_dir="two", batch_size=2 // parts, accumulate=parts, start=in_two(), **flags)
    one, two = (world.weights(f"{d}/iter_8/model.pdparams") for d in ("one", "two"))
    assert all(np.allclose(one[k], two[k], rtol=1e-4, atol=1e-6) for k in one)
    for a, b in zip(world.records("train", "one"), world.records("train", "two"), strict=True):
        for name in ("loss", "CrossEntropyLoss"):
            assert a[name] == pytest.approx(b[name], rel=1e-4)
        assert a["lr"] == b["lr"]
    for a, b in zip(world.records("eval", "one"), world.records("eval", "two"), strict=True):
        assert a["mIoU"] == pytest.approx(b["mIoU"], abs=1e-3) and a["images"] == b["images"] == 3


def test_evaluation_shared_by_two_processes_is_exactly_that_of_one(world):
    world.student["model"]["norm"] = True
    world.write()
    world.run(TRAIN, save_dir="two", do_eval=True, iters=4, start=in_two())
    # One process goes on from the weights that two have trained, without training: the teacher's evaluation.
    world.teacher["model"] = {**world.student["model"], "pretrained": "two/iter_4"}
    world.write()
    text = world.run(DISTILL, save_dir="one", do_eval=True, iters=1)
    shown = text.split("[TEACHER] ")[1].split("(")[0]
    two = world.records("eval", "two")[0]
    assert f"mIoU {two['mIoU']:.4f}, accuracy {two['accuracy']:.4f}, kappa {two['kappa']:.4f}" in shown


def test_two_processes_resume_where_they_were(world):
    world.student["model"]["norm"] = True
    world.write()
    world.run(DISTILL, save_dir="whole", iters=8, start=in_two())
    world.run(DISTILL, save_dir="parts", iters=8, resume_model="whole/iter_4", start=in_two())
    whole, parts = (world.weights(f"{d}/iter_8/model.pdparams") for d in ("whole", "parts"))
    # Each rank's running statistics begin again from the first one's, which is the one that is saved.
    assert all(np.allclose(whole[k], parts[k], rtol=1e-5, atol=1e-7) for k in whole)


def test_a_norm_over_all_processes_finds_all_of_them_whenever_the_student_runs(world):
    world.student["model"]["norm"] = "shared"
    world.write()
    text = world.run(DISTILL, iters=3, do_eval=True, start=in_two())
    assert "[BALANCE]" in text and world.records("train")[-1]["iter"] == 3


def workers_of(process):
    return [c for c in psutil.Process(process.pid).children(recursive=True) if "launch.py" in " ".join(c.cmdline())]


def start_two(world, **flags):
    command = [*in_two(), *world.command(TRAIN, iters=100000, **flags)]
    process = subprocess.Popen(command, cwd=world.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if "iter: 3/" in line:
            return process, workers_of(process)
    raise AssertionError("training did not start")


def test_one_rank_dying_ends_all_with_a_message(world):
    process, workers = start_two(world)
    assert len(workers) == 2
    os.kill(workers[1].pid, signal.SIGKILL)
    rest = process.stdout.read()
    assert process.wait(timeout=60) != 0
    assert "exit code -9" in rest.lower() or "failed" in rest.lower()
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def test_a_loss_that_is_not_finite_on_one_rank_ends_both_with_its_files(world):
    # Label 1 everywhere in one sample's image file that is all NaN cannot be written as PNG: a huge learning rate does it.
    text = world.run(TRAIN, iters=200, learning_rate=1e20, start=in_two(), code=2)
    assert "error: iteration" in text and "a loss is not finite" in text and ".png" in text
    assert "Traceback" not in text


def test_sigterm_to_the_launcher_ends_every_rank(world):
    process, workers = start_two(world, save_interval=100000)
    process.send_signal(signal.SIGTERM)
    process.stdout.read()
    process.wait(timeout=60)
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    deadline = time.time() + 1
    while not list((world.folder / "out").glob("iter_*")) and time.time() < deadline:
        time.sleep(0.05)
    assert list((world.folder / "out").glob("iter_*")), "rank 0 saves before it ends"
