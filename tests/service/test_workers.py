"""A model in a process of its own: it answers, fails, dies and is replaced, and never outlives the server."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from paddleseg_ext.errors import ConfigError, UserError
from paddleseg_ext.service.workers import Worker
from tests.service.servers import SPEC, toy

ROOT = Path(__file__).resolve().parents[2]
IMAGES = np.random.default_rng(0).normal(size=(2, 3, 8, 6)).astype("float32")


def opened(kind="toy"):
    """A toy that gives the number of its process as its classes, or what is wrong."""
    if kind == "wrong":
        raise ConfigError("model.pdmodel: no model of Paddle's")
    if kind == "failed":
        raise ZeroDivisionError("one by nought")
    if kind == "dead":
        os._exit(3)

    def predict(inputs):
        if np.isnan(inputs[0]).any():
            raise ValueError("no such picture")
        if np.isinf(inputs[0]).any():
            os.kill(os.getpid(), signal.SIGKILL)
        logits, classes = toy(inputs)
        return [logits, np.full_like(classes, os.getpid())]

    return SPEC, predict


@pytest.fixture
def worker():
    worker = Worker(opened)
    yield worker
    worker.close()


def pid(worker):
    return int(worker([IMAGES])[1].flat[0])


def alive(number):
    try:
        with open(f"/proc/{number}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def gone(number, seconds=15):
    end = time.monotonic() + seconds
    while alive(number) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(number)


def test_it_answers_from_another_process_fails_alone_and_is_replaced_when_it_dies(worker):
    assert worker.spec() == SPEC
    np.testing.assert_array_equal(worker([IMAGES])[0], toy([IMAGES])[0])
    first = pid(worker)
    assert first != os.getpid()
    with pytest.raises(RuntimeError, match="ValueError: no such picture"):
        worker([np.full_like(IMAGES, np.nan)])
    assert pid(worker) == first
    with pytest.raises(RuntimeError, match="its process ended with code -9; another one is started"):
        worker([np.full_like(IMAGES, np.inf)])
    second = pid(worker)
    assert second != first and gone(first)
    worker.close()
    assert gone(second)


def test_arrays_of_every_size_come_through_and_are_the_callers_own(worker):
    kept = []
    for shape in ((1, 3, 4, 4), (4, 3, 300, 200), (2, 3, 5, 5), (8, 3, 400, 300)):
        images = np.random.default_rng(1).normal(size=shape).astype("float32")
        kept.append((images, worker([images])[0]))
        worker([images + 1])
    for images, logits in kept:
        np.testing.assert_array_equal(logits, toy([images])[0])
        logits[:] = 0


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("wrong", UserError, "^model.pdmodel: no model of Paddle's$"),
        ("failed", RuntimeError, "ZeroDivisionError: one by nought"),
        ("dead", UserError, "the process that opens the model ended with code 3"),
    ],
)
def test_a_model_that_cannot_be_opened_says_why(kind, error, message):
    worker = Worker(functools.partial(opened, kind))
    with pytest.raises(error, match=message):
        worker.spec()
    worker.close()


def test_a_server_that_is_killed_leaves_no_process():
    code = (
        "import time; from paddleseg_ext.service.workers import Worker; from tests.service import test_workers as t\n"
        "if __name__ == '__main__':\n print(t.pid(Worker(t.opened)), flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    child = int(server.stdout.readline())
    assert alive(child)
    server.kill()
    server.wait(10)
    server.stdout.close()
    assert gone(child)
