"""Our client against our server, and against servers that answer wrongly."""

import asyncio

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from paddleseg_ext.errors import ConfigError, DataError
from paddleseg_ext.service.client import ClientOptions, all_finite, connect
from paddleseg_ext.service.formats import OutputForm
from paddleseg_ext.service.transport import TeacherUnavailable, TeacherWrong
from tests.service.servers import SPEC, served, toy

IMAGES = np.random.default_rng(0).normal(size=(2, 3, 8, 6)).astype("float32")


def ask(endpoint, inputs, outputs, seconds=10.0, options=None):
    """One request on a connection of its own."""

    async def run():
        teacher = connect(endpoint, options)
        try:
            return await teacher.infer(inputs, outputs, seconds)
        finally:
            await teacher.close()

    return asyncio.run(run())


def describe(endpoint, options=None, seconds=10.0):
    async def run():
        teacher = connect(endpoint, options)
        try:
            return await teacher.describe(seconds)
        finally:
            await teacher.close()

    return asyncio.run(run())


def test_what_comes_is_what_the_model_gives_and_the_callers_own():
    with served(form=OutputForm("FP32")) as server:
        given = ask(server.endpoint, {"x": IMAGES}, ["fc_0.tmp_2", "label"])
    logits, classes = toy([IMAGES])
    assert list(given) == ["fc_0.tmp_2", "label"]
    np.testing.assert_array_equal(given["fc_0.tmp_2"], logits)
    np.testing.assert_array_equal(given["label"], classes)
    given["label"][:] = 7  # may be written to


@pytest.mark.parametrize(("form", "dtype", "error"), [("FP16", np.float16, 1e-3), ("BF16", np.float32, 1e-2)])
def test_outputs_travel_in_16_bits(form, dtype, error):
    with served(form=OutputForm(form)) as server:
        given = ask(server.endpoint, {"x": IMAGES}, ["prediction"])["prediction"]
    assert given.dtype == dtype
    np.testing.assert_allclose(given, toy([IMAGES])[0], rtol=error, atol=error)


def test_inputs_and_outputs_answer_to_their_aliases():
    with served() as server:
        given = ask(server.endpoint, {"img": IMAGES}, ["prediction", "fc_0.tmp_2"])
    np.testing.assert_array_equal(given["prediction"], given["fc_0.tmp_2"])
    assert not np.shares_memory(given["prediction"], given["fc_0.tmp_2"])


def test_a_server_describes_what_its_register_entry_says():
    for form in (OutputForm(), OutputForm("FP32"), OutputForm("BF16", top_k=2)):
        with served(form=form) as server:
            said = describe(server.endpoint)
            assert said == server.spec and said.digest() == server.spec.digest()
        assert [t.alias for t in said.outputs] == ["prediction", "label"]
        assert said.outputs[0].shape == (-1, 5, -1, -1) and said.outputs[0].datatype == form.datatype


def test_the_highest_classes_stand_for_all():
    with served(form=OutputForm("FP32", top_k=2)) as server:
        given = ask(server.endpoint, {"x": IMAGES}, ["prediction", "label"])
    logits, classes = toy([IMAGES])
    np.testing.assert_array_equal(given["label"], classes)
    assert given["prediction"].shape == logits.shape

    def softmax(x):
        x = np.exp(x - x.max(1, keepdims=True))
        return x / x.sum(1, keepdims=True)

    order = np.argsort(-logits, axis=1)[:, :2]
    wanted, found = softmax(logits), softmax(given["prediction"])
    np.testing.assert_allclose(np.take_along_axis(found, order, 1), np.take_along_axis(wanted, order, 1), rtol=1e-5)
    np.testing.assert_array_equal(given["prediction"].argmax(1), classes)


@pytest.mark.parametrize(
    ("inputs", "outputs", "error", "message"),
    [
        ({"x": IMAGES}, ["predicton"], ConfigError, "no output 'predicton'; closest: 'prediction'"),
        ({"image": IMAGES}, ["label"], ConfigError, "no input 'image'; closest: 'img'"),
        ({}, ["label"], ConfigError, "the model also takes x"),
        ({"x": IMAGES[0]}, ["label"], DataError, "'x' takes FP32 [-1, 3, -1, -1], but got float32 [3, 8, 6]"),
        ({"x": IMAGES[:, :2]}, ["label"], DataError, "'x' takes FP32 [-1, 3, -1, -1], but got float32 [2, 2, 8, 6]"),
        ({"x": IMAGES.astype(complex)}, ["label"], DataError, "'x' takes FP32 [-1, 3, -1, -1], but got complex128"),
    ],
)
def test_what_the_caller_gets_wrong_is_said(inputs, outputs, error, message):
    with served() as server, pytest.raises(error) as caught:
        ask(server.endpoint, inputs, outputs)
    assert str(caught.value).startswith(f"{server.endpoint}: {message}")


def test_another_model_is_wrong():
    with served() as server:
        with pytest.raises(TeacherWrong, match="NOT_FOUND: no model 'other'; it is 'toy', version '1'"):
            describe(server.endpoint, ClientOptions(model="other"))
        with pytest.raises(TeacherWrong, match="no model 'toy' of version '7'"):
            describe(server.endpoint, ClientOptions(model="toy", version="7"))


