"""A server of the Open Inference Protocol over gRPC for one model."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.service import formats, wire
from paddleseg_ext.service.batching import Batcher, BatchOptions, Predict
from paddleseg_ext.service.metrics import Metrics
from paddleseg_ext.service.security import Security
from paddleseg_ext.service.servicer import Servicer
from paddleseg_ext.service.spec import ModelSpec
from paddleseg_ext.service.vitals import Vitals

_log = logging.getLogger(__name__)

_LOOK = 0.5  # seconds between looks at how the model is


@dataclass(frozen=True)
class ServerOptions:
    """Where and how a model is served.

    host, port: 0 is any free port. security: TLS and token. form: how outputs travel. batches: how requests are put
    together. drain_seconds: how long what was accepted may take when the server is stopped. metrics_port: None for none.
    max_message_bytes: of one request; a larger one is refused. longest_run: seconds after which a model that is at work
    counts as one that hangs; no student waits for longer.
    """

    host: str = "127.0.0.1"
    port: int = 9292
    security: Security = field(default_factory=Security)
    form: formats.OutputForm = field(default_factory=formats.OutputForm)
    batches: BatchOptions = field(default_factory=BatchOptions)
    drain_seconds: float = 30.0
    metrics_port: int | None = None
    max_message_bytes: int = 1 << 29
    longest_run: float = 120.0


@dataclass(frozen=True)
class Running:
    """A server that answers.

    endpoint: `host:port`. spec: what a student gets of it. metrics_port: None for none. problem: says why it is not well, in
    words; empty where it is.
    """

    endpoint: str
    spec: ModelSpec
    metrics_port: int | None
    problem: Callable[[], str]


@contextlib.asynccontextmanager
async def running(spec: ModelSpec, predictors: Sequence[Predict], options: ServerOptions) -> AsyncIterator[Running]:
    """Serve a model while the context lasts.

    Health is NOT_SERVING while the model hangs or fails whatever it is asked; requests are taken all the same, as one that
    succeeds shows that it is well again. At its end the server refuses new requests, finishes those that it accepted, and goes.

    Args:
        spec: the model, with what its predictors give.
        predictors: each is run by a thread of its own.

    Raises:
        ConfigError: a port is in use, or a file of TLS is wrong.
    """
    credentials = options.security.server_credentials()
    waiting: list[Batcher] = []
    metrics = Metrics(lambda: sum(map(len, waiting)))
    batched = all(t.shape and t.shape[0] < 0 for t in (*spec.inputs, *spec.outputs))
    with metrics.shown(options.host, options.metrics_port) as metrics_port:
        server = _server(options)
        try:
            port = _bind(server, options, credentials)
        except BaseException:
            await server.stop(None)
            raise
        vitals = Vitals(options.longest_run)
        batcher = Batcher(predictors, options.batches, batched=batched, observe=metrics.ran, vitals=vitals)
        waiting.append(batcher)
        with ThreadPoolExecutor(2, "answers") as threads:
            servicer = Servicer(spec, batcher, options.form, metrics, threads)
            state = health.HealthServicer()
            servicer.add_to(server)
            health_pb2_grpc.add_HealthServicer_to_server(state, server)
            await server.start()
            names = ("", wire.SERVICE, spec.name)
            await _say(state, names, health_pb2.HealthCheckResponse.SERVING)
            watch = asyncio.ensure_future(_watch(state, names, vitals))
            try:
                yield Running(f"{options.host}:{port}", options.form.seen(spec), metrics_port, vitals.problem)
            finally:
                watch.cancel()
                servicer.draining = True
                await state.enter_graceful_shutdown()
                await servicer.finished(options.drain_seconds)
                await server.stop(5.0)  # for answers that are on their way
                await asyncio.get_running_loop().run_in_executor(None, batcher.close)


async def _say(state: Any, names: Sequence[str], status: int) -> None:
    for name in names:
        await state.set(name, status)


async def _watch(state: Any, names: Sequence[str], vitals: Vitals) -> None:
    """Keep the health service up to date."""
    well = True
    while True:
        await asyncio.sleep(_LOOK)
        problem = vitals.problem()
        if well and problem:
            _log.warning("not well: %s", problem)
            await _say(state, names, health_pb2.HealthCheckResponse.NOT_SERVING)
        elif not well and not problem:
            _log.info("well again")
            await _say(state, names, health_pb2.HealthCheckResponse.SERVING)
        well = not problem


def _server(options: ServerOptions) -> Any:
    settings = [
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # or a second server takes half of the first one's calls
    ]
    # Each call may hold a whole message before the queue sees it: so many, and as many small ones beside.
    calls = 2 * options.batches.capacity + 32
    return grpc.aio.server(interceptors=[_Gate(options.security)], options=settings, maximum_concurrent_rpcs=calls)


def check_port(options: ServerOptions) -> None:
    """Say that the address cannot be had, before much is done; gRPC says so in its own words, and late. Raises ConfigError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        place = f"{options.host}:{options.port}"
        raise ConfigError(f"--port {options.port}: {place} cannot be listened at: {error.strerror}") from None


def _bind(server: Any, options: ServerOptions, credentials: grpc.ServerCredentials | None) -> int:
    check_port(options)
    address = f"{options.host}:{options.port}"
    try:
        port = (
            server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        )
    except RuntimeError:
        port = 0
    if not port:
        raise ConfigError(f"--port {options.port}: {address} cannot be listened at")
    return port


class _Gate(grpc.aio.ServerInterceptor):
    """Lets calls with the token pass, and those that ask for health, which say nothing of the model."""

    def __init__(self, security: Security) -> None:
        self.security = security

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        open_to_all = details.method.startswith("/grpc.health.v1.Health/")
        if open_to_all or self.security.admits(details.invocation_metadata or ()):
            return await continuation(details)

        async def refuse(_request: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong")

        return grpc.unary_unary_rpc_method_handler(refuse)
