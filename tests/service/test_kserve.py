"""Our client and another implementation of the protocol: KServe's Python server, from an environment of its own.

KSERVE_PYTHON names that environment's python (`pip install kserve`); without it there is nothing to run. KServe listens on every
address of the machine while the test lasts.
"""

import asyncio
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from paddleseg_ext.service.client import ClientOptions, connector
from paddleseg_ext.service.transport import TeacherUnavailable
from tests.service.redis_server import free_port

PYTHON = os.environ.get("KSERVE_PYTHON")


@pytest.mark.skipif(not PYTHON, reason="KSERVE_PYTHON names no environment with kserve")
def test_our_client_talks_to_kserves_server(tmp_path):
    port = free_port()
    script = Path(__file__).with_name("kserve_double.py")
    command = [PYTHON, str(script), "--grpc_port", str(port), "--http_port", str(free_port())]
    with (tmp_path / "log.txt").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            asyncio.run(ask(f"127.0.0.1:{port}"))
        finally:
            server.terminate()


async def ask(endpoint):
    teacher = connector(ClientOptions(model="double"))(endpoint)
    end = time.monotonic() + 60
    while True:
        try:
            spec = await teacher.describe(5)
            break
        except TeacherUnavailable:
            assert time.monotonic() < end
            await asyncio.sleep(0.2)
    assert [(t.name, t.datatype, t.shape) for t in spec.outputs] == [("y", "FP32", (-1, 2))]
    x = np.random.default_rng(0).random((4, 2), np.float32)
    answers = await asyncio.gather(*(teacher.infer({"x": x + i}, ["y"], 10) for i in range(20)))
    for i, answer in enumerate(answers):
        np.testing.assert_array_equal(answer["y"], 2 * (x + i))
    await teacher.close()
