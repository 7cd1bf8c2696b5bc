"""The curves and pictures of a run open in VisualDL: its server is started on the run's folder and asked."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest

SECONDS = 60  # until the server answers


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def ask(runs):
    """Asks the server of `visualdl --logdir distilled`; gives the bytes of an answer."""
    port = free_port()
    program = Path(sys.executable).with_name("visualdl")
    server = subprocess.Popen(
        [str(program), "--logdir", "distilled", "--host", "127.0.0.1", "--port", str(port)],
        **{"cwd": runs.folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL},
    )

    def get(method, **arguments):
        url = f"http://127.0.0.1:{port}/app/api/{method}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.read()

    try:
        deadline = time.monotonic() + SECONDS
        while True:
            assert server.poll() is None, "visualdl ended"
            try:
                get("runs")
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                assert time.monotonic() < deadline, "visualdl does not answer"
                time.sleep(0.1)
        yield get
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def data(ask, method, **arguments):
    answer = json.loads(ask(method, **arguments))
    assert answer["status"] == 0, answer
    return answer["data"]


def curve(ask, tag):
    """Points (iteration, value)."""
    (run,) = data(ask, "runs")
    return [(int(point[1]), point[2]) for point in data(ask, "scalar/list", run=run, tag=tag)]


def test_every_loss_has_its_curve_with_the_values_of_the_records(runs, ask):
    records = runs.records("train", "distilled")
    for name in set(records[0]) - {"kind", "iter"}:
        points = curve(ask, f"Train/{name}")
        assert [i for i, _ in points] == [r["iter"] for r in records]
        np.testing.assert_allclose([v for _, v in points], [r[name] for r in records], rtol=1e-5)


def test_the_miou_has_its_curve(runs, ask):
    points = curve(ask, "Evaluate/mIoU")
    assert points == [(r["iter"], pytest.approx(r["mIoU"], rel=1e-5)) for r in runs.records("eval", "distilled")]


def test_the_pictures_are_those_of_the_run(runs, ask):
    (run,) = data(ask, "runs")
    answer = ask("image/image", run=run, tag="Pictures/0", index=len(runs.records("eval", "distilled")) - 1)
    shown = cv2.imdecode(np.frombuffer(answer, np.uint8), cv2.IMREAD_COLOR)
    written = cv2.imread(str(runs.folder / "distilled/pictures/iter_8.png"))
    assert np.array_equal(shown, written[: shown.shape[0], : shown.shape[1]])
