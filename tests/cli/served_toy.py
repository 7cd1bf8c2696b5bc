"""A ToyNet of width 16 as a teacher on another port: `python served_toy.py PORT WEIGHTS CLASSES`.

It says READY, gives the logits before their last resize and what `conv1` returns, and ends with its parent.
"""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import paddle  # noqa: E402

from paddleseg_ext.models.safe_load import safe_load  # noqa: E402
from paddleseg_ext.service.formats import OutputForm  # noqa: E402
from paddleseg_ext.service.server import ServerOptions, running  # noqa: E402
from paddleseg_ext.service.spec import ModelSpec, TensorSpec  # noqa: E402
from tests.cli.launch import ToyNet  # noqa: E402


def predictor(weights, classes):
    model = ToyNet(classes, width=16, norm=True, dropout=0.5)
    model.set_state_dict(safe_load(weights))
    model.eval()

    @paddle.no_grad()
    def predict(inputs):
        first = model.conv1(paddle.to_tensor(inputs[0]))
        logits = model.conv2(paddle.nn.functional.relu(model.norm(first)))
        return [logits.numpy(), first.numpy()]

    return predict


async def serve(port, weights, classes):
    image = TensorSpec("x", "FP32", (-1, 3, -1, -1))
    outputs = [("logits", classes), ("conv1", 16)]
    spec = ModelSpec("toy", "1", (image,), tuple(TensorSpec(n, "FP32", (-1, c, -1, -1)) for n, c in outputs))
    options = ServerOptions(port=port, form=OutputForm("FP32"))
    async with running(spec, [predictor(weights, classes)], options) as server:
        print("READY", server.endpoint, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
