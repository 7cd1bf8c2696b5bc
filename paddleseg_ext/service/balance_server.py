"""Gives each student its teachers, over gRPC with JSON bodies; any number of servers on one store give the same answer.

A server keeps nothing that matters: students say with each poll what they hold, and who asks whom is agreed on in the store by
compare-and-set. So every server, and the store, may be restarted at any time.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.service import addresses
from paddleseg_ext.service.messages import MalformedText, Report, Share
from paddleseg_ext.service.registry import Registry, RegistryError, View
from paddleseg_ext.service.security import Security
from paddleseg_ext.service.shares import Shares, following

SERVICE = "paddleseg_ext.Balance"
"""Methods: Poll takes a Report and gives a Share, Leave takes a Report and gives an empty object."""

_log = logging.getLogger(__name__)

_ROUND = 0.5  # seconds between looks at the store
_ATTEMPTS = 20  # to say what follows before another server does
_PATIENCE = 3.0  # seconds that a poll waits for a look at the store
_MOST = 10_000  # students, and services, that one server takes between two looks
_OPTIONS = (
    # Two servers on one port would share its connections without a word.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 256 * 1024),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_concurrent_streams", 256),
)


@dataclass(frozen=True)
class _Answers:
    """Of one look at one service. wishes: what each student asked for; shares: what it got."""

    at: float
    wishes: Mapping[str, tuple[int, str]]
    shares: Mapping[str, Share]


class BalanceServer:
    """Looks at the store twice a second, or at once for a new student, and answers polls from what it saw."""

    def __init__(self, registry: Registry, security: Security | None = None) -> None:
        self._registry, self._security = registry, security or Security()
        self._fresh: dict[tuple[str, str], Report] = {}
        self._left: set[tuple[str, str]] = set()
        self._used: dict[str, float] = {}
        self._answers: dict[str, _Answers] = {}
        self._trouble = ""
        self._wake, self._looked = asyncio.Event(), asyncio.Condition()

    async def run(self, address: str, stop: asyncio.Event, started: Callable[[str], None] = lambda _: None) -> None:
        """Serve until `stop` is set; calls `started` with the endpoint once it listens.

        Raises ConfigError where it cannot listen at the address.
        """
        server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=_MOST)
        methods = {"Poll": self._poll, "Leave": self._leave}
        handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        state = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(state, server)
        port = self._listen(server, address)
        await server.start()
        rounds = asyncio.create_task(self._rounds())
        started(f"{address.rpartition(':')[0]}:{port}")
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({rounds, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for service in ("", SERVICE):
                await state.set(service, health_pb2.HealthCheckResponse.NOT_SERVING)
            await server.stop(1.0)
            stopped.cancel()
            rounds.cancel()
            await asyncio.gather(rounds, return_exceptions=not rounds.done())

    def _listen(self, server: grpc.aio.Server, address: str) -> int:
        credentials = self._security.server_credentials()
        reason = addresses.in_the_way(address)
        if not reason:
            try:
                if credentials is None:
                    return server.add_insecure_port(address)
                return server.add_secure_port(address, credentials)
            except RuntimeError as error:
                reason = str(error)
        raise ConfigError(f"--server {address}: cannot listen there ({reason})")

    async def _poll(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        report = await self._admitted(body, context)
        self._fresh[report.service, report.student] = report
        self._left.discard((report.service, report.student))
        self._used[report.service] = time.monotonic()
        if self._share(report) is None:
            self._wake.set()
            try:
                async with self._looked:
                    await asyncio.wait_for(
                        self._looked.wait_for(lambda: self._share(report) or self._trouble), _PATIENCE
                    )
            except asyncio.TimeoutError:
                pass
        share = self._share(report)
        if share is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, self._trouble or "the store was not read in time")
        assert share is not None
        return share.text().encode()

    async def _leave(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        report = await self._admitted(body, context)
        self._fresh.pop((report.service, report.student), None)
        self._left.add((report.service, report.student))
        self._used[report.service] = time.monotonic()
        self._wake.set()
        return b"{}"

    async def _admitted(self, body: bytes, context: grpc.aio.ServicerContext) -> Report:
        """The report of a call that may be answered; otherwise the call ends here."""
        if not self._security.admits(context.invocation_metadata() or ()):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a token is needed, or it is another one")
        if max(map(len, (self._fresh, self._left, self._used))) >= _MOST:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many students at once")
        try:
            return Report.parse(body)
        except MalformedText as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise

    def _share(self, report: Report) -> Share | None:
        """What the last look gave this student, unless that was for another wish or is old."""
        answers = self._answers.get(report.service)
        if answers is None or time.monotonic() - answers.at > _PATIENCE:
            return None
        if answers.wishes.get(report.student) != (report.require_num, report.digest):
            return None
        return answers.shares.get(report.student)

    async def _rounds(self) -> None:
        """Look at the store again and again; its absence is no reason to end."""
        while True:
            self._wake.clear()
            fresh, left, self._fresh, self._left = self._fresh, self._left, {}, set()
            since = time.monotonic() - self._registry.options.lease
            self._used = {service: at for service, at in self._used.items() if at > since}
            try:
                answers = await asyncio.to_thread(self._look, sorted(self._used), fresh, left)
            except RegistryError as error:
                if not self._trouble:
                    _log.warning("[BALANCE] %s; students keep what they have", error)
                self._trouble = str(error)
                self._fresh = {**fresh, **self._fresh}
                self._left |= left - self._fresh.keys()
            else:
                if self._trouble:
                    _log.info("[BALANCE] Redis is back")
                self._trouble, self._answers = "", answers
            async with self._looked:
                self._looked.notify_all()
            if self._trouble:
                await asyncio.sleep(_ROUND)
            else:
                try:
                    await asyncio.wait_for(self._wake.wait(), _ROUND)
                except asyncio.TimeoutError:
                    continue

    def _look(
        self, services: list[str], fresh: Mapping[tuple[str, str], Report], left: set[tuple[str, str]]
    ) -> dict[str, _Answers]:
        """Of every service in use here; in a thread of its own."""
        answers = {}
        for service in services:
            mine = [report for (name, _), report in fresh.items() if name == service]
            gone = [student for name, student in left if name == service]
            answers[service] = self._agreed(service, mine, gone)
        return answers

    def _agreed(self, service: str, reports: list[Report], left: list[str]) -> _Answers:
        """What all servers answer for a service from now on."""
        for _ in range(_ATTEMPTS):
            view = self._registry.visit(service, reports, left)
            shares = following(view, self._registry.options.lease)
            text = shares.text()
            if text == view.shares or self._registry.share(service, view.shares, text):
                _tell(service, Shares.parse(view.shares), shares)
                return _answers(view, shares)
            reports, left = [], []  # are stored by now; another server was faster to say what follows
        raise RegistryError(f"who asks whom for '{service}' was changed {_ATTEMPTS} times by others meanwhile")


def _answers(view: View, shares: Shares) -> _Answers:
    digests = {lease.endpoint: lease.digest for lease in view.teachers}
    known = {report.student: report.digest for report in view.students}
    return _Answers(
        at=time.monotonic(),
        wishes={report.student: (report.require_num, report.digest) for report in view.students},
        shares={
            name: Share(share, known[name] or next((digests[e] for e in share if e in digests), ""))
            for name, share in shares.of.items()
        },
    )


def _tell(service: str, old: Shares | None, new: Shares) -> None:
    """Log what changed."""
    before: Mapping[str, Any] = old.of if old else {}
    changed = {name: share for name, share in new.of.items() if tuple(before.get(name, ())) != share}
    for name in before.keys() - new.of.keys():
        _log.info("[BALANCE] %s: %s has left", service, name)
    for name, share in changed.items():
        _log.info("[BALANCE] %s: %s asks %s", service, name, ", ".join(share) or "nobody; there is no teacher for it")
