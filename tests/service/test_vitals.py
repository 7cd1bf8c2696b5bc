"""A model that hangs or always fails: its server says so, gives up its lease, and takes it again when it is well."""

import threading
from contextlib import closing, contextmanager

import grpc
import numpy as np
import pytest
import tritonclient.grpc as stock
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from paddleseg_ext.service import server, vitals
from paddleseg_ext.service.client import connector
from paddleseg_ext.service.liveness import NetworkTeacher, NotServing
from paddleseg_ext.service.registrar import Registrar
from paddleseg_ext.service.registry import Registry, StoreOptions
from paddleseg_ext.service.vitals import Vitals
from tests.service.redis_server import redis_server
from tests.service.servers import served, toy
from tests.service.teachers import until

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(server, "_LOOK", 0.02)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_run_that_takes_too_long_is_a_problem_until_something_comes_of_a_run():
    clock = Clock()
    one = Vitals(10.0, clock)
    assert not one.problem()
    with one.run():
        clock.now = 9.0
        assert not one.problem()
        clock.now = 11.0
        assert one.problem() == "the model has been at work for 11 s"
        one.succeeded()  # of another predictor
        assert not one.problem()
        clock.now = 22.0
        assert one.problem()
    assert not one.problem()


def test_requests_that_all_fail_are_a_problem_until_one_succeeds_or_all_had_a_rest():
    clock = Clock()
    one = Vitals(10.0, clock)
    for ends in (one.succeeded, lambda: setattr(clock, "now", clock.now + vitals._REST)):
        for _ in range(vitals._FAILED):
            assert not one.problem()
            one.failed(ValueError("no memory"))
        assert one.problem() == "the model failed 3 times in a row, at last with ValueError: no memory"
        ends()
        assert not one.problem()


def request():
    given = stock.InferInput("x", [1, 3, 4, 4], "FP32")
    given.set_data_from_numpy(np.ones([1, 3, 4, 4], "float32"))
    return given


@contextmanager
def asked(endpoint):
    """A client, and what the health service says."""
    with stock.InferenceServerClient(endpoint) as client, grpc.insecure_channel(endpoint) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        yield client, lambda: {check(health_pb2.HealthCheckRequest(service=n)).status for n in ("", "toy")}


class Hanging:
    def __init__(self):
        self.go = threading.Event()

    def __call__(self, inputs):
        assert self.go.wait(20)
        return toy(inputs)


def test_a_server_whose_model_hangs_is_not_well_until_it_answers():
    model = Hanging()
    with served(predictors=[model], longest_run=0.1) as teacher, asked(teacher.endpoint) as (client, health):
        assert health() == {SERVING} and client.is_server_ready() and not teacher.problem()
        came = threading.Event()
        client.async_infer("toy", [request()], lambda result, error: came.set())
        until(lambda: health() == {NOT_SERVING})
        assert not client.is_server_ready() and not client.is_model_ready("toy") and teacher.problem()
        model.go.set()
        assert came.wait(10)
        until(lambda: health() == {SERVING})
        assert client.is_server_ready() and not teacher.problem()


def test_a_server_whose_model_always_fails_is_not_well_until_it_succeeds():
    broken = [True]

    def fails(inputs):
        if broken[0]:
            raise RuntimeError("no memory")
        return toy(inputs)

    with served(predictors=[fails]) as teacher, asked(teacher.endpoint) as (client, health):
        for _ in range(vitals._FAILED):
            assert health() == {SERVING}
            with pytest.raises(InferenceServerException, match="no memory"):
                client.infer("toy", [request()])
        until(lambda: health() == {NOT_SERVING})
        with (
            NetworkTeacher(teacher.endpoint, connector()) as watched,
            pytest.raises(NotServing, match="says that it does not serve"),
        ):
            watched.describe(5)
        broken[0] = False
        client.infer("toy", [request()])
        until(lambda: health() == {SERVING})


def test_a_teacher_that_hangs_loses_its_lease_and_has_it_again_when_it_answers():
    model = Hanging()
    with (
        redis_server() as redis,
        closing(Registry(StoreOptions((redis.endpoint,), lease=0.6))) as registry,
        served(predictors=[model], longest_run=0.1) as teacher,
        asked(teacher.endpoint) as (client, _),
        NetworkTeacher(teacher.endpoint, connector()) as watched,
        Registrar(registry, "seg", teacher.endpoint, watched) as registrar,
    ):
        registrar.wait(10)
        client.async_infer("toy", [request()], lambda result, error: None)
        until(lambda: not registry.visit("seg").teachers)
        model.go.set()
        until(lambda: registry.visit("seg").teachers)
