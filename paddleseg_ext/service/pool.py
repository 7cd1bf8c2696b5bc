"""Gives requests to teachers: the least loaded first, elsewhere again when one fails. Lives in one asyncio event loop."""

import asyncio
import bisect
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.service.answers import Checks
from paddleseg_ext.service.endpoints import Rates
from paddleseg_ext.service.spec import ModelSpec
from paddleseg_ext.service.teacher import Teacher, least_loaded
from paddleseg_ext.service.transport import Connect, EndpointSource, TeacherError, TeacherWrong

_log = logging.getLogger(__name__)

_TICK = 0.05  # seconds between looks at what is overdue
_FOLLOW = 0.25  # seconds between looks at who teaches
_CLOSE = 1.0  # seconds for tasks to end
_OVERDUE = 0.25  # seconds that any answer may take before another teacher is asked as well
_NEW = 2.0  # the same for a teacher that has never answered


@dataclass(eq=False)
class Request:
    """Rows of samples on their way.

    asked: who works on them and since when. answer: None until one was right. place: how manieth of all answers that was.
    """

    number: int
    inputs: Mapping[str, np.ndarray]
    answer: Mapping[str, np.ndarray] | None = None
    place: int = 0
    asked: dict[Teacher, float] = field(default_factory=dict)


class Pool:
    """All teachers of one pipeline.

    Args:
        source: who teaches.
        connect: how they are reached.
        spec: what they must serve; None: what the first one to answer serves.
        changed: called in the event loop whenever something has changed that somebody may wait for.
        rates: counts what each teacher does.
        usable: raises ConfigError for a model that cannot be what all must serve.
    """

    def __init__(
        self,
        source: EndpointSource,
        connect: Connect,
        spec: ModelSpec | None,
        changed: Callable[[], None],
        rates: Rates | None = None,
        usable: Callable[[ModelSpec], object] = lambda spec: None,
    ) -> None:
        self.source, self.connect, self.spec, self.changed = source, connect, spec, changed
        self.outputs: Sequence[str] = ()
        """What is wanted of them; settled before the first request."""
        self.rates = rates or Rates()
        self.usable = usable
        self.described = False  # whether any teacher has been reached
        self.answers = 0
        self._teachers: dict[str, Teacher] = {}
        self._left: set[Teacher] = set()
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
        clock = asyncio.ensure_future(self._tick())
        try:
            while not self._stopped:
                if self._fault is not None:
                    raise self._fault
                self._follow(time.monotonic())
                self._dispatch(time.monotonic())
                await self._wake.wait()
                self._wake.clear()
        finally:
            clock.cancel()
            await self._end()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            self._wake.set()

    def stop(self) -> None:
        """Let `run` end now."""
        self._stopped = True
        self._wake.set()

    def submit(self, request: Request) -> None:
        """Have a request answered; those of lower numbers come first."""
        bisect.insort(self._waiting, request, key=lambda r: r.number)
        self._wake.set()

    def state(self) -> str:
        """Who teaches and what is the matter with those who do not, in words."""
        teachers = list(self._teachers.values())
        if not teachers:
            problem = self.source.problem()
            return "no teacher is known" + (f" ({problem})" if problem else "")
        since: dict[Teacher, float] = {}
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
                    self._teachers[endpoint] = Teacher(endpoint, self.connect, self.connect(endpoint))
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
            self._start(teacher.close(), teacher)

    def _dispatch(self, now: float) -> None:
        """Give what waits to whoever is free, and what is overdue to another teacher as well."""
        ready = [teacher for teacher in self._teachers.values() if teacher.ready]
        for request in [r for r in self._asked.values() if self._overdue(r, ready, now)]:
            teacher = least_loaded([t for t in ready if t not in request.asked])
            if teacher is not None:
                self._give(request, teacher, now)
        while self._waiting:
            teacher = least_loaded(ready)
            if teacher is None:
                return
            self._give(self._waiting.pop(0), teacher, now)

    def _overdue(self, request: Request, ready: Sequence[Teacher], now: float) -> bool:
        """Whether those asked take longer than they used to, or than another who has nothing to do would."""
        since = max(request.asked.values())
        usual = max(2 * t.health.slowest if t.health.answers else _NEW for t in request.asked)
        if now - since > max(usual, _OVERDUE):
            return True
        idle = [t.health.service for t in ready if not t.load and t.health.answers and t not in request.asked]
        return bool(idle) and not self._waiting and now - since > max(2 * min(idle), _OVERDUE)

    def _give(self, request: Request, teacher: Teacher, now: float) -> None:
        self._asked[request.number] = request
        request.asked[teacher] = now
        teacher.load += 1
        self._start(self._ask(teacher, request, now))

    async def _ask(self, teacher: Teacher, request: Request, started: float) -> None:
        deadline, together = teacher.health.deadline(), teacher.load
        inputs = request.inputs
        try:
            answer = await teacher.transport.infer(inputs, self.outputs, deadline)
            if self._checks is None:
                assert self.spec is not None
                self._checks = Checks(self.spec, self.outputs)
            problem = self._checks.problem(teacher.endpoint, inputs, answer)
            if problem:
                raise TeacherWrong(f"{teacher.endpoint}: {problem}")
            teacher.health.answered(time.monotonic() - started, together)
            self.rates.note(teacher.endpoint, len(next(iter(inputs.values()))))
            self._answered(request, answer)
        except TeacherError as error:
            self._failed(teacher, error, time.monotonic() - started >= 0.9 * deadline)
        finally:
            teacher.load -= 1
            request.asked.pop(teacher, None)
            if request.answer is None and not request.asked:
                self._asked.pop(request.number, None)
                self.submit(request)

    def _answered(self, request: Request, answer: Mapping[str, np.ndarray]) -> None:
        """Take the first right answer. Whoever else was asked may finish: it shows when a teacher that hung is back."""
        if request.answer is not None:
            return
        now = time.monotonic()
        for other, since in request.asked.items():
            if other.health.answers == 0 or now - since > other.health.slowest:
                other.health.overtaken(now - since)
        self._asked.pop(request.number, None)
        self.answers += 1
        request.inputs, request.place = {}, self.answers
        request.answer = {name: answer[name] for name in self.outputs}  # last: whoever waits looks at it
        self.changed()

    def _failed(self, teacher: Teacher, error: BaseException, late: bool) -> None:
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

    async def _describe(self, teacher: Teacher) -> None:
        """Make sure that it is there and serves the same as the others. Raises ConfigError where none serves what is of use."""
        again = bool(teacher.health.problem)
        try:
            spec = await teacher.describe()
            if self.spec is None:  # else of the first of several that are asked at the same time
                self.usable(spec)
                self.spec = spec
            teacher.must_serve(spec, self.spec)
        except (TeacherError, asyncio.TimeoutError) as error:
            self._failed(teacher, error, late=False)
        except ConfigError as error:
            self._failed(teacher, TeacherWrong(f"{teacher.endpoint}: {error}"), late=False)
            if all(other.health.problem for other in self._teachers.values()):
                raise
        else:
            teacher.health.described()
            teacher.ready, self.described = teacher.listed, True
            if again and teacher.listed:
                _log.info("teacher %s is back", teacher.endpoint)
            self.changed()

    def _start(self, work: Coroutine[Any, Any, None], teacher: Teacher | None = None) -> None:
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
        await asyncio.gather(*(teacher.close() for teacher in (*self._teachers.values(), *self._left)))
        self._teachers.clear()
