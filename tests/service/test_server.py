"""The stock client of the protocol, other people's clients and plain nonsense against our server."""

import os
import socket
import threading
import time
import urllib.request

import grpc
import numpy as np
import pytest
import tritonclient.grpc as stock
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.service.batching import BatchOptions
from paddleseg_ext.service.formats import OutputForm
from paddleseg_ext.service.spec import ModelSpec, TensorSpec
from tests.service.servers import served, toy

IMAGES = np.random.default_rng(0).normal(size=(2, 3, 8, 6)).astype("float32")


@pytest.fixture(scope="module")
def server():
    with served() as running:
        yield running


@pytest.fixture
def client(server):
    with stock.InferenceServerClient(server.endpoint) as client:
        yield client


def image(x=IMAGES, name="x", datatype="FP32"):
    given = stock.InferInput(name, x.shape, datatype)
    given.set_data_from_numpy(x)
    return given


def test_the_stock_client_finds_the_model(client):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("toy") and client.is_model_ready("toy", "1")
    assert not client.is_model_ready("toy", "2") and not client.is_model_ready("cat")
    assert [m.name for m in client.get_model_repository_index().models] == ["toy"]
    said = client.get_model_metadata("toy")
    assert [(t.name, t.datatype, list(t.shape)) for t in said.outputs] == [
        ("fc_0.tmp_2", "FP16", [-1, 5, -1, -1]),
        ("label", "INT32", [-1, -1, -1]),
    ]
    config = client.get_model_config("toy").config
    assert [list(t.dims) for t in config.input] == [[-1, 3, -1, -1]] and config.max_batch_size == 0
    assert client.get_server_metadata().name == "paddleseg_ext"


def test_the_stock_client_infers(client):
    result = client.infer("toy", [image()], request_id="my 7th")
    assert result.get_response().id == "my 7th"
    logits, classes = toy([IMAGES])
    np.testing.assert_allclose(result.as_numpy("fc_0.tmp_2"), logits, atol=2e-3)
    np.testing.assert_array_equal(result.as_numpy("label"), classes)


def test_the_stock_client_may_use_aliases(client):
    result = client.infer("toy", [image(name="img")], outputs=[stock.InferRequestedOutput("prediction")])
    assert [o.name for o in result.get_response().outputs] == ["prediction"]
    assert result.as_numpy("prediction").shape == (2, 5, 8, 6)


def test_the_stock_client_streams_and_a_refusal_does_not_end_the_stream(client):
    answers, came = [], threading.Semaphore(0)

    def take(result, error):
        answers.append((result, error))
        came.release()

    client.start_stream(take)
    for model in ("toy", "cat", "toy"):
        client.async_stream_infer(model, [image()], request_id=f"for {model}")
    assert all(came.acquire(timeout=10) for _ in range(3))
    client.stop_stream()
    assert [result is not None for result, _ in answers] == [True, False, True]
    assert "NOT_FOUND: no model 'cat'; it is 'toy'" in str(answers[1][1])
    assert answers[2][0].get_response().id == "for toy"


@pytest.mark.parametrize(
    ("x", "datatype"),
    [(IMAGES.astype("float16"), "FP16"), ((10 * IMAGES).astype("uint8"), "UINT8"), (IMAGES.astype("float64"), "FP64")],
)
def test_images_may_come_in_another_type(client, x, datatype):
    given = client.infer("toy", [image(x, datatype=datatype)]).as_numpy("fc_0.tmp_2")
    np.testing.assert_allclose(given, toy([x.astype("float32")])[0], atol=2e-3, rtol=1e-3)


def test_typed_contents_do_instead_of_raw_bytes(server):
    request = pb.ModelInferRequest(model_name="toy", id="5")
    request.inputs.add(name="x", datatype="FP32", shape=IMAGES.shape).contents.fp32_contents.extend(IMAGES.flatten())
    with grpc.insecure_channel(server.endpoint) as channel:
        said = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    given = np.frombuffer(said.raw_output_contents[0], "float16").reshape(2, 5, 8, 6)
    np.testing.assert_allclose(given, toy([IMAGES])[0], atol=2e-3)


