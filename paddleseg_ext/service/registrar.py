"""Keeps one teacher registered for as long as it is alive and healthy."""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from paddleseg_ext.errors import UserError
from paddleseg_ext.service import addresses
from paddleseg_ext.service.liveness import NotServing, WatchedTeacher
from paddleseg_ext.service.messages import Lease, finite
from paddleseg_ext.service.registry import LeaseRefused, Registry, RegistryError
from paddleseg_ext.service.transport import TeacherError, TeacherWrong

_log = logging.getLogger(__name__)

_AGAIN = 1.0  # seconds before the next attempt after a failure


class RegistrarError(UserError):
    """A teacher cannot be registered."""


@dataclass(frozen=True)
class RegistrarOptions:
    """check: seconds that the teacher has for each answer. rates: figures to show, by name, asked at each renewal."""

    check: float = 3.0
    rates: Callable[[], Mapping[str, float]] = dict


class Registrar:
    """A context manager: a thread inside takes and renews the lease, three times in its duration, and removes it at the end.

    Before each renewal the teacher must say that it is well and what it serves. One that says it does not serve, or is gone, is
    removed at once; one that hangs, when its lease runs out. It is registered again when it is well, and after Redis was away.

    Args:
        registry: the store; stays the caller's to close.
        service_name: what the teacher is registered for.
        endpoint: where students reach the teacher.
        teacher: how to ask it.
        options: RegistrarOptions().

    Raises:
        ConfigError: a name or an endpoint that cannot be used.
    """

    def __init__(
        self,
        registry: Registry,
        service_name: str,
        endpoint: str,
        teacher: WatchedTeacher,
        options: RegistrarOptions | None = None,
    ) -> None:
        self._registry, self._teacher, self._options = registry, teacher, options or RegistrarOptions()
        self._service = addresses.service_name("--service_name", service_name)
        self._endpoint = addresses.endpoint("--server", endpoint)
        self._token = secrets.token_hex(16)
        self._lease: Lease | None = None
        self._started = time.time()
        self._problem = ""
        self._registered, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"registrar of {self._endpoint}", daemon=True)

    def start(self) -> None:
        """Begin to register the teacher."""
        self._thread.start()

    def close(self) -> None:
        """Remove the lease, as soon as can be."""
        self._stop.set()
        self._teacher.cancel()  # it may be this very thread, which cannot answer while it waits here
        self._thread.join()

    def __enter__(self) -> "Registrar":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        while not self._stop.is_set():
            try:
                self._renew()
            except (TeacherError, RegistryError) as error:
                if not self._stop.is_set():
                    self._failed(error)
            except Exception as error:  # a fault of ours must not end the thread while the program goes on
                _log.exception("[REGISTER] %s", self._endpoint)
                self._failed(error)
            else:
                self._succeeded()
            pause = self._registry.options.lease / 3
            self._stop.wait(pause if self.registered else min(pause, _AGAIN))
        self._remove()

    def _renew(self) -> None:
        spec = self._teacher.describe(self._options.check)
        lease = Lease(
            *(self._service, self._endpoint, spec.name, spec.digest(), self._token, self._started),
            rates=finite(self._options.rates()),
        )
        self._registry.take(lease)
        self._lease = lease

    def _succeeded(self) -> None:
        if not self.registered:
            _log.info("[REGISTER] %s is registered for '%s'", self._endpoint, self._service)
        self._problem = ""
        self._registered.set()

    def _failed(self, error: Exception) -> None:
        if isinstance(error, NotServing | TeacherWrong | LeaseRefused):
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
