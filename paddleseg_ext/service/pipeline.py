"""Keeps requests to teachers ahead of whoever takes their answers.

Whatever is read is read by the thread that takes the answers, so that nothing of the caller's runs beside it; the event loop
talks to the teachers meanwhile, in a thread that all pipelines of a process share.
"""

import itertools
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddleseg_ext.errors import NoTeacherError, StoppedWaiting
from paddleseg_ext.service.answers import form
from paddleseg_ext.service.endpoints import Rates
from paddleseg_ext.service.event_loop import event_loop
from paddleseg_ext.service.pool import Pool, Request
from paddleseg_ext.service.spec import ModelSpec
from paddleseg_ext.service.transport import Connect, EndpointSource

_log = logging.getLogger(__name__)

_SAY = 5.0  # seconds between lines about waiting
_LOOK = 0.5  # seconds between looks at whether waiting has an end
_JOIN = 5.0  # seconds that stopping may take

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Task:
    """Something read. parts: what teachers get to see of it, at least one, each a request. payload: comes back as it is."""

    payload: Any
    parts: Sequence[Arrays]


@dataclass(frozen=True)
class Options:
    """How a pipeline works.

    capacity: tasks that are held at most, from being read until they are taken: the bound on memory. ordered: whether they come
    in the order in which they were read, or as they are answered. timeout: seconds without any answer after which waiting
    ends. spec: what teachers must serve; None: the same as the first to be reached. begin: seconds to reach the first;
    None: `timeout`. rates: counts what each teacher does. stopped: looked at while waiting, whether to give up. usable: raises
    ConfigError for a model that cannot be what teachers must serve; another may be reached.
    """

    capacity: int = 16
    ordered: bool = True
    timeout: float = 300.0
    spec: ModelSpec | None = None
    begin: float | None = None
    rates: Rates | None = None
    stopped: Callable[[], bool] = lambda: False
    usable: Callable[[ModelSpec], object] = lambda spec: None


