"""Operations written in another way for an export give the same."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from paddleseg_ext.inference.job import save_onnx
from paddleseg_ext.inference.rewrites import exact_pooling, for_onnx


def test_adaptive_pooling_is_written_out_and_refused_where_the_size_is_not_known():
    paddle.seed(0)
    x = paddle.rand([2, 3, 10, 7])
    for size in (1, 2, 3, (6, 5), (None, 4)):
        wanted = paddle.nn.functional.adaptive_avg_pool2d(x, size)
        with exact_pooling():
            given = paddle.nn.AdaptiveAvgPool2D(size)(x)
        np.testing.assert_allclose(given.numpy(), wanted.numpy(), atol=1e-6)
    unknown = paddle.static.InputSpec([None, 3, None, None], "float32")
    layer = paddle.jit.to_static(paddle.nn.AdaptiveAvgPool2D(3), [unknown], full_graph=True)
    with exact_pooling(), pytest.raises(RuntimeError, match="for images of one size alone"):
        assert layer.forward.concrete_program


@pytest.mark.parametrize("pad", [(1, 2, 3, 4), [0, 0, 0, 1], (0, 0, 0, 0), (1, 0, -1, 0)])
@pytest.mark.parametrize("how", [{}, {"value": 0.5}, {"mode": "replicate"}, {"data_format": "NHWC"}])
def test_padding_is_the_same(pad, how):
    x = paddle.rand([2, 3, 5, 4])
    wanted = F.pad(x, pad, **how)
    with for_onnx():
        np.testing.assert_array_equal(F.pad(x, pad, **how).numpy(), wanted.numpy())


@pytest.mark.parametrize("scale", [2, 3.0, 0.5, [2, 3]])
@pytest.mark.parametrize("corners", [False, True])
def test_resizes_are_the_same(scale, corners):
    x = paddle.rand([2, 3, 6, 4])
    layer = paddle.nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=corners)
    wanted = layer(x)
    with for_onnx():
        np.testing.assert_allclose(layer(x).numpy(), wanted.numpy(), atol=1e-6)


class Enlarged(paddle.nn.Layer):
    def forward(self, x):
        return F.interpolate(F.pad(x, [1, 0, 2, 1], value=0.25), scale_factor=2, mode="bilinear")


@pytest.mark.parametrize("shape", [[2, 3, 6, 4], [None, 3, None, None]])
def test_what_onnx_gets_has_its_numbers(tmp_path, shape):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("paddle2onnx")
    x = paddle.rand([2, 3, 6, 4])
    with for_onnx():
        specification = [paddle.static.InputSpec(shape, "float32", name="x")]
        save_onnx(paddle.jit.to_static(Enlarged(), specification, full_graph=True), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], Enlarged()(x).numpy(), atol=1e-6)


def test_nothing_is_changed_afterwards():
    functions = F.pad, F.interpolate, F.adaptive_avg_pool2d
    with pytest.raises(ZeroDivisionError), exact_pooling(), for_onnx():
        assert F.pad is not functions[0]
        raise ZeroDivisionError
    assert (F.pad, F.interpolate, F.adaptive_avg_pool2d) == functions
