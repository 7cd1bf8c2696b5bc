"""Requests that wait, and the threads that run them together."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from paddleseg_ext.service.vitals import Vitals

Predict = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]
"""A model: its inputs in their order to its outputs in theirs. Called by one thread at a time; its arrays are the caller's."""


class QueueFull(Exception):
    """As many requests wait as may."""


class Closed(Exception):
    """No more requests are taken."""


@dataclass(frozen=True)
class BatchOptions:
    """How requests are put together.

    max_rows: most rows of one run; a request of more is run in parts. wait_seconds: how long a run that is not full waits for
    more, counted from when its first request came. capacity: requests that may wait; further ones are refused.
    capacity_bytes: of their inputs, likewise.
    """

    max_rows: int = 16
    wait_seconds: float = 0.001
    capacity: int = 64
    capacity_bytes: int = 1 << 31


@dataclass
class _Job:
    inputs: Sequence[np.ndarray]
    rows: int
    arrived: float
    future: "Future[list[np.ndarray]]" = field(default_factory=Future)

    @property
    def size(self) -> int:
        return sum(x.nbytes for x in self.inputs)

    def goes_with(self, other: "_Job") -> bool:
        """Whether the two can be one batch: all but their numbers of rows is equal."""
        return all(
            a.dtype == b.dtype and a.shape[1:] == b.shape[1:] for a, b in zip(self.inputs, other.inputs, strict=True)
        )


class Batcher:
    """Runs requests on several predictors, each with a thread of its own, in the order in which they came.

    Args:
        predictors: each is used by one thread.
        options: see BatchOptions.
        batched: False for a model whose inputs have no batch dimension that may change: each request runs alone.
        observe: called with the rows and seconds of each run, by the thread that ran it.
        vitals: hears what becomes of them.
    """

    def __init__(
        self,
        predictors: Sequence[Predict],
        options: BatchOptions | None = None,
        *,
        batched: bool = True,
        observe: Callable[[int, float], None] = lambda rows, seconds: None,
        vitals: Vitals | None = None,
    ) -> None:
        self.options, self._batched, self._observe = options or BatchOptions(), batched, observe
        self.vitals = vitals or Vitals()
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        # One thread at a time puts a batch together, so that two idle ones do not share out what should be one.
        self._forming = threading.Lock()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, args=(predict,), name=f"predictor {i}", daemon=True)
            for i, predict in enumerate(predictors)
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    def submit(self, inputs: Sequence[np.ndarray]) -> "Future[list[np.ndarray]]":
        """Queue a request; a cancelled one is not run. Raises QueueFull or Closed."""
        job = _Job(inputs, inputs[0].shape[0] if self._batched else 1, time.monotonic())
        with self._changed:
            if self._closed:
                raise Closed
            if self._full(job):
                # Cancelled ones still lie there.
                self._waiting = deque(j for j in self._waiting if not j.future.cancelled())
                if self._full(job):
                    raise QueueFull
            self._waiting.append(job)
            self._changed.notify_all()
        return job.future

    def close(self, seconds: float = 5.0) -> None:
        """Take no more requests, run those that wait, and end the threads; one that hangs is left after `seconds`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0))

    def _full(self, job: _Job) -> bool:
        size = sum(j.size for j in self._waiting)
        return len(self._waiting) >= self.options.capacity or size + job.size > self.options.capacity_bytes

    def _work(self, predict: Predict) -> None:
        while jobs := self._next():
            self._run(predict, jobs)

    def _next(self) -> list[_Job]:
        """The next batch; empty at the end."""
        with self._forming, self._changed:
            first = self._take(lambda job: True)
            while first is None:
                if self._closed:
                    return []
                self._changed.wait()
                first = self._take(lambda job: True)
            jobs, room = [first], self.options.max_rows - first.rows
            end = first.arrived + self.options.wait_seconds
            while self._batched and room > 0:
                more = self._take(lambda job: job.rows <= room and job.goes_with(first))  # noqa: B023 (used at once)
                if more is not None:
                    jobs.append(more)
                    room -= more.rows
                    continue
                seconds = end - time.monotonic()
                # What waits and does not fit would have to wait for what may not come.
                if seconds <= 0 or self._closed or self._waiting:
                    break
                self._changed.wait(seconds)
            return jobs

    def _take(self, suits: Callable[[_Job], bool]) -> _Job | None:
        """The first that waits, if it suits; cancelled ones are passed over."""
        while self._waiting and self._waiting[0].future.cancelled():
            self._waiting.popleft()
        if not self._waiting or not suits(self._waiting[0]):
            return None
        job = self._waiting.popleft()
        return job if job.future.set_running_or_notify_cancel() else self._take(suits)

    def _run(self, predict: Predict, jobs: list[_Job]) -> None:
        try:
            results = self._outputs(predict, jobs)
        except BaseException as error:
            if len(jobs) > 1:  # one of them may be to blame, and only that one is to suffer
                for job in jobs:
                    self._run(predict, [job])
                return
            self.vitals.failed(error)
            jobs[0].future.set_exception(error)
            return
        self.vitals.succeeded()
        for job, result in zip(jobs, results, strict=True):
            job.future.set_result(result)

    def _outputs(self, predict: Predict, jobs: list[_Job]) -> list[list[np.ndarray]]:
        """What each request gets."""
        inputs = jobs[0].inputs
        if len(jobs) > 1:
            inputs = [np.concatenate(parts) for parts in zip(*(job.inputs for job in jobs), strict=True)]
        rows = sum(job.rows for job in jobs)
        parts = []
        for start in range(0, max(rows, 1), self.options.max_rows):
            part = [x[start : start + self.options.max_rows] for x in inputs] if self._batched else inputs
            began = time.perf_counter()
            with self.vitals.run():
                parts.append(predict(part))
            self._observe(len(part[0]) if self._batched else 1, time.perf_counter() - began)
        outputs = parts[0] if len(parts) == 1 else [np.concatenate(x) for x in zip(*parts, strict=True)]
        if len(jobs) == 1:
            return [list(outputs)]
        short = [x.shape for x in outputs if not x.ndim or x.shape[0] != rows]
        if short:
            raise ValueError(f"{rows} rows went in, but an output has the shape {list(short[0])}")
        ends = np.cumsum([job.rows for job in jobs])
        return [[x[end - job.rows : end] for x in outputs] for job, end in zip(jobs, ends, strict=True)]
