"""A run that is killed at any moment and resumed ends as one that was never interrupted."""

import os
import shutil
import signal
import subprocess

import psutil
import pytest

from tests.cli.conftest import DISTILL, LAUNCH, TRAIN, same_bits

ITERS = 24
FLAGS = {"do_eval": True, "iters": ITERS, "save_interval": 4}


def start(world, launcher, **flags):
    command = [*LAUNCH, *world.command(launcher, **flags)]
    return subprocess.Popen(command, cwd=world.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def read_until(process, wanted):
    """Lines up to the first that holds `wanted`."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if wanted in line:
            return lines
    raise AssertionError("".join(lines[-30:]))


def results(world, save_dir):
    files = [f"iter_{ITERS}/{name}" for name in ("model.pdopt", "model.pdparams", "extras.pdparams")]
    contents = [world.weights(f"{save_dir}/{file}") for file in (*files, "best_model/model.pdparams")]
    contents[0].pop("LR_Scheduler")
    losses = {r["iter"]: r["loss"] for r in world.records("train", save_dir)}
    miou = {r["iter"]: r["mIoU"] for r in world.records("eval", save_dir)}
    return contents, losses, miou


@pytest.fixture
def uninterrupted(world):
    """A run with everything that is trained: the student, and a connector to a wider teacher."""
    world.student["distill"] = {"features": [{"student": "conv1", "loss": {"type": "HintLoss"}, "weight": 0.5}]}
    world.write()
    world.run(DISTILL, save_dir="whole", **FLAGS)
    return results(world, "whole")


def test_killed_twice_while_training_and_once_in_a_save_it_ends_bit_for_bit_the_same(world, uninterrupted):
    for moment in (f"iter: 6/{ITERS}", f"iter: 13/{ITERS}"):
        process = start(world, DISTILL, resume_model="auto", **FLAGS)
        read_until(process, moment)
        process.kill()
        process.wait()
    # Saving a checkpoint writes weights, connectors and optimizer, and best_model before them where it is better.
    world.run(DISTILL, code=-signal.SIGKILL, env={"DIE_IN_SAVE": "3"}, resume_model="auto", **FLAGS)
    text = world.run(DISTILL, resume_model="auto", **FLAGS)
    assert "resumed from out/iter_" in text
    contents, losses, miou = results(world, "out")
    assert all(same_bits(a, b) for a, b in zip(contents, uninterrupted[0], strict=True))
    assert losses == uninterrupted[1] and miou == uninterrupted[2]
    assert [p.name for p in (world.folder / "out").glob(".*")] == [".running"]  # nothing half-written


def test_sigterm_saves_says_how_to_resume_and_exits_with_0(world, uninterrupted):
    process = start(world, DISTILL, **FLAGS)
    read_until(process, f"iter: 5/{ITERS}")
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait() == 0 and "go on with --resume_model out/iter_" in rest
    folder = rest.split("--resume_model ")[1].split()[0]
    assert int(folder.split("_")[-1]) < ITERS
    world.run(DISTILL, resume_model=folder, **FLAGS)
    contents, losses, _ = results(world, "out")
    assert all(same_bits(a, b) for a, b in zip(contents, uninterrupted[0], strict=True))
    assert losses == uninterrupted[1]


def test_sigterm_to_every_process_of_a_run_with_workers_saves_too(world):
    command = [*LAUNCH, *world.command(TRAIN, iters=100000, save_interval=100000, num_workers=2)]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=world.folder, start_new_session=True, **pipe)
    read_until(process, "iter: 3/")
    readers = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait() == 0 and "go on with --resume_model out/iter_" in rest, rest
    assert readers and not psutil.wait_procs(readers, timeout=20)[1]


def test_workers_end_with_a_run_that_is_killed(world):
    process = start(world, TRAIN, iters=100000, save_interval=100000, num_workers=2)
    read_until(process, "iter: 3/")
    readers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert readers and not psutil.wait_procs(readers, timeout=30)[1]


def test_a_run_that_goes_on_from_an_earlier_checkpoint_leaves_the_later_ones_behind(world):
    world.run(TRAIN, iters=12)
    text = world.run(TRAIN, iters=5, resume_model="out/iter_4", keep_checkpoint_max=1)
    assert "iter_8, iter_12: of the run as it went on before; kept" in text
    assert "resumed from out/iter_5" in world.run(TRAIN, iters=6, resume_model="auto")
    assert {p.name for p in (world.folder / "out").glob("iter_*")} == {"iter_5", "iter_6", "iter_8", "iter_12"}
    assert "resumed from out/iter_12" in world.run(TRAIN, iters=13, resume_model="out/iter_12")


@pytest.mark.parametrize("resume_model", [None, "out/iter_4"])
def test_a_command_with_a_mistake_costs_the_run_before_nothing(world, resume_model):
    world.run(TRAIN, iters=8)
    pair = {"student": "conv7", "loss": {"type": "HintLoss"}}
    wrong = {"student_config": world.changed(distill={"features": [pair]}), "resume_model": resume_model}
    assert "ToyNet has no layer 'conv7'" in world.run(DISTILL, iters=8, code=2, **wrong)
    assert "resumed from out/iter_8" in world.run(TRAIN, iters=9, resume_model="auto")


def test_the_best_model_comes_along_to_another_folder_or_is_forgotten(world):
    world.run(TRAIN, iters=8, do_eval=True)
    world.run(TRAIN, iters=8, do_eval=True, resume_model="out/iter_8", save_dir="moved")
    best = "best_model/model.pdparams"
    assert same_bits(world.weights(f"moved/{best}"), world.weights(f"out/{best}"))
    assert world.records("eval", "moved") == world.records("eval") != []
    shutil.rmtree(world.folder / "out/best_model")
    text = world.run(TRAIN, iters=9, do_eval=True, resume_model="out/iter_8", save_dir="other")
    assert "the best model until now, mIoU" in text and "at iter 9, in best_model/" in text
    assert same_bits(world.weights(f"other/{best}"), world.weights("other/iter_9/model.pdparams"))


def test_resuming_a_finished_run_changes_nothing(world):
    world.run(TRAIN, iters=4)
    before = (world.folder / "out/iter_4/model.pdparams").stat().st_mtime_ns
    world.run(TRAIN, iters=4, resume_model="out/iter_4")
    assert (world.folder / "out/iter_4/model.pdparams").stat().st_mtime_ns == before


def test_without_a_seed_the_run_draws_one_and_resumes_with_it(world):
    world.run(TRAIN, iters=4, seed=None)
    text = world.run(TRAIN, iters=8, seed=None, resume_model="auto")
    seed = text.split("seed ")[1].split()[0]
    world.run(TRAIN, iters=8, seed=seed, save_dir="again", learning_rate=None)
    assert same_bits(world.weights("out/iter_8/model.pdparams"), world.weights("again/iter_8/model.pdparams")) is False
    assert world.records("train")[0]["loss"] == world.records("train", "again")[0]["loss"]


def test_a_new_run_in_an_old_folder_never_resumes_from_the_old_ones_checkpoints(world):
    world.run(TRAIN, iters=8)
    process = start(world, TRAIN, iters=800)
    read_until(process, "iter: 2/800")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    text = world.run(TRAIN, iters=1, resume_model="auto")
    assert "nothing to resume in out, starting anew" in text


def test_a_broken_checkpoint_is_refused(world):
    world.run(TRAIN, iters=4)
    (world.folder / "out/iter_4/model.pdopt").unlink()
    text = world.run(TRAIN, iters=8, resume_model="out/iter_4", code=2)
    assert "error: --resume_model out/iter_4: not a whole checkpoint, model.pdopt is missing" in text
    text = world.run(TRAIN, iters=8, resume_model="nowhere", code=2)
    assert "error: --resume_model nowhere: no such folder" in text


def test_another_seed_than_the_checkpoints_is_refused(world):
    world.run(TRAIN, iters=4, seed=1)
    text = world.run(TRAIN, iters=8, seed=2, resume_model="auto", code=2)
    assert "error: --seed 2: out/iter_4 was trained with seed 1" in text


def test_an_accumulating_run_goes_on_to_the_same_bits(world):
    flags = {"accumulate": 2, "batch_size": 2, "save_interval": 2, "log_iters": 1}
    text = world.run(TRAIN, save_dir="whole", iters=4, **flags)
    assert "8 training images, 2 iterations an epoch" in text  # an iteration is an update
    world.run(TRAIN, save_dir="cut", iters=4, **flags)
    (world.folder / "cut/iter_4").rename(world.folder / "gone")  # as if it had been killed before
    assert "resumed from cut/iter_2" in world.run(
        TRAIN, save_dir="cut", iters=4, resume_model="auto", seed=None, **flags
    )
    for name in ("model.pdparams", "model.pdopt"):
        whole, cut = (world.weights(f"{folder}/iter_4/{name}") for folder in ("whole", "cut"))
        whole.pop("LR_Scheduler", None), cut.pop("LR_Scheduler", None)
        assert same_bits(whole, cut)
    assert "--recompute: ToyNet has no blocks" in world.run(TRAIN, iters=1, recompute=True, code=2)