class Pipeline:
    """Teachers at work from now until `close`, the end of the process, or when nobody refers to it any more.

    Args:
        source: who teaches; closed with the pipeline.
        connect: how they are reached.
        options: default Options().
    """

    def __init__(self, source: EndpointSource, connect: Connect, options: Options | None = None) -> None:
        self.options = options or Options()
        self._engine = _Engine(source, connect, self.options)
        self._numbers = itertools.count()
        self.held = 0
        """Tasks that have been read and not yet taken."""
        # The event loop knows the engine only, so that a pipeline that is forgotten is collected, and stops.
        self._finalizer = weakref.finalize(self, self._engine.stop)

    def spec(self) -> ModelSpec:
        """What the teachers serve. Waits for the first of them.

        Raises:
            NoTeacherError: none was reached in time.
            ConfigError: all that were reached serve what is of no use.
        """
        limit = self.options.timeout if self.options.begin is None else self.options.begin
        self._wait(lambda: self._engine.pool.described, limit)
        spec = self._engine.pool.spec
        assert spec is not None
        return spec

    def run(self, tasks: Iterable[Task], outputs: Sequence[str]) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
        """Each task's payload with the outputs of all its parts, one after the other. It runs once.

        Args:
            tasks: are read as they are needed.
            outputs: what is wanted of the teachers, by name or alias.

        Raises:
            NoTeacherError: no answer for `timeout` seconds; StoppedWaiting where it is told to give up.
            Exception: what reading raised, after everything that was read before; what went wrong in the pipeline.
        """
        self._engine.pool.outputs = tuple(outputs)
        source, held, failure = iter(tasks), deque[_Held](), None
        more = True
        while more or held:
            # Two are read for each that is taken until the capacity is reached, which spreads the cost of reading ahead.
            read = 0
            while more and len(held) < self.options.capacity and (read < 2 or not self._done(held)):
                try:
                    task = next(source)
                except StopIteration:
                    more = False
                except Exception as error:
                    more, failure = False, error
                else:
                    held.append(self._send(task))
                    read, self.held = read + 1, len(held)
                    del task  # the caller alone has it when it is handed out
            if held:
                self._wait(lambda: bool(self._done(held)), self.options.timeout)
                one = self._done(held)
                assert one is not None
                held.remove(one)
                self.held = len(held)
                result = one.payload, _joined(one.answers())
                del one
                yield result
                del result
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Stop at once; whatever is under way is dropped."""
        self._finalizer()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, task: Task) -> "_Held":
        requests = [Request(next(self._numbers), part) for part in task.parts]
        self._engine.submit(requests)
        return _Held(task.payload, requests, task.parts if len(requests) > 1 else ())

    def _done(self, held: "deque[_Held]") -> "_Held | None":
        """What can be handed out next."""
        for one in itertools.islice(held, 1) if self.options.ordered else held:
            if all(request.answer is not None for request in one.requests):
                odd = one.renewed()
                if not odd:
                    return one
                self._engine.submit(odd)
        return None

    def _wait(self, done: Callable[[], bool], limit: float) -> None:
        """Until something is done, with a word about it every few seconds."""
        engine, began = self._engine, time.monotonic()
        answers, said = engine.pool.answers, began
        with engine.changed:
            while not done():
                engine.check()
                if self.options.stopped():
                    raise StoppedWaiting(f"asked to stop while waiting for teachers: {engine.pool.state()}")
                now = time.monotonic()
                if engine.pool.answers != answers:
                    answers, began = engine.pool.answers, now
                    said = max(said, now)
                if now - began >= limit:
                    raise NoTeacherError(f"no answer from any teacher for {limit:g} s: {engine.pool.state()}")
                if now - said >= _SAY:
                    said = now
                    _log.warning(
                        "waiting for teachers for %.0f s, at most for %g s: %s", now - began, limit, engine.pool.state()
                    )
                engine.changed.wait(min(_LOOK, limit - (now - began)))


@dataclass(eq=False)
class _Held:
    """A task that was read. parts: of its requests, where there are several: one that was answered has dropped its own."""

    payload: Any
    requests: list[Request]
    parts: Sequence[Arrays]

    def answers(self) -> list[Arrays]:
        return [request.answer or {} for request in self.requests]

    def renewed(self) -> list[Request]:
        """Requests in place of those whose answers do not fit the newest one: most teachers answer in another form by now."""
        forms = [form(answer) for answer in self.answers()]
        newest = forms[max(range(len(forms)), key=lambda i: self.requests[i].place)]
        odd = [i for i, one in enumerate(forms) if one != newest]
        for i in odd:
            self.requests[i] = Request(self.requests[i].number, self.parts[i])
        return [self.requests[i] for i in odd]


class _Engine:
    """A pool at work in the event loop."""

    def __init__(self, source: EndpointSource, connect: Connect, options: Options) -> None:
        self.source = source
        self.changed = threading.Condition()
        self.pool = Pool(source, connect, options.spec, self._notify, options.rates, options.usable)
        self._loop = event_loop()
        self._work = self._loop.start(self.pool.run())
        self._work.add_done_callback(lambda _: self._notify())

    def submit(self, requests: Sequence[Request]) -> None:
        """Have requests answered."""

        def put() -> None:
            for request in requests:
                self.pool.submit(request)

        self._loop.soon(put)

    def check(self) -> None:
        """Raise what ended the work."""
        error = self._work.exception() if self._work.done() else None
        if error is not None:
            raise error
        if self._work.done() or not self._loop.alive:
            raise RuntimeError("the pipeline to the teachers is closed")

    def stop(self) -> None:
        """End the work and close what it used."""
        self._loop.soon(self.pool.stop)
        if self._loop.alive and not self._loop.here and wait([self._work], _JOIN).not_done:
            _log.warning("the work with the teachers did not end within %g s", _JOIN)
        self.source.close()

    def _notify(self) -> None:
        with self.changed:
            self.changed.notify_all()


def _joined(answers: Sequence[Arrays]) -> dict[str, np.ndarray]:
    if len(answers) == 1:
        return dict(answers[0])
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
