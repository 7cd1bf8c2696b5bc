"""Gives requests to teachers: the least loaded first, elsewhere again when one fails. Lives in one asyncio event loop."""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paddleseg_ext.service.answers import Checks
from paddleseg_ext.service.endpoints import Rates
from paddleseg_ext.service.health import Health
from paddleseg_ext.service.spec import ModelSpec
from paddleseg_ext.service.transport import (
    Connect,
    EndpointSource,
    TeacherError,
    TeacherWrong,
    Transport,
)

_log = logging.getLogger(__name__)

IN_FLIGHT = 4
"""Requests that one teacher has at once: one it works on, the others travel or wait at its door."""

_TICK = 0.05  # seconds between looks at what is overdue
_FOLLOW = 0.25  # seconds between looks at who teaches
_DESCRIBE = 3.0  # seconds to say what it serves
_CLOSE = 1.0  # seconds for good-byes
_OVERDUE = 0.25  # seconds that any answer may take before another teacher is asked as well
_NEW = 2.0  # the same for a teacher that has never answered


@dataclass(eq=False)
class Request:
    """Rows of samples on their way. `asked`: who works on them and since when. `answer`: None until one was right."""

    number: int
    inputs: Mapping[str, np.ndarray]
    answer: Mapping[str, np.ndarray] | None = None
    asked: dict["_Teacher", float] = field(default_factory=dict)


@dataclass(eq=False)
class _Teacher:
    """One endpoint. `ready`: it may be asked. `listed`: it still belongs to those that teach."""

    endpoint: str
    transport: Transport
    health: Health = field(default_factory=Health)
    ready: bool = False
    listed: bool = True
    busy: bool = False  # being described or closed
    load: int = 0


