"""A teacher behind any server of the Open Inference Protocol: ours, Triton, KServe."""

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from paddleseg_ext.errors import ConfigError, DataError, closest
from paddleseg_ext.service import formats, wire
from paddleseg_ext.service.security import Security
from paddleseg_ext.service.spec import ModelSpec, TensorSpec, find
from paddleseg_ext.service.transport import Connect, TeacherUnavailable, TeacherWrong, Transport

_AGAIN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
}
_CHANNEL = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A teacher that comes back is found within seconds; by default gRPC waits up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # One reader's connection is not another's, and no variable of the environment sends it elsewhere.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True)
class ClientOptions:
    """How to talk to teachers.

    model: name of the model to use; "": the only one that the server has. version: "": the one that the server takes.
    """

    model: str = ""
    version: str = ""
    security: Security = field(default_factory=Security)


@dataclass(frozen=True)
class _Model:
    """spec: as a student sees it. sent: its outputs as they travel. extras: what makes the one into the other."""

    spec: ModelSpec
    sent: tuple[TensorSpec, ...]
    extras: formats.Extras


def connector(options: ClientOptions | None = None) -> Connect:
    """Endpoints to transports, with files of TLS read and checked now. Raises ConfigError."""
    options = options or ClientOptions()
    credentials = options.security.channel_credentials()
    return lambda endpoint: GrpcTransport(endpoint, options, credentials)


def connect(endpoint: str, options: ClientOptions | None = None) -> Transport:
    """A teacher at an endpoint; does not wait for the connection. Raises ConfigError where a file of TLS is wrong."""
    return connector(options)(endpoint)


