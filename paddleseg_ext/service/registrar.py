"""Keeps one teacher registered for as long as it is alive and healthy."""

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2 as pb

from paddleseg_ext.errors import UserError
from paddleseg_ext.service import addresses
from paddleseg_ext.service.messages import Lease
from paddleseg_ext.service.registry import LeaseRefused, Registry, RegistryError
from paddleseg_ext.service.security import Security
from paddleseg_ext.service.spec import ModelSpec
from paddleseg_ext.service.transport import Connect, TeacherError, TeacherUnavailable, TeacherWrong

_log = logging.getLogger(__name__)

_HEALTH, _READY = "/grpc.health.v1.Health/Check", "/inference.GRPCInferenceService/ServerReady"
_AGAIN = 1.0  # seconds before the next attempt after a failure
_CHANNEL = (
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)

Describe = Callable[[float], ModelSpec]
"""What a teacher serves, within so many seconds. Raises TeacherError."""


class RegistrarError(UserError):
    """A teacher cannot be registered."""


class _NotServing(TeacherUnavailable):
    """It is gone or says that it does not serve, so that waiting for its lease to run out would be wrong."""


@dataclass(frozen=True)
class RegistrarOptions:
    """check: seconds that the teacher has for each answer. security: how to talk to it. rates: its figures to show, by name."""

    check: float = 3.0
    security: Security = field(default_factory=Security)
    rates: Callable[[], Mapping[str, float]] = dict


class Registrar:
    """A context manager: a thread inside takes and renews the lease, three times in its duration, and removes it at the end.

    Before each renewal the teacher must say that it serves (the standard gRPC health, else the protocol's ServerReady). One that
    says it does not, or is gone, is removed at once; one that hangs, when its lease runs out. It is registered again when
    it is well, and after Redis was away.

    Args:
        registry: the store; stays the caller's to close.
        service_name: what the teacher is registered for.
        endpoint: where students reach the teacher.
        describe: what it serves, asked before each renewal.
        options: RegistrarOptions().

    Raises:
        ConfigError: a name, an endpoint or a TLS file that cannot be used.
    """

    def __init__(
        self,
        registry: Registry,
        service_name: str,
        endpoint: str,
        describe: Describe,
        options: RegistrarOptions | None = None,
    ) -> None:
        self._registry, self._describe, self._options = registry, describe, options or RegistrarOptions()
        self._service = addresses.service_name("--service_name", service_name)
        self._endpoint = addresses.endpoint("--server", endpoint)
        self._credentials = self._options.security.channel_credentials()
        self._token = secrets.token_hex(16)
        self._lease: Lease | None = None
        self._started = time.time()
        self._problem = ""
        self._call: Any = None
        self._registered, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"registrar of {self._endpoint}", daemon=True)

    def __enter__(self) -> "Registrar":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # The teacher may be this very thread, which cannot answer while it waits here.
        self._stop.set()
        call = self._call
        if call is not None:
            call.cancel()
        self._thread.join()

    @property
    def registered(self) -> bool:
        """Whether the last renewal succeeded."""
        return self._registered.is_set()

    def wait(self, seconds: float, stopped: Callable[[], bool] = lambda: False) -> None:
        """Until the teacher is registered, or `stopped` says so. Raises RegistrarError where that takes longer."""
        end = time.monotonic() + seconds
        while not self._registered.wait(0.05) and time.monotonic() < end:
            if stopped():
                return
        if not self.registered:
            reason = self._problem or "no answer yet"
            raise RegistrarError(
                f"{self._endpoint} is not registered for '{self._service}' after {seconds:g} s: {reason}"
            )

    def _run(self) -> None:
        with _channel(self._endpoint, self._credentials) as channel:
            while not self._stop.is_set():
                try:
                    self._renew(channel)
                except (TeacherError, RegistryError, grpc.FutureCancelledError) as error:
                    if not self._stop.is_set():
                        self._failed(error)
                else:
                    self._succeeded()
                pause = self._registry.options.lease / 3
                self._stop.wait(pause if self.registered else min(pause, _AGAIN))
        self._remove()

    def _renew(self, channel: grpc.Channel) -> None:
        self._check(channel)
        spec = self._describe(self._options.check)
        rates = {key: float(value) for key, value in self._options.rates().items()}
        lease = Lease(self._service, self._endpoint, spec.name, spec.digest(), self._token, self._started, rates)
        self._registry.take(lease)
        self._lease = lease

    def _check(self, channel: grpc.Channel) -> None:
        """Raises TeacherUnavailable unless the teacher says that it serves."""
        try:
            try:
                said = self._ask(channel, _HEALTH, health_pb2.HealthCheckRequest())
                status = health_pb2.HealthCheckResponse.FromString(said).status
                serving = status == health_pb2.HealthCheckResponse.SERVING
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNIMPLEMENTED:
                    raise
                serving = pb.ServerReadyResponse.FromString(self._ask(channel, _READY, pb.ServerReadyRequest())).ready
        except grpc.RpcError as error:
            raise _unavailable(self._endpoint, error) from None
        if not serving:
            raise _NotServing(f"{self._endpoint}: says that it does not serve")

    def _ask(self, channel: grpc.Channel, method: str, message: Message) -> bytes:
        self._call = channel.unary_unary(method).future(
            message.SerializeToString(), timeout=self._options.check, metadata=self._options.security.metadata()
        )
        return self._call.result()

    def _succeeded(self) -> None:
        if not self.registered:
            _log.info("[REGISTER] %s is registered for '%s'", self._endpoint, self._service)
        self._problem = ""
        self._registered.set()

    def _failed(self, error: Exception) -> None:
        if isinstance(error, _NotServing | TeacherWrong | LeaseRefused):
            self._remove()
        if str(error) != self._problem:
            _log.warning("[REGISTER] %s; trying again", error)
        self._problem = str(error)
        self._registered.clear()

    def _remove(self) -> None:
        """Give the lease up; where Redis is away it will run out."""
        if self._lease is None:
            return
        try:
            if self._registry.drop(self._lease):
                _log.info("[REGISTER] %s is no longer registered for '%s'", self._endpoint, self._service)
            self._lease = None
        except RegistryError as error:
            _log.warning("[REGISTER] the lease of %s will run out by itself: %s", self._endpoint, error)


def described_by(connect: Connect, endpoint: str) -> Describe:
    """Asks a teacher over the network, by a new connection each time: another program may be listening by then."""

    async def once(seconds: float) -> ModelSpec:
        transport = connect(endpoint)
        try:
            return await transport.describe(seconds)
        finally:
            await transport.close()

    return lambda seconds: asyncio.run(once(seconds))


def _unavailable(endpoint: str, error: grpc.RpcError) -> TeacherUnavailable:
    gone = error.code() == grpc.StatusCode.UNAVAILABLE
    text = f"{endpoint}: {error.code().name}: {' '.join((error.details() or '').split())[:200]}"
    return _NotServing(text) if gone else TeacherUnavailable(text)


def _channel(endpoint: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    if credentials is None:
        return grpc.insecure_channel(endpoint, options=_CHANNEL)
    return grpc.secure_channel(endpoint, credentials, options=_CHANNEL)
