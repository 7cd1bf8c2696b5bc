"""A server of the Open Inference Protocol over gRPC for one model."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from tritonclient.grpc import model_config_pb2, service_pb2_grpc
from tritonclient.grpc import service_pb2 as pb

from paddleseg_ext.errors import ConfigError, closest
from paddleseg_ext.service import formats, wire
from paddleseg_ext.service.batching import Batcher, BatchOptions, Closed, Predict, QueueFull
from paddleseg_ext.service.metrics import Metrics
from paddleseg_ext.service.security import Security
from paddleseg_ext.service.spec import ModelSpec, TensorSpec, find

_log = logging.getLogger(__name__)
_LARGEST = 1 << 30  # bytes of one request


@dataclass(frozen=True)
class ServerOptions:
    """Where and how a model is served.

    host, port: 0 is any free port. security: TLS and token. form: how outputs travel. batches: how requests are put
    together. drain_seconds: how long what was accepted may take when the server is stopped. metrics_port: None for none.
    """

    host: str = "127.0.0.1"
    port: int = 9292
    security: Security = field(default_factory=Security)
    form: formats.OutputForm = field(default_factory=formats.OutputForm)
    batches: BatchOptions = field(default_factory=BatchOptions)
    drain_seconds: float = 30.0
    metrics_port: int | None = None


@dataclass(frozen=True)
class Running:
    """A server that answers. endpoint: `host:port`. spec: what a student gets of it. metrics_port: None for none."""

    endpoint: str
    spec: ModelSpec
    metrics_port: int | None


@contextlib.asynccontextmanager
async def running(spec: ModelSpec, predictors: Sequence[Predict], options: ServerOptions) -> AsyncIterator[Running]:
    """Serve a model while the context lasts.

    At its end the server refuses new requests, finishes those that it accepted, and goes.

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
        batcher = Batcher(predictors, options.batches, batched=batched, observe=metrics.ran)
        waiting.append(batcher)
        with ThreadPoolExecutor(2, "answers") as threads:
            servicer = Servicer(spec, batcher, options.form, metrics, threads)
            state = health.HealthServicer()
            servicer.add_to(server)
            health_pb2_grpc.add_HealthServicer_to_server(state, server)
            await server.start()
            for name in ("", wire.SERVICE, spec.name):
                await state.set(name, health_pb2.HealthCheckResponse.SERVING)
            try:
                yield Running(f"{options.host}:{port}", options.form.seen(spec), metrics_port)
            finally:
                servicer.draining = True
                await state.enter_graceful_shutdown()
                await servicer.finished(options.drain_seconds)
                await server.stop(1.0)
                await asyncio.get_running_loop().run_in_executor(None, batcher.close)


def _server(options: ServerOptions) -> Any:
    settings = [
        ("grpc.max_receive_message_length", _LARGEST),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # or a second server takes half of the first one's calls
    ]
    return grpc.aio.server(interceptors=[_Gate(options.security)], options=settings)