class GrpcTransport:
    """One teacher at one endpoint over gRPC; used from one asyncio event loop.

    Inputs go to our servers in the type that they have here where it is smaller than the model's: float16 images are half as
    many bytes as float32 ones. Outputs in BF16, which NumPy does not have, are handed out as float32; others in the type that
    the server sends.
    """

    def __init__(self, endpoint: str, options: ClientOptions, credentials: grpc.ChannelCredentials | None) -> None:
        self.endpoint, self.options, self._credentials = endpoint, options, credentials
        self._metadata = options.security.metadata()
        self._ids = itertools.count(1)
        self._channel: Any = None
        self._stub: Any = None
        self._infer: Any = None
        self._model: _Model | None = None
        self._closed = False

    async def describe(self, seconds: float) -> ModelSpec:
        """What it serves, asked anew. Raises TeacherError, after `seconds` at the latest."""
        self._open()
        try:
            self._model = await asyncio.wait_for(self._described(seconds), seconds)
        except asyncio.TimeoutError:
            raise TeacherUnavailable(f"{self.endpoint}: no answer within {seconds:g} s") from None
        return self._model.spec

    async def infer(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], seconds: float
    ) -> dict[str, np.ndarray]:
        """The outputs of these names or aliases, by the name asked for; arrays are the caller's own.

        Raises:
            TeacherError: after `seconds` at the latest.
            ConfigError: the model has no such input or output.
            DataError: an input does not fit it.
        """
        end = time.monotonic() + seconds
        if self._model is None:
            await self.describe(seconds)
        model = self._model
        assert model is not None
        wanted = {name: self._found(model.spec.outputs, name, "output") for name in outputs}
        message, rows = self._request(model, inputs, [*dict.fromkeys(w.name for w in wanted.values())])
        self._open()
        answer = await self._called(
            self._infer(message, timeout=max(end - time.monotonic(), 0.001), metadata=self._metadata)
        )
        try:
            found = self._checked(model, answer, message.header.id)
            return {name: _own(self._output(model, spec, found, rows)) for name, spec in wanted.items()}
        except (wire.MalformedMessage, ValueError) as error:
            raise TeacherWrong(f"{self.endpoint}: {error}") from None

    async def close(self) -> None:
        """Give up the connection and whatever is under way."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    def _open(self) -> None:
        """A channel belongs to the loop that runs when it is made, so that it is made late."""
        if self._closed:
            raise TeacherUnavailable(f"{self.endpoint}: the connection is closed")
        if self._channel is not None:
            return
        if self._credentials is None:
            self._channel = grpc.aio.insecure_channel(self.endpoint, options=_CHANNEL)
        else:
            self._channel = grpc.aio.secure_channel(self.endpoint, self._credentials, options=_CHANNEL)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._infer = self._channel.unary_unary(
            f"/{wire.SERVICE}/ModelInfer", request_serializer=wire.write_request, response_deserializer=bytes
        )

    async def _called(self, call: Any) -> Any:
        """What a call returns; its failures as TeacherError."""
        try:
            return await call
        except asyncio.CancelledError:
            task = asyncio.current_task()
            # Closing the channel cancels its calls, which must not look as if the caller's task were cancelled.
            if self._closed and not (task is not None and getattr(task, "cancelling", lambda: 0)()):
                raise TeacherUnavailable(f"{self.endpoint}: the connection was closed") from None
            raise
        except grpc.aio.AioRpcError as error:
            text = " ".join((error.details() or "").split())[:300]
            said = f"{self.endpoint}: {error.code().name}{': ' + text if text else ''}"
            # gRPC has the same code for a full queue and for a message beyond the server's limit.
            if error.code() in _AGAIN and "larger than max" not in text:
                raise TeacherUnavailable(said) from None
            raise TeacherWrong(said) from None

    async def _described(self, seconds: float) -> _Model:
        name = self.options.model or await self._only_model(seconds)
        asked = {"name": name, "version": self.options.version}
        limits = {"timeout": seconds, "metadata": self._metadata}
        said = await self._called(self._stub.ModelMetadata(pb.ModelMetadataRequest(**asked), **limits))
        if said.name != name:
            raise TeacherWrong(f"{self.endpoint}: asked for the model '{name}', but it describes '{said.name}'")
        try:
            config = (await self._called(self._stub.ModelConfig(pb.ModelConfigRequest(**asked), **limits))).config
        except TeacherWrong:  # an extension of the protocol, which KServe's server does not have
            text = ""
        else:
            text = config.parameters[formats.PARAMETER].string_value if formats.PARAMETER in config.parameters else ""
        try:
            extras = formats.Extras.read(text) if text else formats.Extras()
            inputs, outputs = tuple(map(_spec, said.inputs)), tuple(map(_spec, said.outputs))
            version = self.options.version or (said.versions[-1] if said.versions else "")
            sent = ModelSpec(name, version, inputs, outputs)
            return _Model(formats.seen(sent, extras), outputs, extras)
        except ValueError as error:
            raise TeacherWrong(f"{self.endpoint}: it describes '{name}' in a way that cannot be: {error}") from None

    async def _only_model(self, seconds: float) -> str:
        index = pb.RepositoryIndexRequest(ready=True)
        try:
            said = await self._called(self._stub.RepositoryIndex(index, timeout=seconds, metadata=self._metadata))
        except TeacherWrong as error:
            raise TeacherWrong(f"{error}; it does not say which models it has, so that one must be named") from None
        names = sorted({model.name for model in said.models})
        if not names:  # it is being started or stopped
            raise TeacherUnavailable(f"{self.endpoint}: no model of its is ready")
        if len(names) != 1:
            listed = ", ".join(f"'{name}'" for name in names[:8])
            raise TeacherWrong(f"{self.endpoint}: it has {len(names)} models ({listed}); one must be named")
        return names[0]

    def _found(self, tensors: Sequence[TensorSpec], name: str, kind: str) -> TensorSpec:
        tensor = find(tensors, name)
        if tensor is None:
            known = [n for t in tensors for n in (t.name, t.alias) if n]
            raise ConfigError(f"{self.endpoint}: no {kind} '{name}'{closest(name, known)}")
        return tensor

    def _request(
        self, model: _Model, inputs: Mapping[str, np.ndarray], names: Sequence[str]
    ) -> tuple[wire.Message[pb.ModelInferRequest], int]:
        """The request, and how many rows it has."""
        given = {self._found(model.spec.inputs, name, "input").name: np.asarray(x) for name, x in inputs.items()}
        missing = [spec.name for spec in model.spec.inputs if spec.name not in given]
        if missing:
            raise ConfigError(f"{self.endpoint}: the model also takes {', '.join(missing)}")
        rows = next((x.shape[0] for x in given.values() if x.ndim), 1)
        header = pb.ModelInferRequest(model_name=model.spec.name, model_version=self.options.version)
        header.id = f"{next(self._ids)}"
        message = wire.Message(header)
        for spec in model.spec.inputs:
            x = given[spec.name]
            if not formats.fits(x, spec.shape, rows) or not np.can_cast(
                x.dtype, wire.DTYPES[spec.datatype], "same_kind"
            ):
                raise DataError(
                    f"{self.endpoint}: '{spec.name}' takes {spec.datatype} {list(spec.shape)}, "
                    f"but got {x.dtype} {list(x.shape)}"
                )
            datatype = _travelling(x, spec, model.extras.casts)
            header.inputs.add(name=spec.name, datatype=datatype, shape=x.shape)
            message.raw.append(wire.raw(x.astype(wire.DTYPES[datatype], copy=False)))
        for name in names:
            ends = (formats.VALUES, formats.CLASSES) if name in model.extras.classes else ("",)
            for end in ends:
                header.outputs.add(name=name + end)
        return message, rows

    def _checked(self, model: _Model, answer: bytes, number: str) -> dict[str, np.ndarray]:
        """The tensors of a response to the request of this id."""
        message = wire.read_response(answer)
        header = message.header
        if header.id != number:
            raise TeacherWrong(f"{self.endpoint}: asked by the id {number!r}, but answered {header.id!r}")
        if header.model_name != model.spec.name:
            raise TeacherWrong(
                f"{self.endpoint}: asked the model '{model.spec.name}', but '{header.model_name}' answered"
            )
        return wire.arrays(message, header.outputs)

    def _output(self, model: _Model, spec: TensorSpec, found: Mapping[str, np.ndarray], rows: int) -> np.ndarray:
        """One output as a student sees it, from what came."""
        ends = (formats.VALUES, formats.CLASSES) if spec.name in model.extras.classes else ("",)
        parts = [self._sound(model, spec.name + end, found, rows) for end in ends]
        return parts[0] if len(parts) == 1 else formats.expand(parts[0], parts[1], model.extras.classes[spec.name])

    def _sound(self, model: _Model, name: str, found: Mapping[str, np.ndarray], rows: int) -> np.ndarray:
        x, spec = found.get(name), find(model.sent, name)
        if x is None or spec is None:
            raise TeacherWrong(
                f"{self.endpoint}: no output '{name}' in its answer, only {', '.join(found) or 'nothing'}"
            )
        if not formats.fits(x, spec.shape, rows) or wire.datatype(x.dtype) != spec.datatype:
            raise TeacherWrong(
                f"{self.endpoint}: '{name}' is {spec.datatype} {list(spec.shape)} with {rows} rows, "
                f"but came as {wire.datatype(x.dtype)} {list(x.shape)}"
            )
        if wire.is_float(spec.datatype) and not all_finite(x):
            raise TeacherWrong(f"{self.endpoint}: '{name}' has values that are not finite")
        return x


def all_finite(x: np.ndarray) -> bool:
    """Whether a floating-point array has neither NaN nor infinity."""
    if x.dtype.itemsize == 2:  # all bits of the exponent set; NumPy's own test is many times slower for these types
        exponent = np.uint16(0x7C00 if x.dtype == np.float16 else 0x7F80)
        return not bool((x.view(np.uint16) & exponent == exponent).any())
    return bool(np.isfinite(x).all())


def _own(x: np.ndarray) -> np.ndarray:
    """A copy that does not keep the whole message alive and may be written to."""
    if x.dtype == wire.DTYPES["BF16"]:
        return x.astype(np.float32)
    return x if x.flags.owndata and x.flags.writeable else x.copy()


def _travelling(x: np.ndarray, spec: TensorSpec, casts: bool) -> str:
    """The data type in which an input is sent: its own where that is smaller and the server turns it into the model's."""
    own = wire.datatype(x.dtype)
    return own if casts and own and x.itemsize < wire.DTYPES[spec.datatype].itemsize else spec.datatype


def _spec(tensor: Any) -> TensorSpec:
    datatype: str = tensor.datatype
    if datatype not in wire.DTYPES:
        raise ValueError(f"'{tensor.name}' has the data type {datatype!r}")
    return TensorSpec(tensor.name, datatype, tuple(tensor.shape), tensor.name)
