"""DistillReader over real servers in this process: teachers that do not fit, that are restarted."""

import logging
import threading
import time
from dataclasses import replace

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paddleseg_ext.service import health
from paddleseg_ext.service.batching import BatchOptions
from paddleseg_ext.service.reader import DistillReader
from tests.service.servers import SPEC, served, toy
from tests.service.teachers import until


def slow(inputs):
    time.sleep(0.01)
    return toy(inputs)


def numbered():
    """Batches without end."""
    number = 0
    while True:
        yield (np.full((1, 3, 4, 4), number, "float32"),)
        number += 1


@pytest.mark.parametrize(
    "change", [{"name": "image", "alias": "image"}, {"shape": (-1, 3, 8, 8)}, {"datatype": "INT32"}]
)
def test_a_teacher_that_takes_another_input_is_left_out_and_costs_no_sample(change, caplog):
    other = replace(SPEC, inputs=(replace(SPEC.inputs[0], **change),))
    reader = DistillReader(["x"], ["prediction"])
    with served(predictors=(slow,)) as right, served(spec=other) as wrong, caplog.at_level(logging.WARNING):
        reader.set_fixed_teacher(right.endpoint)
        epoch = reader.set_batch_generator(numbered)
        next(epoch())  # the model is settled
        reader.set_fixed_teacher([right.endpoint, wrong.endpoint])
        end = time.monotonic() + 20
        for number, (x, prediction) in enumerate(epoch()):
            np.testing.assert_allclose(prediction, toy([x])[0], rtol=1e-2, atol=1e-2)
            assert x[0, 0, 0, 0] == number and time.monotonic() < end
            if f"teacher {wrong.endpoint} is left out" in caplog.text:
                break
    assert f"{wrong.endpoint}: 'toy' has the inputs" in caplog.text


def test_a_teacher_that_is_stopped_and_started_again_is_back_as_soon_as_it_is_there(monkeypatch):
    """While it finishes what it accepted it has no model that is ready, which is not wrong of it."""
    monkeypatch.setattr(health, "_FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(health, "_LAST_BACKOFF", 0.05)
    failures, going, permits = [], threading.Semaphore(0), threading.Semaphore(2)
    failed = health.Health._failed
    monkeypatch.setattr(health.Health, "_failed", lambda *given: (failures.append(given[-1]), failed(*given))[1])

    def held(inputs):
        going.release()
        assert permits.acquire(timeout=20)
        return toy(inputs)

    serving = served(predictors=(held, held), batches=BatchOptions(max_rows=1))
    first = serving.__enter__()
    reader = DistillReader(["x"], ["prediction"])
    reader.set_fixed_teacher(first.endpoint)
    epoch = reader.set_batch_generator(numbered)()
    next(epoch), next(epoch)
    assert all(going.acquire(timeout=10) for _ in range(4))  # two are at work
    stopping = threading.Thread(target=serving.__exit__, args=(None, None, None))
    stopping.start()
    with grpc.insecure_channel(first.endpoint) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        until(lambda: check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.NOT_SERVING)
    permits.release()  # its answer makes room for a request that is refused
    until(lambda: len(failures) > 6)
    permits.release(10)
    stopping.join(20)
    with served(port=int(first.endpoint.rpartition(":")[2])):
        began = time.monotonic()
        for _ in range(40):  # more than are read ahead
            next(epoch)
        assert time.monotonic() - began < 10
        epoch.close()
    assert any("no model of its is ready" in problem for problem in failures), failures


def test_a_right_answer_ends_the_time_for_which_a_teacher_is_left_out():
    teacher = health.Health()
    for _ in range(3):
        teacher.wrong(100.0, "t:1: wrong")
    assert teacher.left_out and teacher.retry_at > 150
    teacher.answered(0.1, 1)
    assert not teacher.left_out and teacher.retry_at <= 100
