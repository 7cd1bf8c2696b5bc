"""A teacher in a process of its own: `python toy_server.py PORT SECONDS KIND`. It says READY, and ends with its parent.

Kinds: `double` is right, `nan` answers what cannot be, `other` serves another model.
"""

import asyncio
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402

from paddleseg_ext.service.formats import OutputForm  # noqa: E402
from paddleseg_ext.service.server import ServerOptions, running  # noqa: E402
from tests.service.teachers import SPEC, predictions  # noqa: E402


def predictor(seconds, kind):
    def predict(inputs):
        time.sleep(seconds)
        said = predictions(inputs[0])
        outputs = [said[output.alias] for output in SPEC.outputs]
        return [np.full_like(x, np.nan) for x in outputs] if kind == "nan" else outputs

    return predict


async def serve(port, seconds, kind):
    spec = replace(SPEC, name="other") if kind == "other" else SPEC
    options = ServerOptions(port=port, form=OutputForm("FP32"))
    async with running(spec, [predictor(seconds, kind)], options) as server:
        print("READY", server.endpoint, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]))