def test_an_answer_of_40_megabytes_comes_through():
    spec = ModelSpec("big", "1", (TensorSpec("x", "UINT8", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 19, 512, 1024)),))
    y = np.random.default_rng(0).random((1, 19, 512, 1024), np.float32)
    with (
        served(spec, [lambda inputs: [y]], form=OutputForm("FP32")) as server,
        stock.InferenceServerClient(server.endpoint) as client,
    ):
        result = client.infer("big", [image(np.zeros([1, 2], np.uint8), datatype="UINT8")])
    assert y.nbytes > 39e6
    np.testing.assert_array_equal(result.as_numpy("y"), y)


@pytest.mark.parametrize(
    ("x", "name", "datatype", "message"),
    [
        (IMAGES[:, :2], "x", "FP32", "'x' takes FP32 [-1, 3, -1, -1], but got FP32 [2, 2, 8, 6]"),
        (IMAGES[0], "x", "FP32", "'x' takes FP32 [-1, 3, -1, -1], but got FP32 [3, 8, 6]"),
        (IMAGES[:0], "x", "FP32", "'x' takes FP32 [-1, 3, -1, -1], but got FP32 [0, 3, 8, 6]"),
        (IMAGES, "y", "FP32", "no input 'y'; known: 'img', 'x'"),
        (np.zeros([2, 3, 8, 6], np.uint16), "x", "UINT16", "'x': data type 'UINT16' is none of FP32, FP16"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(client, x, name, datatype, message):
    with pytest.raises(InferenceServerException) as caught:
        client.infer("toy", [image(x, name, datatype)])
    assert message in str(caught.value) and "INVALID_ARGUMENT" in str(caught.value.status())


def test_an_output_that_is_not_there_is_refused(client):
    with pytest.raises(InferenceServerException, match="no output 'predicton'; closest: 'prediction'"):
        client.infer("toy", [image()], outputs=[stock.InferRequestedOutput("predicton")])


def test_fewer_bytes_than_the_shape_says_are_refused(server, client):
    request = pb.ModelInferRequest(model_name="toy")
    request.inputs.add(name="x", datatype="FP32", shape=[2, 3, 1 << 40, 1 << 40])
    request.raw_input_contents.append(b"1234")
    with grpc.insecure_channel(server.endpoint) as channel, pytest.raises(grpc.RpcError) as caught:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "but there are 4" in caught.value.details()
    assert client.is_server_ready()


def test_a_call_that_the_server_does_not_have_is_said_to_be_unimplemented(client):
    with pytest.raises(InferenceServerException) as caught:
        client.get_inference_statistics()
    assert "UNIMPLEMENTED" in str(caught.value.status())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["ModelInfer", "ModelMetadata", "ModelConfig", "RepositoryIndex"]),
    data=st.binary(max_size=200),
)
def test_bytes_that_are_no_message_harm_nobody(server, client, method, data):
    with grpc.insecure_channel(server.endpoint) as channel:
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}", bytes, bytes)
        try:
            call(data, timeout=10)
        except grpc.RpcError as error:
            assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    assert client.is_server_ready()


def test_bytes_that_are_no_http_harm_nobody(server, client):
    host, port = server.endpoint.split(":")
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for data in (b"", b"\0" * 1000, b"GET / HTTP/1.1\r\n\r\n", preface + b"\xff" * 500, preface + os.urandom(20000)):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(data)
    client.infer("toy", [image()])


def test_a_port_in_use_is_said(server):
    port = int(server.endpoint.split(":")[1])
    with (
        pytest.raises(ConfigError, match=f"--port {port}: 127.0.0.1:{port} cannot be listened at: Address"),
        served(port=port),
    ):
        pass
    with pytest.raises(ConfigError, match="--metrics_port .* Address already in use"), served(metrics_port=port):
        pass


def test_the_standard_health_call_answers(server):
    with grpc.insecure_channel(server.endpoint) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "toy", "inference.GRPCInferenceService"):
            said = stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert said.status == health_pb2.HealthCheckResponse.SERVING


