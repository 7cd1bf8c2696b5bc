"""Exports and engines in processes of their own, and the choice of an engine that gives the same as the layer."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddleseg_ext.config import Component
from paddleseg_ext.distill.adaptor import AdaptorBase
from paddleseg_ext.distill.own_resolution import Source
from paddleseg_ext.distill.recorder import Recorder
from paddleseg_ext.inference import job as jobs
from paddleseg_ext.inference import select as selection
from paddleseg_ext.inference.job import ExportJob, component, export, key, plain
from paddleseg_ext.inference.runners import BACKENDS
from paddleseg_ext.inference.select import Bounds, Contest, compare, exceeds, select
from paddleseg_ext.inference.worker import EngineError, Worker
from paddleseg_ext.models import build_model
from paddleseg_ext.models.weights import digest
from paddleseg_ext.teachers import EngineTeacher, ModelTeacher
from paddleseg_ext.teachers.engine import Wanted
from paddleseg_ext.types import Batch

MODEL = Component(
    "LPSNet",
    {"depths": [1] * 5, "channels": [4, 8, 8, 8, 8], "scale_ratios": [1.0, 0.5], "num_classes": 3},
    "test",
)
SIZE = (64, 64)
HEAD = Source("head", align_corners=True)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def model():
    paddle.seed(0)
    built, _ = build_model(MODEL, 3)
    built.eval()
    return built


@pytest.fixture
def teacher(model):
    with Recorder(AdaptorBase(model), ["head:input", "head"]) as recorder:
        yield ModelTeacher(model, recorder, {0: HEAD})


def batches(count=2, seed=1, size=SIZE):
    paddle.seed(seed)
    return [paddle.rand([2, 3, *size]) for _ in range(count)]


def batch(images):
    return Batch(images, paddle.zeros([images.shape[0], *images.shape[2:]], "int64"))


def make_job(**changes):
    given = {
        **{"model": plain(MODEL), "num_classes": 3, "in_channels": 3, "wanted": ("head", "head:input")},
        **{"names": ("head:input", "head"), "distill_config": None, "shape": (2, 3, *SIZE)},
    }
    return ExportJob(**{**given, **changes})


def wanted_of(teacher, keys=("head:input",)):
    return Wanted.of(teacher, SIZE, [[2, 3, 4, 4]], keys)


def chosen(teacher, model, cache, engines, against_layer=True, **options):
    wanted, resets = wanted_of(teacher), []
    given = (make_job(), model, digest(model), wanted.by_layer(teacher), batches())
    options = {"cache": cache, "threads": 1, "reset": lambda: resets.append(1), **options}
    choice = select(Contest(*given, **options), engines, against_layer=against_layer)
    if choice.run is not None:
        choice.run.close()
    return choice, wanted, resets


@pytest.fixture
def worker(model, cache):
    """paddle.inference in fp32."""
    folder, _ = export(make_job(), model, digest(model), "paddle", cache)
    made = Worker("paddle", folder, "fp32", 1)
    yield made
    made.close()


@pytest.mark.parametrize("name", list(BACKENDS))
def test_each_engine_gives_what_the_layer_gives_features_too(teacher, model, cache, name):
    missing = [m for m in BACKENDS[name].modules if importlib.util.find_spec(m) is None]
    if missing:
        pytest.skip(f"{missing} not installed")
    layer, *others = chosen(teacher, model, cache, engines=[name])[0].trials
    assert layer.name == "layer" and layer.milliseconds > 0
    exact = next(t for t in others if t.name == f"{name} fp32")
    assert exact.max_error < 1e-4 and exact.same_class > 0.999 and exact.milliseconds > 0


def test_an_engine_teaches_as_its_layer_does(teacher, worker):
    resets = []
    engine = EngineTeacher(teacher, worker, wanted_of(teacher), lambda: resets.append(1))
    (images,) = batches(1, seed=7)
    ours, theirs = engine(batch(images)), teacher(batch(images))
    np.testing.assert_allclose(ours.logits[0].numpy(), theirs.logits[0].numpy(), atol=1e-4)
    assert list(ours.features) == ["head:input"] and ours.logits[0].stop_gradient
    np.testing.assert_allclose(ours.features["head:input"].numpy(), theirs.features["head:input"].numpy(), atol=1e-4)
    assert resets == [1]  # settings of the process are put right after each run
    assert engine.fallbacks == 0


def test_the_final_resize_is_left_to_us(model, worker):
    with Recorder(AdaptorBase(model), ["head:input", "head"]) as recorder:
        teacher = ModelTeacher(model, recorder, {0: HEAD}, enlarged=[0])
        (images,) = batches(1)
        layer = teacher(batch(images)).logits[0]
        wanted = Wanted.of(teacher, SIZE, [layer.shape], ["head:input"])
        assert layer.shape == [2, 3, *SIZE] and wanted.names == ["head", "head:input"]
        given = EngineTeacher(teacher, worker, wanted, lambda: None)(batch(images)).logits[0]
        np.testing.assert_allclose(given.numpy(), layer.numpy(), atol=1e-4)
        assert Wanted.of(teacher, SIZE, [[2, 3, 32, 32]], []).names == [
            "0"
        ]  # enlarged to another size than the image's


def test_the_caller_goes_on_while_an_engine_works(teacher, worker):
    engine = EngineTeacher(teacher, worker, wanted_of(teacher), lambda: None)
    first, second = (batch(images) for images in batches())
    for asked in (first, second):  # a question that nobody wants answered any more does no harm
        engine.ask(asked)
    for given in (second, first):
        assert np.allclose(engine(given).logits[0].numpy(), teacher(given).logits[0].numpy(), atol=1e-4)
    assert engine.fallbacks == 0


def test_what_an_engine_gave_is_not_overwritten_by_the_next_batch(worker):
    first, second = batches()
    given = worker(first)[0]
    kept = given.numpy().copy()
    worker(second)
    assert np.array_equal(given.numpy(), kept)


def test_batches_of_another_size_are_answered_too(teacher, worker):
    (images,) = batches(1, size=(96, 64))
    expected = wanted_of(teacher).by_layer(teacher)(images)[0]
    np.testing.assert_allclose(worker(images)[0].numpy(), expected.numpy(), atol=1e-4)


def test_where_the_engine_fails_the_layer_answers_and_the_engine_goes_on(teacher, worker):
    engine = EngineTeacher(teacher, worker, wanted_of(teacher), lambda: None)
    strange = paddle.rand([2, 3, 64])
    with pytest.raises(EngineError):
        worker(strange)
    with pytest.raises(Exception, match=""):
        engine(Batch(strange, paddle.zeros([2, 64], "int64")))  # the layer refuses them too, in its own words
    assert engine.fallbacks == 1
    (images,) = batches(1)
    assert engine(batch(images)).logits[0].shape == [2, 3, 4, 4] and engine.fallbacks == 1


def test_an_engine_that_dies_is_started_again_and_one_that_dies_twice_is_not(teacher, worker, caplog):
    engine = EngineTeacher(teacher, worker, wanted_of(teacher), lambda: None)
    (images,) = batches(1)
    layer = teacher(batch(images)).logits[0].numpy()
    for deaths in (1, 2, 2):
        if engine.run.is_alive:
            os.kill(engine.run._child.pid, signal.SIGSEGV)
        engine.ask(batch(images))
        np.testing.assert_allclose(engine(batch(images)).logits[0].numpy(), layer, atol=1e-4)
        assert engine._deaths == deaths
    engine.run.close()
    assert engine.fallbacks == 1


def test_an_engine_that_crashes_or_hangs_is_a_line(worker, model, cache, monkeypatch):
    (images,) = batches(1)
    os.kill(worker._child.pid, signal.SIGSEGV)
    with pytest.raises(EngineError, match="its process ended by SIGSEGV"):
        worker(images)
    other = worker.again()
    other._connection.settimeout(0.2)
    os.kill(other._child.pid, signal.SIGSTOP)
    with pytest.raises(EngineError, match="took more than"):
        other(images)
    assert not other.is_alive
    with pytest.raises(EngineError, match=".+"):
        Worker("paddle", cache / "nothing", "fp32", 1)


def test_an_engine_ends_when_training_is_killed(model, cache):
    folder, _ = export(make_job(), model, digest(model), "paddle", cache)
    code = f"""
