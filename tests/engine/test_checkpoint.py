"""Checkpoints: whole or absent, and restored bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddleseg_ext.engine.checkpoint import CheckpointStore, RunState, read_state, restore
from paddleseg_ext.engine.hooks.checkpoints import CheckpointHook, load_scaler
from paddleseg_ext.engine.trainer import Progress
from paddleseg_ext.errors import CheckpointError, WeightsError

ROOT = Path(__file__).resolve().parents[2]


def make(width=4, lr=0.1):
    with paddle.utils.unique_name.guard():
        model = paddle.nn.Sequential(paddle.nn.Conv2D(3, width, 3), paddle.nn.BatchNorm2D(width))
        schedule = paddle.optimizer.lr.PolynomialDecay(lr, decay_steps=10)
        return model, paddle.optimizer.Adam(schedule, parameters=model.parameters())


def train(model, optimizer, steps, first=0):
    # Paddle numbers an optimizer's tensors by process; each of these stands for a process of its own.
    with paddle.utils.unique_name.guard():
        _train(model, optimizer, steps, first)


def _train(model, optimizer, steps, first):
    for step in range(first, first + steps):
        paddle.seed(step)
        model(paddle.rand([2, 3, 8, 8])).square().mean().backward()
        optimizer.step()
        optimizer.clear_grad()
        optimizer._learning_rate.step()


def weights(model):
    return {k: v.numpy() for k, v in model.state_dict().items()}


@pytest.fixture
def store(tmp_path):
    store = CheckpointStore(str(tmp_path / "run"), keep=2)
    store.prepare()
    return store


def test_restored_training_goes_on_bit_for_bit(store):
    model, optimizer = make()
    train(model, optimizer, 3)
    folder = store.save(model, optimizer, RunState("id", 3, 0, 2))
    train(model, optimizer, 3, first=3)
    other, other_optimizer = make()
    restore(folder, other, other_optimizer)
    train(other, other_optimizer, 3, first=3)
    a, b = weights(model), weights(other)
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert optimizer.get_lr() == other_optimizer.get_lr()


def test_state_comes_back_as_it_was_saved(store):
    model, optimizer = make()
    state = RunState("id", 5, 11, 4, best_miou=0.1 + 0.2, best_iteration=3, scaler={"scale": 1024.0})
    assert read_state(store.save(model, optimizer, state)) == state


def test_the_loss_scale_of_fp16_goes_on_where_it_was(store, tmp_path):
    """On a CPU Paddle makes a scaler that does nothing; these have what one on a GPU has."""

    def scaler(scale):
        made = paddle.amp.GradScaler(enable=False)
        made._enable, made._scale, made._use_dynamic_loss_scaling = True, paddle.to_tensor([scale]), True
        made._incr_ratio, made._decr_ratio, made._incr_count, made._decr_count = 2.0, 0.5, 3, 1
        made._incr_every_n_steps, made._decr_every_n_nan_or_inf = 1000, 2
        return made

    model, optimizer = make()
    hook = CheckpointHook(store, model, None, optimizer, scaler(1024.0), RunState("id", 0, 0, 2), 1, None)
    progress = Progress(iteration=5, iters=9)
    hook.before_run(progress)
    saved = read_state(hook.save_unfinished()).scaler
    other = scaler(1.0)
    other._incr_count = 0
    load_scaler(other, saved)
    assert other._scale.numpy().tolist() == [1024.0] and other._incr_count == 3


def test_only_the_newest_of_this_run_are_kept(store):
    model, optimizer = make()
    store.save(model, optimizer, RunState("older run", 99, 0, 2))
    for iteration in (1, 2, 10):
        store.save(model, optimizer, RunState("this run", iteration, 0, 2))
    assert sorted(p.name for p in store.folder.glob("iter_*")) == ["iter_10", "iter_2", "iter_99"]


def test_the_checkpoint_just_written_is_never_the_one_deleted(store):
    model, optimizer = make()
    store.keep = 1
    for iteration in (10, 20, 5):
        assert store.save(model, optimizer, RunState("this run", iteration, 0, 2)).is_dir()
    assert [p.name for p in store.folder.glob("iter_*")] == ["iter_5"]


def test_auto_finds_the_newest_of_this_run_and_never_an_older_runs(store):
    model, optimizer = make()
    assert store.latest() is None
    run = "this run"
    store.begin_run(run)
    store.save(model, optimizer, RunState("older run", 99, 0, 2))
    assert store.latest() is None
    for iteration in (2, 10):
        store.save(model, optimizer, RunState(run, iteration, 0, 2))
    assert store.latest() == store.folder / "iter_10"


def test_a_save_that_is_cut_short_leaves_the_older_checkpoint_and_is_cleared_away(store, monkeypatch):
    model, optimizer = make()
    run = "this run"
    store.begin_run(run)
    store.save(model, optimizer, RunState(run, 1, 0, 2))
    saved, calls = paddle.save, []

    def dies_on_the_optimizer(value, path, *args, **kwargs):
        calls.append(path)
        if path.endswith("pdopt"):
            raise KeyboardInterrupt
        saved(value, path, *args, **kwargs)

    monkeypatch.setattr(paddle, "save", dies_on_the_optimizer)
    with pytest.raises(KeyboardInterrupt):
        store.save(model, optimizer, RunState(run, 2, 0, 2))
    assert len(calls) == 2 and store.latest() == store.folder / "iter_1"
    monkeypatch.undo()
    store.prepare()
    assert sorted(p.name for p in store.folder.iterdir()) == [".running", "iter_1", "run.json"]


def test_saving_again_at_the_same_iteration_replaces_the_old(store):
    model, optimizer = make()
    store.save(model, optimizer, RunState("a", 1, 0, 2))
    store.save(model, optimizer, RunState("b", 1, 0, 2))
    assert read_state(store.folder / "iter_1").run_id == "b"
    assert sorted(p.name for p in store.folder.iterdir()) == [".running", "iter_1"]


@pytest.mark.parametrize("name", ["model.pdparams", "model.pdopt", "state.json"])
def test_an_incomplete_folder_is_named_with_what_it_lacks(store, name):
    model, optimizer = make()
    folder = store.save(model, optimizer, RunState("id", 1, 0, 2))
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"iter_1: not a whole checkpoint, {name} is missing"):
        read_state(folder)


def test_a_missing_folder_and_a_broken_state_are_errors(store):
    with pytest.raises(CheckpointError, match="iter_7: no such folder"):
        read_state(store.folder / "iter_7")
    folder = store.save(*make(), RunState("id", 1, 0, 2))
    (folder / "state.json").write_text(json.dumps({"iteration": 1})[:-4])
    with pytest.raises(CheckpointError, match="state.json cannot be read"):
        read_state(folder)


def test_a_checkpoint_of_another_model_is_refused(store):
    folder = store.save(*make(), RunState("id", 1, 0, 2))
    with pytest.raises(WeightsError, match=r"of another shape: 0.weight \[4, 3, 3, 3\] for \[5, 3, 3, 3\]"):
        restore(folder, *make(width=5))


def test_an_optimizer_state_of_another_model_is_refused(store):
    model, optimizer = make()
    train(model, optimizer, 1)
    folder = store.save(model, optimizer, RunState("id", 1, 0, 2))
    stranger = paddle.nn.Linear(2, 2)
    other = paddle.optimizer.Adam(0.1, parameters=stranger.parameters())
    stranger(paddle.ones([1, 2])).sum().backward()
    other.step()
    paddle.save(other.state_dict(), str(folder / "model.pdopt"))
    with pytest.raises(CheckpointError, match="belong to another model, such as 'linear"):
        restore(folder, *make())


def test_a_save_dir_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="--save_dir .*file: cannot be written to"):
        CheckpointStore(str(tmp_path / "file")).prepare()


HOLDS = """
import sys
from paddleseg_ext.engine.checkpoint import CheckpointStore
store = CheckpointStore(sys.argv[1])
store.prepare()
print("at work", flush=True)
sys.stdin.read()
"""


def test_a_folder_in_which_a_run_is_at_work_is_refused_until_that_run_is_dead(tmp_path):
    store = CheckpointStore(str(tmp_path))
    (tmp_path / ".partial_iter_1").mkdir()
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    try:
        assert other.stdout.readline() == b"at work\n"
        (tmp_path / ".partial_iter_2").mkdir()
        with pytest.raises(CheckpointError, match=rf"another run is at work there \(process {other.pid}\); wait until"):
            store.prepare()
        assert (tmp_path / ".partial_iter_2").exists()  # it may be what the other is writing
        store.prepare(alone=False)  # a process of that very run
    finally:
        other.kill()
        other.wait()
    store.prepare()
    assert [p.name for p in tmp_path.iterdir()] == [".running"]


def test_best_model_is_loadable_by_paddle(store):
    model, _ = make()
    store.save_best(model)
    loaded = paddle.load(str(store.folder / "best_model" / "model.pdparams"))
    assert np.array_equal(loaded["0.weight"].numpy(), model[0].weight.numpy())
    assert [p.name for p in (store.folder / "best_model").iterdir()] == ["model.pdparams"]
