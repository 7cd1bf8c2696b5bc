"""Exported models of every kind of file give what their layer gives, by NumPy."""

import importlib.util

import numpy as np
import paddle
import pytest

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.inference.predictor import PredictorOptions, describe, open_predictor
from paddleseg_ext.service.spec import TensorSpec

IMAGES = np.random.default_rng(0).normal(size=(2, 3, 12, 10)).astype("float32")


class Net(paddle.nn.Layer):
    """Logits and classes."""

    def __init__(self):
        super().__init__()
        self.conv = paddle.nn.Conv2D(3, 4, 3, padding=1)

    def forward(self, x):
        logits = self.conv(x)
        return logits, paddle.argmax(logits, 1, dtype="int32")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with `m.json`, and what it gives for IMAGES."""
    paddle.seed(0)
    layer = Net()
    layer.eval()
    folder = tmp_path_factory.mktemp("model")
    inputs = [paddle.static.InputSpec([None, 3, None, None], "float32", name="x")]
    paddle.jit.save(paddle.jit.to_static(layer, input_spec=inputs, full_graph=True), str(folder / "m"))
    with paddle.no_grad():
        return folder, [x.numpy() for x in layer(paddle.to_tensor(IMAGES))]


def test_a_model_of_paddles_says_what_it_takes_and_gives(exported):
    folder, wanted = exported
    spec, run = open_predictor(folder / "m.json", folder / "m.pdiparams", PredictorOptions(threads=1))
    assert spec.inputs == (TensorSpec("x", "FP32", (-1, 3, -1, -1), "x"),)
    assert [(t.datatype, t.shape) for t in spec.outputs] == [("FP32", (-1, 4, -1, -1)), ("INT32", (-1, -1, -1))]
    given = run([IMAGES])
    np.testing.assert_allclose(given[0], wanted[0], atol=1e-5)
    np.testing.assert_array_equal(given[1], wanted[1])
    again = given[0].copy()
    run([IMAGES + 1])
    np.testing.assert_array_equal(given[0], again)  # the caller's own


def test_outputs_come_in_the_type_that_is_to_travel(exported):
    folder, wanted = exported
    _, run = open_predictor(folder / "m.json", folder / "m.pdiparams", PredictorOptions(threads=1), "FP16")
    given = run([IMAGES])
    assert [x.dtype for x in given] == [np.float16, np.int32]
    np.testing.assert_allclose(given[0], wanted[0], atol=1e-2)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_an_onnx_model_runs_too(exported, engine):
    if any(importlib.util.find_spec(name) is None for name in (engine, "paddle2onnx")):
        pytest.skip("not installed")
    import paddle2onnx

    folder, wanted = exported
    files = [str(folder / name) for name in ("m.json", "m.pdiparams", "m.onnx")]
    paddle2onnx.export(*files, opset_version=16, enable_onnx_checker=False, verbose=False)
    spec, run = open_predictor(folder / "m.onnx", None, PredictorOptions(engine, threads=1))
    assert [(t.name, t.datatype, t.shape) for t in spec.inputs] == [("x", "FP32", (-1, 3, -1, -1))]
    assert [t.datatype for t in spec.outputs] == ["FP32", "INT32"]
    for given, array in zip(run([IMAGES]), wanted, strict=True):
        np.testing.assert_allclose(given, array, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PredictorOptions("openvino"), "--engine openvino: it runs ONNX models, but "),
        (PredictorOptions(precision="fp16"), "--precision fp16: paddle on a CPU has fp32 and bf16"),
        (PredictorOptions(precision="bf16"), "--precision bf16: oneDNN does not take "),
        (PredictorOptions(gpu=7), "--gpu_ids 7: Paddle finds "),
    ],
)
def test_what_an_engine_does_not_do_is_said(exported, options, message):
    folder, _ = exported
    with pytest.raises(ConfigError) as caught:
        open_predictor(folder / "m.json", folder / "m.pdiparams", options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", ["n.json", "n.pdmodel"])
@pytest.mark.parametrize("content", ["", "nothing", "{}", '{"a": 1}'])
def test_a_file_that_is_no_model_is_said(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=name):
        describe(tmp_path / name)
