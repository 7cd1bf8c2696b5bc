"""Whether a served model still answers, or hangs or fails whatever it is asked."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

_FAILED = 3  # requests in a row; students leave a teacher out after as many
_REST = 60.0  # seconds after the last failure; who is not well may not be asked, so that success alone could not end it


class Vitals:
    """What has become of the runs of a model. Thread-safe.

    Args:
        longest: seconds in which something must come of one of the runs that are at work.
        clock: in seconds.
    """

    def __init__(self, longest: float = 120.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest, self._clock = longest, clock
        self._lock = threading.Lock()
        self._at_work: dict[object, float] = {}  # since when
        self._success = self._failure = -float("inf")
        self._failures, self._error = 0, ""

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """While the model is at work."""
        one = object()
        with self._lock:
            self._at_work[one] = self._clock()
        try:
            yield
        finally:
            with self._lock:
                del self._at_work[one]

    def succeeded(self) -> None:
        """A request has its outputs."""
        with self._lock:
            self._success, self._failures = self._clock(), 0

    def failed(self, error: BaseException) -> None:
        """A request that ran alone has none."""
        with self._lock:
            self._failure, self._error = self._clock(), f"{type(error).__name__}: {error}"
            self._failures += 1

    def problem(self) -> str:
        """Why it is not well, in words; empty where it is."""
        with self._lock:
            now = self._clock()
            still = now - max(min(self._at_work.values(), default=now), self._success)
            if still > self._longest:
                return f"the model has been at work for {still:.0f} s"
            if self._failures >= _FAILED and now - self._failure < _REST:
                return f"the model failed {self._failures} times in a row, at last with {' '.join(self._error.split())[:200]}"
            return ""
