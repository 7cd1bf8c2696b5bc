"""Whether a teacher is alive and well, and what it serves: over the network, or in this process."""

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Any, Protocol

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2 as pb

from paddleseg_ext.service import addresses
from paddleseg_ext.service.event_loop import event_loop
from paddleseg_ext.service.security import Security
from paddleseg_ext.service.spec import ModelSpec
from paddleseg_ext.service.transport import Connect, TeacherUnavailable

_HEALTH, _READY = "/grpc.health.v1.Health/Check", "/inference.GRPCInferenceService/ServerReady"
_CHANNEL = (
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class NotServing(TeacherUnavailable):
    """It is gone, or says that it does not serve; to wait for its lease to run out would be wrong."""


class WatchedTeacher(Protocol):
    """A teacher that a registrar asks, from a thread of the registrar's own."""

    def describe(self, seconds: float) -> ModelSpec:
        """What it serves. Raises TeacherError where it is not well, after about `seconds` for each question."""

    def cancel(self) -> None:
        """End a `describe` that is under way; called by another thread."""


class OwnTeacher:
    """A server in this process, which is well while its event loop runs and its model answers.

    problem: says what is the matter with the model, if anything.
    """

    def __init__(
        self, spec: ModelSpec, loop: asyncio.AbstractEventLoop, problem: Callable[[], str] = lambda: ""
    ) -> None:
        self._spec, self._loop, self._problem = spec, loop, problem
        self._question: Any = None

    def describe(self, seconds: float) -> ModelSpec:
        """What it serves. Raises TeacherUnavailable where it is not well, or it was cancelled."""
        self._question = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop)
        try:
            self._question.result(seconds)
        except (TimeoutError, concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            raise TeacherUnavailable(f"{self._spec.name}: the server's loop does not run") from None
        problem = self._problem()
        if problem:
            raise NotServing(f"{self._spec.name}: {problem}")
        return self._spec

    def cancel(self) -> None:
        """End a `describe` that is under way."""
        if self._question is not None:
            self._question.cancel()


class NetworkTeacher:
    """Any server of the protocol: by the standard gRPC health service, or ServerReady where it has none. A context manager.

    Raises ConfigError for an endpoint or a TLS file that cannot be used.
    """

    def __init__(self, endpoint: str, connect: Connect, security: Security | None = None) -> None:
        self._endpoint, self._connect = addresses.endpoint("--server", endpoint), connect
        self._security = security or Security()
        credentials = self._security.channel_credentials()
        self._channel = (
            grpc.insecure_channel(endpoint, options=_CHANNEL)
            if credentials is None
            else grpc.secure_channel(endpoint, credentials, options=_CHANNEL)
        )
        self._call: Any = None

    def __enter__(self) -> "NetworkTeacher":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def describe(self, seconds: float) -> ModelSpec:
        """What it serves, by a new connection each time: another program may be listening by now. Raises TeacherError."""
        try:
            serving = self._serving(seconds)
        except grpc.FutureCancelledError:
            raise TeacherUnavailable(f"{self._endpoint}: no longer asked") from None
        except grpc.RpcError as error:
            text = f"{self._endpoint}: {error.code().name}: {' '.join((error.details() or '').split())[:200]}"
            gone = error.code() == grpc.StatusCode.UNAVAILABLE
            raise (NotServing(text) if gone else TeacherUnavailable(text)) from None
        if not serving:
            raise NotServing(f"{self._endpoint}: says that it does not serve")
        return event_loop().run(self._described(seconds))

    def cancel(self) -> None:
        """End a `describe` that is under way, as far as it waits for the health service."""
        if self._call is not None:
            self._call.cancel()

    def _serving(self, seconds: float) -> bool:
        try:
            said = self._ask(_HEALTH, health_pb2.HealthCheckRequest(), seconds)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNIMPLEMENTED:
                raise
            return pb.ServerReadyResponse.FromString(self._ask(_READY, pb.ServerReadyRequest(), seconds)).ready
        return health_pb2.HealthCheckResponse.FromString(said).status == health_pb2.HealthCheckResponse.SERVING

    def _ask(self, method: str, message: Message, seconds: float) -> bytes:
        self._call = self._channel.unary_unary(method).future(
            message.SerializeToString(), timeout=seconds, metadata=self._security.metadata()
        )
        return self._call.result()

    async def _described(self, seconds: float) -> ModelSpec:
        transport = self._connect(self._endpoint)
        try:
            return await transport.describe(seconds)
        finally:
            await transport.close()
