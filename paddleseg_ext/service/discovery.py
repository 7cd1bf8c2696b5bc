"""Which teachers a student may ask, from balance servers; the student's side."""

import logging
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from paddleseg_ext.errors import ConfigError, NoTeacherError
from paddleseg_ext.service import addresses
from paddleseg_ext.service.balance_server import SERVICE
from paddleseg_ext.service.messages import MOST_TEACHERS, MalformedText, Report, Share, finite
from paddleseg_ext.service.security import Security

_log = logging.getLogger(__name__)

_CALL = 4.0  # seconds that a balance server may take; it waits up to 3 for the store
_GOODBYE = 0.3  # seconds to say that a student leaves
_FIRST_DELAY, _LAST_DELAY = 0.2, 5.0  # seconds before trying again
_REFUSALS = {
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
}
_CHANNEL = (
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.max_receive_message_length", 1024 * 1024),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class DiscoveryError(NoTeacherError):
    """No balance server answers, or it refuses to."""


@dataclass(frozen=True)
class DiscoveryOptions:
    """What a student asks for.

    require_num: the most teachers it has a use for. poll: seconds between two polls. student: a name of its own; empty: one
    is made up. rates: called before each poll, gives samples per second by endpoint, to show.
    """

    require_num: int = 4
    poll: float = 1.0
    student: str = ""
    security: Security = field(default_factory=Security)
    rates: Callable[[], Mapping[str, float]] = dict


class DiscoveredEndpoints:
    """An EndpointSource kept up to date by a thread; with every balance server away it keeps what it has.

    Teachers are of one model: the first ones' decides, and `digest` says which.

    Args:
        servers: balance servers, `host:port[,host:port...]` or a list, tried in turn.
        service_name: what the teachers are registered for.
        options: DiscoveryOptions().

    Raises:
        ConfigError: an address, a name, a number or a TLS file that cannot be used.
    """

    def __init__(
        self, servers: str | Sequence[str], service_name: str, options: DiscoveryOptions | None = None
    ) -> None:
        self._options = options = options or DiscoveryOptions()
        self._servers = addresses.endpoints("--discovery", servers)
        self._service = addresses.service_name("--teacher_service", service_name)
        if not 1 <= options.require_num <= MOST_TEACHERS:
            raise ConfigError(f"require_num: 1 to {MOST_TEACHERS} teachers, but got {options.require_num}")
        self._student = addresses.service_name("the student's name", options.student or _made_up())
        self._credentials = options.security.channel_credentials()
        self._teachers: tuple[str, ...] = ()
        self._digest = ""
        self._problem = ""
        self._refused: set[str] = set()
        self._answered, self._stop = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._call: Any = None
        self._thread = threading.Thread(target=self._run, name=f"discovery of {service_name}", daemon=True)
        self._thread.start()

    @property
    def student(self) -> str:
        """Under which name it is known."""
        return self._student

    @property
    def digest(self) -> str:
        """ModelSpec.digest() of the teachers' model; empty before there was one."""
        return self._digest

    def endpoints(self) -> Sequence[str]:
        """`ip:port` of each teacher that may be asked now. Raises DiscoveryError where all refuse from the start."""
        if self._all_refuse() and not self._answered.is_set():
            raise self._error()
        return self._teachers

    def problem(self) -> str:
        """Why there is none, in words."""
        if self._problem or self._teachers or not self._answered.is_set():
            return self._problem
        return f"the balance servers have none of '{self._service}'"

    def wait(self, seconds: float) -> None:
        """Until a balance server has answered, even if there is no teacher yet.

        Raises DiscoveryError where all refuse, or none answers within so many seconds.
        """
        end = time.monotonic() + seconds
        while not self._answered.wait(min(0.05, max(0.0, end - time.monotonic()))):
            if self._all_refuse() or self._stop.is_set() or time.monotonic() >= end:
                raise self._error()

    def close(self) -> None:
        """Stop looking, and say goodbye if somebody listens. At once, from any thread, as often as wanted."""
        with self._lock:
            self._stop.set()
            if self._call is not None:
                self._call.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join(2 * _GOODBYE)

    def __enter__(self) -> "DiscoveredEndpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _all_refuse(self) -> bool:
        return len(self._refused) == len(self._servers)

    def _error(self) -> DiscoveryError:
        reason = self._problem or "no answer yet"
        return DiscoveryError(f"--discovery {','.join(self._servers)}: no balance server gives teachers ({reason})")

    def _run(self) -> None:
        number, delay = 0, _FIRST_DELAY
        while not self._stop.is_set():
            with _channel(self._servers[number], self._credentials) as channel:
                try:
                    answered = self._follow(channel, self._servers[number])
                except Exception:  # a fault of ours must not end the thread while the student goes on
                    _log.exception("[DISCOVERY] %s", self._servers[number])
                    answered = False
            delay = _FIRST_DELAY if answered else delay
            number = (number + 1) % len(self._servers)
            if number == 0:
                # Not all at the same moment, when the servers come back.
                self._stop.wait(delay * random.uniform(0.5, 1.5))
                delay = min(2 * delay, _LAST_DELAY)

    def _follow(self, channel: grpc.Channel, server: str) -> bool:
        """Poll one server until it fails or all is over; whether it ever answered."""
        answered = False
        while not self._stop.is_set():
            try:
                self._take(Share.parse(self._said(channel, "Poll", _CALL)), server)
            except (grpc.RpcError, grpc.FutureCancelledError, MalformedText) as error:
                if not self._stop.is_set():
                    self._failed(server, error)
                    return answered
            answered = True
            self._stop.wait(self._options.poll * random.uniform(0.9, 1.1))
        if not self._problem:
            try:
                self._said(channel, "Leave", _GOODBYE, last=True)
            except (grpc.RpcError, grpc.FutureCancelledError):
                _log.debug("[DISCOVERY] %s did not hear the goodbye", server)
        return answered

    def _said(self, channel: grpc.Channel, method: str, seconds: float, last: bool = False) -> bytes:
        report = Report(
            *(self._service, self._student, self._options.require_num, self._digest, self._teachers), self._rates()
        )
        with self._lock:
            if self._stop.is_set() and not last:
                raise grpc.FutureCancelledError
            self._call = channel.unary_unary(f"/{SERVICE}/{method}").future(
                report.text().encode(), timeout=seconds, metadata=self._options.security.metadata()
            )
        return self._call.result()

    def _rates(self) -> dict[str, float]:
        try:
            return finite(self._options.rates())
        except Exception:  # figures to show must not cost anybody the teachers
            _log.exception("[DISCOVERY] the rates cannot be told")
            return {}

    def _take(self, share: Share, server: str) -> None:
        if self._problem:
            _log.info("[DISCOVERY] %s answers", server)
        self._problem = ""
        self._refused.clear()
        if self._digest and share.digest and share.digest != self._digest:
            _log.warning("[DISCOVERY] %s gives teachers of another model; they are not asked", server)
            share = Share((), self._digest)
        if share.teachers != self._teachers:
            _log.info("[DISCOVERY] %s: teachers %s", self._service, ", ".join(share.teachers) or "none at present")
        self._digest = self._digest or share.digest
        self._teachers = share.teachers
        self._answered.set()

    def _failed(self, server: str, error: Exception) -> None:
        code, text = getattr(error, "code", None), str(error)
        if code is not None:
            text = f"{code().name}: {' '.join((error.details() or '').split())[:200]}"  # type: ignore[attr-defined]
        if not self._problem:
            kept = f"; {len(self._teachers)} teachers are kept" if self._teachers else ""
            _log.warning("[DISCOVERY] %s: %s%s", server, text, kept)
        self._problem = f"{server}: {text}"
        if code is not None and code() in _REFUSALS:
            self._refused.add(server)
        elif code is not None:
            self._refused.discard(server)


def _channel(server: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    if credentials is None:
        return grpc.insecure_channel(server, options=_CHANNEL)
    return grpc.secure_channel(server, credentials, options=_CHANNEL)


def _made_up() -> str:
    host = "".join(c if c.isascii() and c.isalnum() else "-" for c in socket.gethostname())[:64].strip("-") or "student"
    return f"{host}-{os.getpid()}-{secrets.token_hex(3)}"
