"""Servers for tests: of toy models, in this process, on free ports."""

import asyncio
import contextlib
import threading
from dataclasses import replace

import numpy as np

from paddleseg_ext.service.server import ServerOptions, running
from paddleseg_ext.service.spec import ModelSpec, TensorSpec

SPEC = ModelSpec(
    *("toy", "1"),
    (TensorSpec("x", "FP32", (-1, 3, -1, -1), "img"),),
    (TensorSpec("fc_0.tmp_2", "FP32", (-1, 5, -1, -1), "prediction"), TensorSpec("label", "INT32", (-1, -1, -1))),
)


def toy(inputs):
    """Five classes from three channels, and which is the highest."""
    (x,) = inputs
    weights = np.linspace(-1, 1, 15, dtype=np.float32).reshape(5, 3)
    logits = np.einsum("kc,nchw->nkhw", weights, x)
    return [logits, logits.argmax(1).astype(np.int32)]


@contextlib.contextmanager
def served(spec=SPEC, predictors=(toy,), **options):
    """A server in a thread of its own; gives Running."""
    started, ended = threading.Event(), threading.Event()
    found = {}

    async def serve():
        found["loop"], found["stop"] = asyncio.get_running_loop(), asyncio.Event()
        async with running(spec, predictors, replace(ServerOptions(port=0), **options)) as server:
            found["server"] = server
            started.set()
            await found["stop"].wait()

    def run():
        try:
            asyncio.run(serve())
        except BaseException as error:
            found["error"] = error
        finally:
            started.set()
            ended.set()

    threading.Thread(target=run, daemon=True).start()
    assert started.wait(20)
    if "error" in found:
        raise found["error"]
    try:
        yield found["server"]
    finally:
        found["loop"].call_soon_threadsafe(found["stop"].set)
        assert ended.wait(40)
        if "error" in found:
            raise found["error"]