def test_what_happened_is_counted_on_a_port_of_its_own():
    with served(metrics_port=0) as server, stock.InferenceServerClient(server.endpoint) as client:
        for _ in range(3):
            client.infer("toy", [image()])
        with pytest.raises(InferenceServerException):
            client.infer("toy", [image(name="y")])
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
    received = next(float(line.split()[1]) for line in lines if line.startswith("teacher_received_bytes_total"))
    assert 3 * IMAGES.nbytes < received < 3 * IMAGES.nbytes + 1000
    for line in (
        *('teacher_requests_total{status="OK"} 3.0', 'teacher_requests_total{status="INVALID_ARGUMENT"} 1.0'),
        *("teacher_rows_total 6.0", "teacher_run_rows_count 3.0", "teacher_waiting_requests 0.0"),
    ):
        assert line in lines


def test_beyond_a_full_queue_requests_are_refused_and_those_in_it_answered():
    going, go = threading.Event(), threading.Event()

    def slow(inputs):
        going.set()
        assert go.wait(20)
        return toy(inputs)

    options = BatchOptions(max_rows=2, wait_seconds=0, capacity=2)
    with served(predictors=[slow], batches=options) as server, stock.InferenceServerClient(server.endpoint) as client:
        answers, came = [], threading.Semaphore(0)

        def take(result, error):
            answers.append((result, error))
            came.release()

        client.async_infer("toy", [image()], take)
        assert going.wait(10)
        for _ in range(4):
            client.async_infer("toy", [image()], take)
        assert came.acquire(timeout=10) and came.acquire(timeout=10)  # the two that do not fit are refused at once
        assert [str(error.status()) for _, error in answers] == ["StatusCode.RESOURCE_EXHAUSTED"] * 2
        go.set()
        assert all(came.acquire(timeout=10) for _ in range(3))
    assert all(result is not None for result, _ in answers[2:]) and len(answers) == 5


def test_a_model_that_fails_is_an_error_of_one_request_only():
    def fails(inputs):
        if np.isnan(inputs[0]).any():
            raise RuntimeError("no such picture")
        return toy(inputs)

    with served(predictors=[fails]) as server, stock.InferenceServerClient(server.endpoint) as client:
        with pytest.raises(InferenceServerException, match="the model failed: RuntimeError: no such picture"):
            client.infer("toy", [image(np.full_like(IMAGES, np.nan))])
        client.infer("toy", [image()])


def test_a_server_that_is_stopped_finishes_what_it_accepted_and_refuses_the_rest():
    going, go = threading.Event(), threading.Event()

    def slow(inputs):
        going.set()
        assert go.wait(20)
        return toy(inputs)

    answers, came = [], threading.Semaphore(0)

    def take(result, error):
        answers.append((result, error))
        came.release()

    serving = served(predictors=[slow])
    server = serving.__enter__()
    client = stock.InferenceServerClient(server.endpoint)
    client.async_infer("toy", [image()], take)
    assert going.wait(10)
    stopping = threading.Thread(target=serving.__exit__, args=(None, None, None))
    stopping.start()
    end = time.monotonic() + 10
    while client.is_server_ready():
        assert time.monotonic() < end
    with pytest.raises(InferenceServerException, match="the server is being stopped") as caught:
        client.infer("toy", [image()])
    assert "UNAVAILABLE" in str(caught.value.status())
    with grpc.insecure_channel(server.endpoint) as channel:
        said = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert said.status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert not answers
    go.set()
    assert came.acquire(timeout=10)
    stopping.join(20)
    assert not stopping.is_alive() and answers[0][0] is not None
    client.close()


def test_a_message_that_is_too_large_is_refused():
    with served(max_message_bytes=1 << 20) as server, stock.InferenceServerClient(server.endpoint) as client:
        with pytest.raises(InferenceServerException, match="larger than max"):
            client.infer("toy", [image(np.zeros([1, 3, 400, 400], np.float32))])
        client.infer("toy", [image()])