def _bind(server: Any, options: ServerOptions, credentials: grpc.ServerCredentials | None) -> int:
    address = f"{options.host}:{options.port}"
    try:
        port = (
            server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        )
    except RuntimeError:
        port = 0
    if not port:
        raise ConfigError(f"--port {options.port}: {address} is in use or is no address of this machine")
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


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """The protocol's calls for one model."""

    def __init__(
        self, spec: ModelSpec, batcher: Batcher, form: formats.OutputForm, metrics: Metrics, threads: ThreadPoolExecutor
    ) -> None:
        self.spec, self.form, self.draining = form.seen(spec), form, False
        self._model, self._batcher, self._metrics, self._threads = spec, batcher, metrics, threads
        self._sent, self._extras = form.sent(spec)
        self._accepted: set[asyncio.Task] = set()

    def add_to(self, server: Any) -> None:
        """Register the calls; ModelInfer goes round protobuf, see `wire`."""
        infer = grpc.unary_unary_rpc_method_handler(self.infer, request_deserializer=bytes, response_serializer=bytes)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(wire.SERVICE, {"ModelInfer": infer}),))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, server)

    async def finished(self, seconds: float) -> None:
        """Wait for what was accepted, so long at most."""
        if self._accepted:
            await asyncio.wait(self._accepted, timeout=seconds)

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return pb.ServerReadyResponse(ready=not self.draining)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        ready = not self.draining and self._has(request.name, request.version)
        return pb.ModelReadyResponse(ready=ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        extensions = ["model_repository", "model_configuration"]
        return pb.ServerMetadataResponse(name="paddleseg_ext", version="1", extensions=extensions)

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        said = pb.RepositoryIndexResponse()
        if not (request.ready and self.draining):
            state = "UNAVAILABLE" if self.draining else "READY"
            said.models.add(name=self.spec.name, version=self.spec.version, state=state)
        return said

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        await self._check_model(request.name, request.version, context)
        said = pb.ModelMetadataResponse(name=self.spec.name, versions=[self.spec.version], platform="paddle")
        for tensors, specs in ((said.inputs, self._sent.inputs), (said.outputs, self._sent.outputs)):
            for spec in specs:
                tensors.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        return said

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        await self._check_model(request.name, request.version, context)
        said = model_config_pb2.ModelConfig(name=self.spec.name, backend="paddle")
        for tensors, specs in ((said.input, self._sent.inputs), (said.output, self._sent.outputs)):
            for spec in specs:
                # max_batch_size is left at 0: dimensions are complete, the batch is the first.
                kind = model_config_pb2.DataType.Value(f"TYPE_{spec.datatype}")
                tensors.add(name=spec.name, data_type=kind, dims=spec.shape)
        said.parameters[formats.PARAMETER].string_value = self._extras.write()
        return pb.ModelConfigResponse(config=said)

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """For the stream; single calls come to `infer`."""
        return pb.ModelInferResponse.FromString(await self.infer(request.SerializeToString(), context))

    async def infer(self, data: bytes, context: Any) -> bytes:
        """ModelInfer from bytes to bytes."""
        began, status = time.perf_counter(), "INTERNAL"
        task = asyncio.current_task()
        assert task is not None
        self._accepted.add(task)
        try:
            answer = await self._answered(data)
            status = "OK"
            return answer
        except _Refused as refused:
            status = refused.code.name
            await context.abort(refused.code, str(refused))
            raise AssertionError from None
        except asyncio.CancelledError:
            status = "CANCELLED"
            raise
        finally:
            self._accepted.discard(task)
            self._metrics.requests.labels(status).inc()
            self._metrics.latency.observe(time.perf_counter() - began)

    async def _answered(self, data: bytes) -> bytes:
        if self.draining:
            raise _Refused(grpc.StatusCode.UNAVAILABLE, "the server is being stopped")
        try:
            message = wire.read_request(data)
            self._check_name(message.header.model_name, message.header.model_version)
            inputs = self._inputs(message)
            wanted = self._wanted(message.header)
        except wire.MalformedMessage as error:
            raise _Refused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
        self._metrics.received.inc(sum(x.nbytes for x in inputs))
        try:
            future = self._batcher.submit(inputs)
        except QueueFull:
            text = f"{self._batcher.options.capacity} requests wait already"
            raise _Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, text) from None
        except Closed:
            raise _Refused(grpc.StatusCode.UNAVAILABLE, "the server is being stopped") from None
        try:
            outputs = await asyncio.wrap_future(future)
        except Exception as error:
            _log.exception("the model failed")
            text = f"the model failed: {type(error).__name__}: {error}"
            raise _Refused(grpc.StatusCode.INTERNAL, " ".join(text.split())[:500]) from None
        header = message.header
        write = lambda: self._written(header, outputs, wanted)  # noqa: E731
        answer = await asyncio.get_running_loop().run_in_executor(self._threads, write)
        self._metrics.rows.inc(inputs[0].shape[0] if inputs[0].ndim else 1)
        self._metrics.sent.inc(len(answer))
        return answer

    def _inputs(self, message: wire.Message[pb.ModelInferRequest]) -> list[np.ndarray]:
        """The model's inputs in its order. Raises MalformedMessage."""
        given: dict[str, np.ndarray] = {}
        for name, x in wire.arrays(message, message.header.inputs).items():
            spec = find(self.spec.inputs, name)
            if spec is None:
                known = [n for t in self.spec.inputs for n in (t.name, t.alias)]
                raise wire.MalformedMessage(f"no input '{name}'{closest(name, known)}")
            if spec.name in given:
                raise wire.MalformedMessage(f"'{spec.name}' comes twice")
            given[spec.name] = x
        missing = [spec.name for spec in self.spec.inputs if spec.name not in given]
        if missing:
            raise wire.MalformedMessage(f"the model also takes {', '.join(missing)}")
        first = given[self.spec.inputs[0].name]
        return [_fitting(spec, given[spec.name], first.shape[0] if first.ndim else 1) for spec in self.spec.inputs]

    def _wanted(self, header: pb.ModelInferRequest) -> list[tuple[str, TensorSpec]]:
        """The names asked for, each with the tensor that it means; all outputs where none is named."""
        if not header.outputs:
            return [(spec.name, spec) for spec in self._sent.outputs]
        wanted = []
        for output in header.outputs:
            spec = find(self._sent.outputs, output.name)
            if spec is None:
                known = [n for t in self._sent.outputs for n in (t.name, t.alias)]
                raise wire.MalformedMessage(f"no output '{output.name}'{closest(output.name, known)}")
            wanted.append((output.name, spec))
        return wanted

    def _written(
        self, request: pb.ModelInferRequest, outputs: Sequence[np.ndarray], wanted: Sequence[tuple[str, TensorSpec]]
    ) -> bytes:
        """The response, its outputs called as they were asked for."""
        header = pb.ModelInferResponse(model_name=self.spec.name, model_version=self.spec.version, id=request.id)
        message = wire.Message(header)
        names = {spec.name for _, spec in wanted}
        found: dict[str, np.ndarray] = {}
        for spec, x in zip(self._model.outputs, outputs, strict=True):
            ends = (formats.VALUES, formats.CLASSES) if self.form.shortens(spec) else ("",)
            if any(spec.name + end in names for end in ends):
                found.update(self.form.convert(spec, x))
        for name, spec in wanted:
            x = found[spec.name]
            header.outputs.add(name=name, datatype=spec.datatype, shape=x.shape)
            message.raw.append(wire.raw(x.astype(wire.DTYPES[spec.datatype], copy=False)))
        return wire.write_response(message)

    def _has(self, name: str, version: str) -> bool:
        return name == self.spec.name and version in ("", self.spec.version)

    def _check_name(self, name: str, version: str) -> None:
        if not self._has(name, version):
            text = f"no model '{name}'{f' of version {version!r}' if version else ''}; it is '{self.spec.name}'"
            raise _Refused(grpc.StatusCode.NOT_FOUND, f"{text}, version '{self.spec.version}'")

    async def _check_model(self, name: str, version: str, context: Any) -> None:
        try:
            self._check_name(name, version)
        except _Refused as refused:
            await context.abort(refused.code, str(refused))


class _Refused(Exception):
    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


def _fitting(spec: TensorSpec, x: np.ndarray, rows: int) -> np.ndarray:
    """An input in the model's type; whole numbers and narrower floats are taken for floats. Raises MalformedMessage."""
    dtype = wire.DTYPES[spec.datatype]
    if not formats.fits(x, spec.shape, rows) or not np.can_cast(x.dtype, dtype, "same_kind") or not x.size:
        raise wire.MalformedMessage(
            f"'{spec.name}' takes {spec.datatype} {list(spec.shape)}, but got {wire.datatype(x.dtype)} {list(x.shape)}"
        )
    return x.astype(dtype, copy=False)
