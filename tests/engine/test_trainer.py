"""The loop: what it computes, when it waits for the device, how it stops."""

import json
import os
import signal

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_ext.engine import trainer as trainers
from paddleseg_ext.engine.hooks import LogHook, ProgressBar, RecordFile, StopHook, VisualLog
from paddleseg_ext.engine.trainer import Trainer
from paddleseg_ext.errors import TrainingError
from paddleseg_ext.types import Batch, StepOutput


class Step(nn.Layer):
    """A linear model with two losses; from iteration `bad` on one of them is not a number."""

    def __init__(self, bad=None, dropout=0.0):
        super().__init__()
        self.fc, self.drop, self.bad, self.calls = nn.Linear(4, 2), nn.Dropout(dropout), bad, 0

    def forward(self, batch):
        self.calls += 1
        x = self.drop(self.fc(batch.images))
        spoilt = float("nan") if self.bad is not None and self.calls >= self.bad else 1.0
        return StepOutput([x.detach()], {"first": x.square().mean(), "second": 0.5 * x.abs().mean() * spoilt})


def batches(count):
    rng = np.random.default_rng(0)
    for i in range(count):
        images = paddle.to_tensor(rng.normal(size=[3, 4]).astype("float32"))
        yield Batch(images, paddle.zeros([3], "int64"), (f"a{i}.png", f"b{i}.png"))


def log_hook(tmp_path, log_iters=4, save_interval=100):
    records = RecordFile(tmp_path / "metrics.jsonl")
    return LogHook(log_iters, save_interval, 3, 5, records, VisualLog(None), ProgressBar("", "", shown=False))


def run(step, hooks, iters=8, start=0, **trainer):
    optimizer = paddle.optimizer.Momentum(paddle.optimizer.lr.PolynomialDecay(0.1, 20), parameters=step.parameters())
    loader = list(batches(iters))[start:]
    return Trainer(**trainer).run(step, loader, optimizer, hooks, iters, start)


def records(tmp_path):
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_steps_that_do_not_log_never_wait_for_the_device(tmp_path, monkeypatch):
    class Watch:
        def __init__(self):
            self.waits, self.by_iteration = 0, []

        def before_run(self, progress):
            for name in ("numpy", "item", "__float__", "__bool__", "__int__", "tolist", "__array__", "cpu"):
                original = getattr(paddle.Tensor, name)

                def counted(*args, original=original, **kwargs):
                    self.waits += 1
                    return original(*args, **kwargs)

                monkeypatch.setattr(paddle.Tensor, name, counted)

        def after_step(self, progress):
            self.by_iteration.append(self.waits)
            self.waits = 0

        def close(self):
            monkeypatch.undo()

    watch = Watch()
    run(Step(), [log_hook(tmp_path), watch])
    quiet = [count for i, count in enumerate(watch.by_iteration, 1) if i % 4]
    assert quiet == [0] * 6
    assert all(watch.by_iteration[i - 1] > 0 for i in (4, 8)), "the watch must see the waits of steps that log"


def test_each_record_is_the_mean_since_the_last_and_names_every_loss(tmp_path):
    run(Step(), [log_hook(tmp_path)])
    logged = records(tmp_path)
    every = run_and_collect(8)
    assert [r["iter"] for r in logged] == [4, 8] and all(r["kind"] == "train" for r in logged)
    for record, part in zip(logged, (every[:4], every[4:]), strict=True):
        for name in ("first", "second"):
            assert record[name] == pytest.approx(np.mean([x[name] for x in part]), rel=1e-6)
        assert record["loss"] == pytest.approx(record["first"] + record["second"], rel=1e-6)
        assert {"lr", "ips", "batch_cost", "reader_cost"} <= set(record)


def run_and_collect(iters):
    seen = []

    class Collect:
        def before_run(self, progress): ...
        def close(self): ...
        def after_step(self, progress):
            seen.append({name: float(x) for name, x in progress.output.losses.items()})

    paddle.seed(0)
    run(Step(), [Collect()], iters)
    return seen


@pytest.fixture(autouse=True)
def same_start():
    paddle.seed(0)


def test_a_loss_that_is_not_finite_stops_training_and_names_iteration_losses_and_files(tmp_path):
    with pytest.raises(
        TrainingError, match=r"iteration 6: a loss is not finite: first [\d.e+-]+, second nan; batch: a5.png, b5.png"
    ):
        run(Step(bad=6), [log_hook(tmp_path)])


def test_a_loss_that_is_not_finite_is_found_before_the_checkpoint_of_its_iteration(tmp_path):
    saved = []

    class Save:
        def before_run(self, progress): ...
        def close(self): ...
        def after_step(self, progress):
            if progress.due(3):
                saved.append(progress.iteration)

    with pytest.raises(TrainingError, match="iteration 5"):
        run(Step(bad=5), [log_hook(tmp_path, log_iters=100, save_interval=3), Save()])
    assert saved == [3]


def test_hooks_are_closed_however_training_ends(tmp_path):
    closed = []

    class Close:
        def before_run(self, progress): ...
        def after_step(self, progress):
            raise RuntimeError("a fault")

        def close(self):
            closed.append(True)

    with pytest.raises(RuntimeError, match="a fault"):
        run(Step(), [Close()])
    assert closed == [True]


def test_dropout_does_not_depend_on_where_training_started():
    def outputs(start):
        seen = {}

        class Collect:
            def before_run(self, progress): ...
            def close(self): ...
            def after_step(self, progress):
                seen[progress.iteration] = (progress.output.logits[0].numpy() == 0).tolist()

        run(Step(dropout=0.5), [Collect()], start=start, seed=3)
        return seen

    whole, part = outputs(0), outputs(5)
    assert {i: whole[i] for i in part} == part
    assert whole[1] != whole[2]


def test_bf16_on_a_cpu_changes_nothing_as_paddle_has_no_mixed_precision_there():
    weights = []
    for precision in ("fp32", "bf16"):
        paddle.seed(0)
        step = Step()
        before = step.fc.weight.numpy().copy()
        run(step, [], precision=precision)
        weights.append(step.fc.weight.numpy())
        assert weights[-1].dtype == "float32" and not np.array_equal(before, weights[-1])
    assert np.array_equal(*weights)


def test_a_schedule_that_looks_at_losses_looks_at_those_of_all_ranks(monkeypatch):
    monkeypatch.setattr(trainers, "mean_over_ranks", lambda loss: loss * 0 + 7)
    step, seen = Step(), []
    schedule = paddle.optimizer.lr.ReduceOnPlateau(0.1)
    monkeypatch.setattr(schedule, "step", lambda loss: seen.append(float(loss)))
    optimizer = paddle.optimizer.SGD(schedule, parameters=step.parameters())
    Trainer().run(step, list(batches(2)), optimizer, [], 2)
    assert seen == [7, 7]


def test_sigterm_finishes_the_iteration_and_stops():
    class Terminate:
        def before_run(self, progress): ...
        def close(self): ...
        def after_step(self, progress):
            if progress.iteration == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    progress = run(Step(), [Terminate(), StopHook(agree_interval=10)])
    assert progress.stop and 2 <= progress.iteration <= 3
    assert signal.getsignal(signal.SIGTERM) is before


def test_records_of_iterations_that_come_again_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "iter": 10}\n{"kind": "train", "iter": 20}\n{"kind": "tra')
    RecordFile(path, start=10).write({"kind": "train", "iter": 20, "again": True})
    assert records(tmp_path) == [{"kind": "train", "iter": 10}, {"kind": "train", "iter": 20, "again": True}]
    RecordFile(path, start=0)
    assert records(tmp_path) == []
