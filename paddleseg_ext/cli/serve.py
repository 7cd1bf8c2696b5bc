"""Serves an exported model to students: the Open Inference Protocol over gRPC.

python -m paddleseg_ext.cli.serve --model output/inference_model --port 9292
"""

import argparse
import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from paddleseg_ext.cli import args as flags
from paddleseg_ext.cli.registration import add_registration, registration
from paddleseg_ext.cli.screen import start_logging, user_errors
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.inference.predictor import ENGINES, PredictorOptions, open_predictor
from paddleseg_ext.service.batching import BatchOptions, Predict
from paddleseg_ext.service.formats import OutputForm
from paddleseg_ext.service.security import Security
from paddleseg_ext.service.server import Running, ServerOptions, check_port, running
from paddleseg_ext.service.serving_files import ServedFolder, read_folder
from paddleseg_ext.service.spec import ModelSpec
from paddleseg_ext.service.workers import Worker

_DATATYPES = {"fp16": "FP16", "bf16": "BF16", "fp32": "FP32"}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    start_logging(0)
    with user_errors():
        options = server_options(args)
        options.security.server_credentials()  # what is wrong is said before a model is loaded
        check_port(options)
        folder = read_folder(args.model)
        registered = registration(args)
        workers = [
            Worker(partial(open_predictor, folder.model, folder.params, predictor, options.form.datatype))
            for predictor in predictors(args, folder)
        ]
        try:
            spec, predict = arranged(folder, args.name, workers)
            asyncio.run(serve(spec, predict, options, registered))
        finally:
            for worker in workers:
                worker.close()
    print("stopped")


def _parser() -> argparse.ArgumentParser:
    parser = flags.parser("Serve an exported model to students.")
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder with an exported model")
    add("--name", help="of the model, which students may ask for; default: serving.yml's, else the folder's")
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 is every one of this machine")
    add("--port", type=int, default=9292, help="port to listen at; 0 is any free one")
    add("--thread", type=flags.positive, default=1, help="predictors that run at once, each a process with the model")
    add("--gpu_ids", default="", help="numbers of the cards to use, such as 0,1; at least one predictor on each")
    add("--engine", choices=ENGINES, help="what runs the model; default: paddle, for an ONNX file openvino")
    add(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="of the model: bf16 on a CPU, fp16 on a GPU",
    )
    add("--mem_optim", type=_yes, nargs="?", const=True, default=True, help="let the model's tensors share memory")
    add("--output_dtype", choices=sorted(_DATATYPES), default="fp16", help="of floating-point outputs on their way")
    add(
        "--top_k", type=int, default=0, help="send only the highest so many classes, and the mean of the others; 0: all"
    )
    add("--max_batch_size", type=flags.positive, default=16, help="most rows that the model runs at once")
    add("--batch_timeout_ms", type=float, default=1.0, help="how long a run that is not full waits for more requests")
    add("--queue_size", type=flags.positive, default=64, help="requests that may wait; further ones are refused")
    add("--metrics_port", type=int, help="port of Prometheus metrics at --host; 0 is any free one; default: none")
    add_registration(parser)
    flags.add_security(parser)
    return parser


def server_options(args: argparse.Namespace) -> ServerOptions:
    """From the flags. Raises ConfigError."""
    for name in ("port", "metrics_port"):
        if not 0 <= (getattr(args, name) or 0) < 2**16:
            raise ConfigError(f"--{name} {getattr(args, name)}: a port is from 0 to 65535")
    for name in ("top_k", "batch_timeout_ms"):
        if getattr(args, name) < 0:
            raise ConfigError(f"--{name} {getattr(args, name)}: at least 0 is expected")
    return ServerOptions(
        *(args.host, args.port),
        security=Security.of(args.tls_cert, args.tls_key, args.tls_ca, args.token_file),
        form=OutputForm(_DATATYPES[args.output_dtype], args.top_k),
        batches=BatchOptions(args.max_batch_size, args.batch_timeout_ms / 1e3, args.queue_size),
        metrics_port=args.metrics_port,
    )


def predictors(args: argparse.Namespace, folder: ServedFolder) -> list[PredictorOptions]:
    """How each predictor runs the model: the cards in turn, or an equal share of the CPU's cores. Raises ConfigError."""
    words = [word for word in args.gpu_ids.split(",") if word.strip()]
    if not all(word.strip().isdecimal() for word in words):
        raise ConfigError(f"--gpu_ids {args.gpu_ids}: numbers with commas between them are expected, such as 0,1")
    cards: list[int | None] = [int(word) for word in words] or [None]
    count = max(args.thread, len(cards))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(cores // count, 1)
    options = [
        PredictorOptions(args.engine or "", args.precision, cards[i % len(cards)], threads, args.mem_optim)
        for i in range(count)
    ]
    return [option.checked(folder.model) for option in options]


def arranged(folder: ServedFolder, name: str | None, workers: Sequence[Worker]) -> tuple[ModelSpec, list[Predict]]:
    """The model as its folder says it, and predictors with inputs and outputs in that order. Raises ConfigError."""
    own = [worker.spec() for worker in workers][0]
    spec = folder.joined(ModelSpec(folder.model.parent.resolve().name, "1", own.inputs, own.outputs))
    inputs = [[t.name for t in spec.inputs].index(t.name) for t in own.inputs]
    outputs = [[t.name for t in own.outputs].index(t.name) for t in spec.outputs]

    def predictor(worker: Worker) -> Predict:
        def predict(arrays: Sequence[Any]) -> list[Any]:
            given = worker([arrays[i] for i in inputs])
            return [given[i] for i in outputs]

        return predict

    named = ModelSpec(name or spec.name, spec.version, spec.inputs, spec.outputs)
    return named, [predictor(worker) for worker in workers]


async def serve(
    spec: ModelSpec,
    predict: Sequence[Predict],
    options: ServerOptions,
    registered: Callable[[Running], contextlib.AbstractAsyncContextManager] = lambda server: contextlib.nullcontext(),
) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what was accepted. `registered` lasts while requests are taken."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def end(*_: object) -> None:
        with contextlib.suppress(RuntimeError):  # a second signal, when the loop has ended already
            loop.call_soon_threadsafe(stop.set)

    async with running(spec, predict, options) as server:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        async with registered(server):
            _show(server)
            await stop.wait()
        print("stopping: what was accepted is finished", flush=True)


def _show(server: Running) -> None:
    spec = server.spec
    print(
        f"serving {spec.name} at {server.endpoint}"
        + ("" if server.metrics_port is None else f", metrics at port {server.metrics_port}")
    )
    for kind, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        for t in tensors:
            alias = f" ({t.alias})" if t.alias != t.name else ""
            print(f"  {kind} {t.name}{alias}: {t.datatype} {list(t.shape)}")
    print("ready", flush=True)


def _yes(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"True or False is expected, but got {text}")
    return text.lower() in ("true", "1")


if __name__ == "__main__":
    main()
