"""The calls of the Open Inference Protocol for one model."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as pb

from paddleseg_ext.errors import closest
from paddleseg_ext.service import formats, wire
from paddleseg_ext.service.batching import Batcher, Closed, QueueFull
from paddleseg_ext.service.metrics import Metrics
from paddleseg_ext.service.spec import ModelSpec, TensorSpec, find

_log = logging.getLogger(__name__)

# The calls without tensors; those that are left out, gRPC itself answers with UNIMPLEMENTED.
_CALLS = (
    *("ServerLive", "ServerReady", "ServerMetadata", "RepositoryIndex"),
    *("ModelReady", "ModelMetadata", "ModelConfig"),
)


class Servicer:
    """The protocol's calls for one model."""

    def __init__(
        self, spec: ModelSpec, batcher: Batcher, form: formats.OutputForm, metrics: Metrics, threads: Executor
    ) -> None:
        self.spec, self.form, self.draining = form.seen(spec), form, False
        self._model, self._batcher, self._metrics, self._threads = spec, batcher, metrics, threads
        self._sent, self._extras = form.sent(spec)
        self._accepted: set[asyncio.Future] = set()

    def add_to(self, server: Any) -> None:
        """Register the calls. Those with tensors go round protobuf, see `wire`."""
        calls = {name: _plain(getattr(self, name), name) for name in _CALLS}
        calls["ModelInfer"] = grpc.unary_unary_rpc_method_handler(self.infer)
        calls["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self.infer_stream, response_serializer=pb.ModelStreamInferResponse.SerializeToString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(wire.SERVICE, calls),))

    async def finished(self, seconds: float) -> None:
        """Wait for what was accepted, so long at most."""
        if self._accepted:
            await asyncio.wait(self._accepted, timeout=seconds)

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return pb.ServerReadyResponse(ready=self._ready())

    async def ModelReady(self, request: Any, context: Any) -> Any:
        ready = self._ready() and self._has(request.name, request.version)
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

    async def infer(self, data: bytes, context: Any) -> bytes:
        """ModelInfer from bytes to bytes."""
        try:
            return await self._counted(data)
        except _Refused as refused:
            await context.abort(refused.code, str(refused))
            raise AssertionError from None

    async def infer_stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        """ModelStreamInfer: one answer to each request, in their order; what is refused does not end the stream."""
        async for data in requests:
            try:
                answer = pb.ModelInferResponse.FromString(await self._counted(data))
            except _Refused as refused:
                yield pb.ModelStreamInferResponse(error_message=f"{refused.code.name}: {refused}")
            else:
                yield pb.ModelStreamInferResponse(infer_response=answer)

    async def _counted(self, data: bytes) -> bytes:
        """The answer to a request, which is counted and waited for when the server is stopped."""
        began, status = time.perf_counter(), "INTERNAL"
        under_way = asyncio.get_running_loop().create_future()
        self._accepted.add(under_way)
        try:
            answer = await self._answered(data)
            status = "OK"
            return answer
        except _Refused as refused:
            status = refused.code.name
            raise
        except asyncio.CancelledError:
            status = "CANCELLED"
            raise
        finally:
            self._accepted.discard(under_way)
            under_way.set_result(None)
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
        self._metrics.received.inc(len(data))
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

    def _ready(self) -> bool:
        return not self.draining and not self._batcher.vitals.problem()

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


def _plain(call: Callable, name: str) -> Any:
    """A call without tensors; gRPC itself would answer bytes that are no message with a traceback in the log."""
    request, response = getattr(pb, f"{name}Request"), getattr(pb, f"{name}Response")

    async def answer(data: bytes, context: Any) -> Any:
        try:
            message = request.FromString(data)
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no message of the protocol")
        return await call(message, context)

    return grpc.unary_unary_rpc_method_handler(answer, response_serializer=response.SerializeToString)


def _fitting(spec: TensorSpec, x: np.ndarray, rows: int) -> np.ndarray:
    """An input in the model's type; whole numbers and narrower floats are taken for floats. Raises MalformedMessage."""
    dtype = wire.DTYPES[spec.datatype]
    if not formats.fits(x, spec.shape, rows) or not np.can_cast(x.dtype, dtype, "same_kind") or not x.size:
        raise wire.MalformedMessage(
            f"'{spec.name}' takes {spec.datatype} {list(spec.shape)}, but got {wire.datatype(x.dtype)} {list(x.shape)}"
        )
    return x.astype(dtype, copy=False)