def test_nobody_there_is_unavailable_at_once():
    with pytest.raises(TeacherUnavailable, match="127.0.0.1:9: UNAVAILABLE"):
        ask("127.0.0.1:9", {"x": IMAGES}, ["label"])


class Wrong(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Describes the toy, answers a right response after `change` has been at it; without the model configuration."""

    def __init__(self, change, wait=0.0):
        self.change, self.wait = change, wait

    async def ModelMetadata(self, request, context):
        said = pb.ModelMetadataResponse(name=request.name, versions=["1"])
        for tensors, specs in ((said.inputs, SPEC.inputs), (said.outputs, SPEC.outputs)):
            for spec in specs:
                tensors.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        return said

    async def ModelConfig(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here")

    async def ModelInfer(self, request, context):
        await asyncio.sleep(self.wait)
        said = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
        x = np.frombuffer(request.raw_input_contents[0], "float32").reshape(request.inputs[0].shape)
        for spec, y in zip(SPEC.outputs, toy([x]), strict=True):
            said.outputs.add(name=spec.name, datatype=spec.datatype, shape=y.shape)
            said.raw_output_contents.append(y.tobytes())
        self.change(said)
        return said


def ask_wrong(change, seconds=10.0, wait=0.0):
    """A request to a server that answers wrongly."""

    async def run():
        server = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Wrong(change, wait), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        teacher = connect(f"127.0.0.1:{port}", ClientOptions(model="toy"))
        try:
            return await teacher.infer({"x": IMAGES}, ["fc_0.tmp_2"], seconds)
        finally:
            await teacher.close()
            await server.stop(None)

    return asyncio.run(run())


def nan(said):
    y = np.frombuffer(said.raw_output_contents[0], "float32").copy()
    y[17] = np.nan
    said.raw_output_contents[0] = y.tobytes()


def one_row_more(said):
    said.outputs[0].shape[0] = 3
    said.raw_output_contents[0] += said.raw_output_contents[0][: 5 * 8 * 6 * 4]


def one_class_less(said):
    said.outputs[0].shape[1] = 4
    said.raw_output_contents[0] = said.raw_output_contents[0][: 2 * 4 * 8 * 6 * 4]


def test_a_server_without_model_configurations_will_do():
    np.testing.assert_array_equal(ask_wrong(lambda said: None)["fc_0.tmp_2"], toy([IMAGES])[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nan, "'fc_0.tmp_2' has values that are not finite"),
        (one_row_more, r"'fc_0.tmp_2' is FP32 \[-1, 5, -1, -1\] with 2 rows, but came as FP32 \[3, 5, 8, 6\]"),
        (one_class_less, r"'fc_0.tmp_2' is FP32 \[-1, 5, -1, -1\] with 2 rows, but came as FP32 \[2, 4, 8, 6\]"),
        (lambda said: setattr(said, "id", "99"), "asked by the id '1', but answered '99'"),
        (lambda said: setattr(said, "model_name", "cat"), "asked the model 'toy', but 'cat' answered"),
        (lambda said: setattr(said.outputs[0], "name", "z"), "no output 'fc_0.tmp_2' in its answer, only z, label"),
        (lambda said: said.raw_output_contents.pop(), "2 tensors, but raw bytes of 1"),
        (lambda said: setattr(said.outputs[0], "datatype", "INT32"), "but came as INT32"),
        (lambda said: said.outputs[0].shape.append(2), r"takes 3840 bytes, but there are 1920"),
    ],
)
def test_a_wrong_answer_is_noticed(change, message):
    with pytest.raises(TeacherWrong, match=message):
        ask_wrong(change)


def test_an_answer_that_does_not_come_in_time_is_given_up():
    with pytest.raises(TeacherUnavailable, match="DEADLINE_EXCEEDED"):
        ask_wrong(lambda said: None, seconds=0.4, wait=30)


def test_closing_gives_up_what_is_under_way_without_looking_like_a_cancelled_caller():
    async def run():
        server = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Wrong(lambda said: None, 30), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        teacher = connect(f"127.0.0.1:{port}", ClientOptions(model="toy"))
        await teacher.describe(10)
        under_way = asyncio.ensure_future(teacher.infer({"x": IMAGES}, ["label"], 20))
        await asyncio.sleep(0.1)
        await teacher.close()
        with pytest.raises(TeacherUnavailable, match="closed"):
            await under_way
        with pytest.raises(TeacherUnavailable, match="closed"):
            await teacher.infer({"x": IMAGES}, ["label"], 20)
        await server.stop(None)

    asyncio.run(run())


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_found_among_many(dtype, value):
    import ml_dtypes  # noqa: F401 (NumPy then knows its type by name)

    x = np.zeros([7, 11], dtype)
    x[0, :2] = np.finfo(np.float16).max, -1
    assert all_finite(x)
    x[5, 3] = value
    assert not all_finite(x)