class Pool:
    """All teachers of one pipeline.

    Args:
        source: who teaches.
        connect: how they are reached.
        spec: what they must serve; None: what the first one to answer serves.
        changed: called in the event loop whenever something has changed that somebody may wait for.
        rates: counts what each teacher does.
    """

    def __init__(
        self,
        source: EndpointSource,
        connect: Connect,
        spec: ModelSpec | None,
        changed: Callable[[], None],
        rates: Rates | None = None,
    ) -> None:
        self.source, self.connect, self.spec, self.changed = source, connect, spec, changed
        self.outputs: Sequence[str] = ()
        """What is wanted of them; settled before the first request."""
        self.rates = rates or Rates()
        self.described = False  # whether any teacher has been reached
        self.answers = 0
        self._teachers: dict[str, _Teacher] = {}
        self._left: set[_Teacher] = set()
        self._waiting: list[Request] = []  # in the order of their numbers
        self._asked: dict[int, Request] = {}
        self._checks: Checks | None = None
        self._tasks: set[asyncio.Task] = set()
        self._wake = asyncio.Event()
        self._fault: BaseException | None = None
        self._next_follow = 0.0
        self._stopped = False

    async def run(self) -> None:
        """Work until stopped; afterwards nothing is left of it. Raises what went wrong in it or in a transport."""
        try:
            while not self._stopped:
                if self._fault is not None:
                    raise self._fault
                self._follow(time.monotonic())
                self._dispatch(time.monotonic())
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), _TICK)
                self._wake.clear()
        finally:
            await self._end()

    def stop(self) -> None:
        """Let `run` end now."""
        self._stopped = True
        self._wake.set()

    def submit(self, request: Request) -> None:
        """Have a request answered; its number is higher than all before."""
        self._waiting.append(request)
        self._wake.set()

    def state(self) -> str:
        """Who teaches and what is the matter with those who do not, in words."""
        teachers = list(self._teachers.values())
        if not teachers:
            return "no teacher is known"
        since: dict[_Teacher, float] = {}
        for request in list(self._asked.values()):
            for teacher, begun in list(request.asked.items()):
                since[teacher] = min(begun, since.get(teacher, begun))
        now, said = time.monotonic(), []
        for teacher in teachers:
            if not teacher.ready:
                said.append(teacher.health.problem or f"{teacher.endpoint}: not reached yet")
            elif teacher in since:
                said.append(f"{teacher.endpoint}: has been at it for {now - since[teacher]:.1f} s")
        text = f"{sum(t.ready for t in teachers)} of {len(teachers)} teachers ready"
        return text + (f" ({'; '.join(said[:4])})" if said else "")

    def _follow(self, now: float) -> None:
        """Take in who teaches now, and look again at those that failed."""
        if now >= self._next_follow:
            self._next_follow = now + _FOLLOW
            listed = dict.fromkeys(self.source.endpoints())
            for endpoint in listed:
                if endpoint not in self._teachers:
                    self._teachers[endpoint] = _Teacher(endpoint, self.connect(endpoint))
            for endpoint in [e for e in self._teachers if e not in listed]:
                teacher = self._teachers.pop(endpoint)
                teacher.listed = teacher.ready = False
                self._left.add(teacher)
                _log.info("teacher %s is no longer one of ours", endpoint)
        for teacher in self._teachers.values():
            if not (teacher.ready or teacher.busy) and now >= teacher.health.retry_at:
                self._start(self._describe(teacher), teacher)
        for teacher in [t for t in self._left if not t.load and not t.busy]:
            self._left.discard(teacher)
            self._start(self._close(teacher), teacher)

    def _dispatch(self, now: float) -> None:
        """Give what waits to whoever is free, and what is overdue to another teacher as well."""
        ready = [teacher for teacher in self._teachers.values() if teacher.ready]
        for request in [r for r in self._asked.values() if self._overdue(r, ready, now)]:
            teacher = _least_loaded([t for t in ready if t not in request.asked])
            if teacher is not None:
                self._give(request, teacher, now)
        while self._waiting:
            teacher = _least_loaded(ready)
            if teacher is None:
                return
            self._give(self._waiting.pop(0), teacher, now)

    def _overdue(self, request: Request, ready: Sequence[_Teacher], now: float) -> bool:
        """Whether those asked take longer than they used to, or than another who has nothing to do would."""
        since = max(request.asked.values())
        usual = max(2 * t.health.slowest if t.health.answers else _NEW for t in request.asked)
        if now - since > max(usual, _OVERDUE):
            return True
        idle = [t.health.service for t in ready if not t.load and t.health.answers and t not in request.asked]
        return bool(idle) and not self._waiting and now - since > max(2 * min(idle), _OVERDUE)

    def _give(self, request: Request, teacher: _Teacher, now: float) -> None:
        self._asked[request.number] = request
        request.asked[teacher] = now
        teacher.load += 1
        self._start(self._ask(teacher, request, now))

    async def _ask(self, teacher: _Teacher, request: Request, started: float) -> None:
        deadline, together = teacher.health.deadline(), teacher.load
        inputs = request.inputs
        try:
            answer = await asyncio.wait_for(teacher.transport.infer(inputs, self.outputs, deadline), deadline + 0.5)
            if self._checks is None:
                assert self.spec is not None
                self._checks = Checks(self.spec, self.outputs)
            problem = self._checks.problem(teacher.endpoint, inputs, answer)
            if problem:
                raise TeacherWrong(f"{teacher.endpoint}: {problem}")
            teacher.health.answered(time.monotonic() - started, together)
            self.rates.note(teacher.endpoint, len(next(iter(inputs.values()))))
            self._answered(request, answer)
        except (TeacherError, asyncio.TimeoutError) as error:
            self._failed(teacher, error, time.monotonic() - started >= 0.9 * deadline)
        finally:
            teacher.load -= 1
            request.asked.pop(teacher, None)
            if request.answer is None and not request.asked:
                self._asked.pop(request.number, None)
                self._waiting.append(request)
                self._waiting.sort(key=lambda r: r.number)

    def _answered(self, request: Request, answer: Mapping[str, np.ndarray]) -> None:
        """Take the first right answer. Whoever else was asked may finish: it shows when a teacher that hung is back."""
        if request.answer is not None:
            return
        now = time.monotonic()
        for other, since in request.asked.items():
            if other.health.answers == 0 or now - since > other.health.slowest:
                other.health.overtaken(now - since)
        self._asked.pop(request.number, None)
        request.answer = {name: answer[name] for name in self.outputs}
        request.inputs = {}
        self.answers += 1
        self.changed()

    def _failed(self, teacher: _Teacher, error: BaseException, late: bool) -> None:
        now, before = time.monotonic(), teacher.ready
        text = str(error) or f"{teacher.endpoint}: no answer in time"
        if isinstance(error, TeacherWrong):
            known = teacher.health.left_out
            teacher.health.wrong(now, text)
            if teacher.health.left_out and not known:
                _log.warning(
                    "teacher %s is left out, as it was wrong again and again; at last: %s", teacher.endpoint, text
                )
                before = False
        elif teacher.ready or teacher.busy:  # else its other requests failed already
            teacher.health.unavailable(now, text, late)
        teacher.ready = False
        if before:
            _log.warning("teacher %s fails, its work goes to others: %s", teacher.endpoint, text)
        self.changed()

    async def _describe(self, teacher: _Teacher) -> None:
        """Make sure that it is there and serves the same as the others. A connection that failed is made anew."""
        again = bool(teacher.health.problem)
        try:
            if again and not teacher.load:
                await _good_bye(teacher.transport)
                teacher.transport = self.connect(teacher.endpoint)
            spec = await asyncio.wait_for(teacher.transport.describe(_DESCRIBE), _DESCRIBE + 0.5)
            if self.spec is None:
                self.spec = spec
            elif spec.digest() != self.spec.digest():
                raise TeacherWrong(f"{teacher.endpoint}: {_difference(spec, self.spec)}")
        except (TeacherError, asyncio.TimeoutError) as error:
            self._failed(teacher, error, late=False)
        else:
            teacher.health.described()
            teacher.ready, self.described = teacher.listed, True
            if again and teacher.listed:
                _log.info("teacher %s is back", teacher.endpoint)
            self.changed()

    async def _close(self, teacher: _Teacher) -> None:
        await _good_bye(teacher.transport)

    def _start(self, work: Coroutine[Any, Any, None], teacher: _Teacher | None = None) -> None:
        """Run a task of our own; what it raises beyond TeacherError ends the pool."""
        if teacher is not None:
            teacher.busy = True
        task = asyncio.ensure_future(work)
        self._tasks.add(task)

        def done(_: asyncio.Task) -> None:
            self._tasks.discard(task)
            if teacher is not None:
                teacher.busy = False
            if not task.cancelled() and task.exception() is not None:
                self._fault = self._fault or task.exception()
            self._wake.set()

        task.add_done_callback(done)

    async def _end(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE)
        transports = [t.transport for t in itertools.chain(self._teachers.values(), self._left)]
        await asyncio.gather(*(_good_bye(transport) for transport in transports))
        self._teachers.clear()


def _least_loaded(teachers: Sequence[_Teacher]) -> _Teacher | None:
    """Who would be done first with one request more. One that has yet to prove itself is tried at once, but with one."""
    free = [t for t in teachers if t.load < (IN_FLIGHT if t.health.proven else 1)]
    return min(free, key=lambda t: ((t.load + 1) * t.health.service, t.load), default=None)


def _difference(spec: ModelSpec, wanted: ModelSpec) -> str:
    if spec.name != wanted.name:
        return f"it serves '{spec.name}', but the others '{wanted.name}'"
    named = [", ".join(f"{o.name} {o.datatype} {list(o.shape)}" for o in one.outputs) for one in (spec, wanted)]
    return f"'{spec.name}' has the outputs {named[0]} here, but {named[1]} elsewhere"


async def _good_bye(transport: Transport) -> None:
    try:
        await asyncio.wait_for(transport.close(), _CLOSE)
    except (TeacherError, asyncio.TimeoutError):
        _log.debug("a connection did not close in time")
