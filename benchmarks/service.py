"""What teachers on other ports cost a student, with teachers that only wait. Prints JSON with --json, else lines.

python benchmarks/service.py --json
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from paddleseg_ext.service import wire
from paddleseg_ext.service.client import ClientOptions, GrpcTransport
from paddleseg_ext.service.formats import OutputForm
from paddleseg_ext.service.reader import DistillReader
from paddleseg_ext.service.server import ServerOptions, running
from paddleseg_ext.service.spec import ModelSpec, TensorSpec
from paddleseg_ext.service.teacher import IN_FLIGHT

IMAGES = {"digits": (1, 28, 28), "street": (3, 256, 512)}
LOGITS = {"digits": (10,), "street": (19, 64, 128)}
BATCH = {"digits": 32, "street": 2}


def spec(kind):
    image = TensorSpec("img", "FP32", (-1, *IMAGES[kind]), "img")
    return ModelSpec(kind, "1", (image,), (TensorSpec("logits", "FP32", (-1, *LOGITS[kind]), "prediction"),))


async def teach(kind, seconds, port):
    """A teacher that answers the same after `seconds` for a batch; it ends with its parent."""
    answer = np.random.default_rng(0).normal(0, 3, (64, *LOGITS[kind])).astype("float16")

    def predict(inputs):
        time.sleep(seconds * len(inputs[0]) / BATCH[kind])
        return [answer[: len(inputs[0])]]

    async with running(spec(kind), [predict], ServerOptions(port=port)) as server:
        print(server.endpoint, flush=True)
        await asyncio.to_thread(sys.stdin.read)


@contextlib.contextmanager
def teachers(count, kind, seconds, port=0):
    command = [sys.executable, str(Path(__file__).resolve()), "--teach", kind, str(seconds), str(port)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(count)]
    try:
        yield [(process.stdout.readline().strip(), process) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def batches(kind, count):
    images = np.random.default_rng(0).normal(0, 1, (BATCH[kind], *IMAGES[kind])).astype("float32")
    labels = np.zeros(BATCH[kind], "int64")
    return ((images, labels) for _ in range(count))


def reader(endpoints, kind, count):
    made = DistillReader(["img", "label"], ["prediction"])
    made.set_fixed_teacher(endpoints)
    return made.set_batch_generator(lambda: batches(kind, count))


def seconds_of(iterable, step=0.0, warm=0):
    """For all but the first `warm`, in a loop that takes `step` for each."""
    source = iter(iterable)
    for _ in itertools.islice(source, warm):
        time.sleep(step)
    began = time.perf_counter()
    for _ in source:
        time.sleep(step)
    return time.perf_counter() - began


def throughput(count):
    """Samples per second with 1, 2 and 4 teachers of 150 ms a batch, as a ratio to plain training at 80 ms a step."""
    step, latency, found = 0.08, 0.15, {}
    plain = count / seconds_of(batches("street", count), step)
    for number in (1, 2, 4):
        with teachers(number, "street", latency) as started:
            endpoints = [endpoint for endpoint, _ in started]
            rate = count / seconds_of(reader(endpoints, "street", count + 10)(), step, warm=10)
        found[f"{number} teachers"] = {
            "ratio": round(rate / plain, 3),
            "possible": round(min(1.0, number * step / latency), 3),
        }
    return {"plain samples/s": round(plain * BATCH["street"], 1), **found}


def payload():
    """Bytes of one answer for one image of 512x1024 with 19 classes, by form and resolution."""
    full = spec("street").outputs[0]
    found = {}
    for part, shape in (("full size", (512, 1024)), ("1/4", (128, 256)), ("1/8", (64, 128))):
        logits = np.random.default_rng(0).normal(0, 3, (1, 19, *shape)).astype("float32")
        for name, form in (("fp32", OutputForm("FP32")), ("fp16", OutputForm()), ("fp16 top 3", OutputForm("FP16", 3))):
            message = wire.Message(wire.pb.ModelInferResponse(model_name="street", id="1"))
            for output, x in form.convert(full, logits).items():
                message.header.outputs.add(name=output, datatype=wire.datatype(x.dtype), shape=x.shape)
                message.raw.append(wire.raw(x))
            found[f"{part}, {name}"] = len(wire.write_response(message))
    whole = found["full size, fp32"]
    return {name: {"bytes": size, "times smaller": round(whole / size, 1)} for name, size in found.items()}


def recovery():
    """Seconds without a batch when one of two teachers is killed, and when all are and one starts anew on the same port."""
    gaps, step = {}, 0.02

    def longest(epoch, act):
        last, worst = time.perf_counter(), 0.0
        for number, _ in enumerate(epoch):
            worst, last = max(worst, time.perf_counter() - last), time.perf_counter()
            if number == 50:
                act()
            time.sleep(step)
            last = time.perf_counter()
        return worst

    with teachers(2, "street", 0.02) as two:
        epoch = reader([endpoint for endpoint, _ in two], "street", 150)()
        gaps["one of two killed"] = round(longest(epoch, two[0][1].kill), 3)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with contextlib.ExitStack() as stack:
        [(endpoint, first)] = stack.enter_context(teachers(1, "street", 0.02, port))
        started = []

        def again():
            first.kill()
            first.wait()

            def start():
                stack.enter_context(teachers(1, "street", 0.02, port))
                started.append(time.perf_counter())

            threading.Thread(target=start).start()

        ready_to_batch = []
        epoch = reader([endpoint], "street", 150)()
        for number, _ in enumerate(epoch):
            if started and not ready_to_batch:
                ready_to_batch.append(time.perf_counter() - started[0])
            if number == 50:
                again()
            time.sleep(step)
        gaps["all killed: from the new one's start to a batch"] = round(ready_to_batch[0], 3)
    return gaps


async def bare(endpoint, kind, count):
    """Seconds of the same requests by nothing but gRPC, as many at once."""
    transport = GrpcTransport(endpoint, ClientOptions(), None)
    model = await transport.describe(10)
    message = wire.Message(wire.pb.ModelInferRequest(model_name=model.name, id="1"))
    numbers = iter(range(count))
    given = [images for images, _ in batches(kind, 1)][0]
    message.header.inputs.add(name="img", datatype="FP32", shape=given.shape)
    message.header.outputs.add(name="logits")

    async def work():
        for _ in numbers:
            message_now = wire.Message(message.header, [wire.raw(given)])
            await transport._infer(message_now, timeout=30)

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
    seconds = time.perf_counter() - began
    await transport.close()
    return seconds


def overhead(counts, repeats=5):
    """Time of an epoch with a teacher that takes no time, over that of a bare gRPC loop: the median of several."""
    found = {}
    for kind, count in counts.items():
        with teachers(1, kind, 0) as [(endpoint, _)]:
            asyncio.run(bare(endpoint, kind, count))
            pairs = []
            for _ in range(repeats):
                alone = asyncio.run(bare(endpoint, kind, count))
                pairs.append((seconds_of(reader([endpoint], kind, count + 20)(), warm=20), alone))
        found[kind] = {
            "bare ms a batch": round(1e3 * statistics.median(b for _, b in pairs) / count, 3),
            "reader ms a batch": round(1e3 * statistics.median(r for r, _ in pairs) / count, 3),
            "ratio": round(statistics.median(r / b for r, b in pairs), 2),
        }
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", nargs="+", choices=("throughput", "payload", "recovery", "overhead"))
    parser.add_argument("--teach", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.teach:
        asyncio.run(teach(args.teach[0], float(args.teach[1]), int(args.teach[2])))
        return
    parts = {
        "throughput": lambda: throughput(60),
        "payload": payload,
        "recovery": recovery,
        "overhead": lambda: overhead({"digits": 600, "street": 150}),
    }
    found = {name: measure() for name, measure in parts.items() if not args.only or name in args.only}
    if args.json:
        print(json.dumps(found, indent=1))
        return
    for name, figures in found.items():
        print(name)
        for key, value in figures.items():
            print(f"  {key}: {value}")


if __name__ == "__main__":
    main()