import os, signal
from pathlib import Path
from paddleseg_ext.inference.worker import Worker
worker = Worker("paddle", Path({str(folder)!r}), "fp32", 1)
print(worker._child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    child = int(done.stdout.split()[-1])
    deadline = time.monotonic() + 20
    while _runs(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def test_engines_are_run_without_paddle_in_their_process():
    code = "import sys, paddleseg_ext.cli.run_engine; print('paddle' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_an_engine_that_differs_is_not_taken_and_the_bound_is_named(teacher, model, cache):
    choice, *_ = chosen(teacher, model, cache, engines=["paddle"], bounds=Bounds(max_error=-1.0))
    assert choice.run is None and choice.name == "layer"
    assert all("differs: largest error" in str(trial) for trial in choice.trials[1:])


def test_the_fastest_is_taken(teacher, model, cache, monkeypatch):
    times = iter([0.1, 0.05, 0.02])  # the layer, bf16, fp32
    monkeypatch.setattr(selection, "_seconds", lambda *_: next(times))
    assert chosen(teacher, model, cache, engines=["paddle"])[0].name == "paddle fp32"
    times = iter([0.01, 0.05, 0.02])
    assert chosen(teacher, model, cache, engines=["paddle"])[0].name == "layer"
    times = iter([0.01, 0.05])  # a run that goes on keeps its engine, however fast the layer is today
    assert chosen(teacher, model, cache, engines=["paddle bf16"], against_layer=False)[0].name == "paddle bf16"


def test_what_the_old_ir_refuses_paddle_runs_from_the_new_one(teacher, model, cache, monkeypatch):
    real = selection.export

    def refused(job, layer, weights, kind, folder):
        return (None, "must be Value") if kind.startswith("paddle") else real(job, layer, weights, kind, folder)

    monkeypatch.setattr(selection, "export", refused)
    choice, *_ = chosen(teacher, model, cache, engines=["paddle"])
    said = [str(trial) for trial in choice.trials[1:]]
    assert said[0] == "paddle: must be Value" and said[1].startswith("paddle fp32: ") and "100.00 %" in said[1]
    assert len(said) == 2


def test_an_engine_that_dies_on_its_first_batch_is_passed_over(teacher, model, cache, monkeypatch):
    def dies(*_):
        raise EngineError("its process ended by SIGSEGV")

    monkeypatch.setattr(selection, "start", dies)
    choice, *_ = chosen(teacher, model, cache, engines=["paddle"])
    assert choice.name == "layer"
    assert [str(trial) for trial in choice.trials[1:]] == [
        f"paddle {precision}: its process ended by SIGSEGV" for precision in ("bf16", "fp32")
    ]


def test_an_engine_that_is_not_installed_is_passed_over(teacher, model, cache, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(selection.importlib.util, "find_spec", lambda n: None if n == "openvino" else find(n))
    choice, *_ = chosen(teacher, model, cache, engines=["openvino"])
    assert choice.name == "layer" and str(choice.trials[1]) == "openvino: openvino not installed"


def test_comparing_looks_at_every_tensor_of_every_batch():
    logits = paddle.to_tensor([[[[0.0, 1.0]], [[1.0, 0.0]]]])
    feature = paddle.to_tensor([[0.0, 10.0]])
    same = compare("x", [[logits, feature]], [[logits, feature]])
    assert (same.max_error, same.mean_error, same.same_class) == (0, 0, 1)
    other = compare(
        "x", [[logits, feature]] * 2, [[logits, feature], [1 - logits, feature + paddle.to_tensor([[0.0, 1.0]])]]
    )
    assert other.max_error == 1 and other.same_class == 0
    broken = compare("x", [[logits / 0.0, feature]], [[logits, feature]])
    assert exceeds(broken, Bounds()) and exceeds(compare("x", [[logits[:, :1]]], [[logits]]), Bounds())


def test_an_export_is_made_once_and_a_changed_model_is_exported_anew(model, cache, monkeypatch):
    weights = digest(model)
    folder, _ = export(make_job(), model, weights, "paddle", cache)

    def refused(*_args, **_kwargs):
        raise AssertionError("a child was started")

    monkeypatch.setattr(jobs.subprocess, "run", refused)
    assert export(make_job(), model, weights, "paddle", cache)[0] == folder
    for other in (make_job(wanted=("head",)), make_job(names=("head",)), make_job(num_classes=4)):
        assert key(other, weights, "paddle") != key(make_job(), weights, "paddle")
    other = make_job(shape=(1, 3, 64, 64))  # one export is for images of any size, unless it is for one alone
    assert key(other, weights, "paddle") == key(make_job(), weights, "paddle")
    assert key(other, weights, "paddle-fixed") != key(make_job(), weights, "paddle-fixed")
    with pytest.raises(AssertionError):
        export(make_job(), model, "other weights", "paddle", cache)
    assert not list(cache.glob(".making_*"))


def test_the_users_file_is_part_of_the_key(tmp_path):
    file = tmp_path / "mine.py"
    keys = []
    for text in ("a = 1", "a = 2"):
        file.write_text(text)
        keys.append(key(make_job(distill_config=str(file)), "w", "paddle"))
    assert keys[0] != keys[1]


def test_why_an_export_failed_is_kept_and_said_again_at_once(tmp_path, model, monkeypatch):
    broken = make_job(model={"type": "NoSuchNet"})
    folder, reason = export(broken, model, "w", "paddle", tmp_path)
    assert folder is None and "no model 'NoSuchNet'" in reason
    monkeypatch.setattr(jobs.subprocess, "run", None)
    assert export(broken, model, "w", "paddle", tmp_path) == (None, reason)


def test_an_export_that_hangs_is_given_up(tmp_path, model, monkeypatch):
    monkeypatch.setattr(jobs, "_SECONDS", 0.2)
    assert export(make_job(), model, "w", "paddle", tmp_path) == (None, "took more than 0.2 s")


@pytest.mark.parametrize(
    ("code", "said", "reason"),
    [
        (-9, "", "the export ended with code -9"),
        (1, "OSError: [Errno 28] No space left on device", "OSError: [Errno 28] No space left on device"),
    ],
)
def test_an_export_that_the_machine_ended_is_a_line_and_tried_again(tmp_path, model, monkeypatch, code, said, reason):
    dead = subprocess.CompletedProcess([], code, "", said)
    monkeypatch.setattr(jobs.subprocess, "run", lambda *_a, **_k: dead)
    assert export(make_job(), model, "w", "onnx", tmp_path) == (None, reason)
    dead.returncode = 0
    assert export(make_job(), model, "w", "onnx", tmp_path)[0] is not None


def test_why_an_export_failed_is_looked_for_among_warnings(tmp_path, model, monkeypatch):
    said = "RuntimeError: no such operator\n[2026-11-26 08:04:31,104] [    INFO] weights.py:58 - all matched\nW1125 20:16:16.9 1 eager_utils.cc:3584] a warning\n-------\n"
    for code, reason in ((1, "RuntimeError: no such operator"), (-11, "the export ended with code -11: RuntimeError")):
        done = subprocess.CompletedProcess([], code, "", said)
        monkeypatch.setattr(jobs.subprocess, "run", lambda *_a, done=done, **_k: done)
        assert export(make_job(), model, f"w{code}", "onnx", tmp_path)[1].startswith(reason)


def test_why_a_conversion_failed_is_found_in_either_stream(tmp_path, model, monkeypatch):
    said = "\x1b[0;31m2026-11-26 08:06:06 [ERROR]\tFailed to convert: no such attribute\x1b[0m\n.\n"
    done = subprocess.CompletedProcess(
        [], 255, said, "[2026-11-26 08:04:31,104] [    INFO] weights.py:58 - all matched\n"
    )
    monkeypatch.setattr(jobs.subprocess, "run", lambda *_a, **_k: done)
    assert export(make_job(), model, "w", "onnx", tmp_path) == (None, "Failed to convert: no such attribute")


def test_of_two_that_export_the_same_the_first_is_taken(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "who").write_text(name)
        jobs._publish(tmp_path / name, tmp_path / "target")
    assert (tmp_path / "target/who").read_text() == "first"


def test_a_component_survives_the_way_to_the_child():
    given = Component("FCN", {"backbone": Component("HRNet", {"a": [1, 2]}, "x"), "n": 3}, "y")
    again = component(plain(given))
    assert again.type == "FCN" and again.params["backbone"].params == {"a": [1, 2]} and again.params["n"] == 3


def test_the_same_tensor_is_wanted_once():
    class Layer:
        own, enlarged = {0: HEAD}, frozenset()

    wanted = Wanted.of(Layer(), SIZE, [[], []], ["head", "body"])
    assert (
        wanted.names == ["head", "1", "body"] and wanted.logits == [0, 1] and wanted.features == {"head": 0, "body": 2}
    )


def test_a_size_that_was_not_proved_is_given_to_both_first(teacher, worker, caplog):
    engine = EngineTeacher(teacher, worker, wanted_of(teacher), lambda: None, proved=SIZE)
    other = batch(batches(1, size=(96, 64))[0])
    np.testing.assert_allclose(engine(other).logits[0].numpy(), teacher(other).logits[0].numpy(), atol=1e-4)
    assert engine.fallbacks == 0 and engine._sizes == {SIZE: "", (96, 64): ""}
    strict = EngineTeacher(teacher, worker, wanted_of(teacher), lambda: None, Bounds(max_error=0.0), SIZE)
    for _ in range(2):
        assert np.array_equal(strict(other).logits[0].numpy(), teacher(other).logits[0].numpy())
    assert strict.fallbacks == 2 and "differs at 96x64: largest error" in caplog.text
    strict.ask(other)
    assert strict._asked is None  # the engine does not work on what the layer will answer


def test_the_layer_takes_no_memory_while_its_engine_answers(teacher, worker, model, tmp_path):
    engine = EngineTeacher(teacher, worker, wanted_of(teacher), lambda: None, proved=SIZE, folder=tmp_path)
    weight, (images,) = teacher.model.state_dict()["head.weight"], batches(1)
    assert not weight._is_initialized()
    given = engine(batch(images)).logits[0].numpy()
    assert not weight._is_initialized()
    np.testing.assert_allclose(given, teacher(batch(images)).logits[0].numpy(), atol=1e-4)
    assert weight._is_initialized()  # it was asked, and is so no more with the engine's next answer
    engine(batch(batches(1, size=(96, 64))[0]))  # which is proved by the layer
    assert engine.fallbacks == 0 and not weight._is_initialized()
    worker.close()
    engine._deaths = 2
    assert np.allclose(engine(batch(images)).logits[0].numpy(), given, atol=1e-4) and engine.fallbacks == 1
    assert weight._is_initialized()
    nowhere = EngineTeacher(teacher, worker, wanted_of(teacher), lambda: None, folder=tmp_path / "no_such")
    assert nowhere(batch(images)).logits[0].shape == given.shape and weight._is_initialized()
