"""What is known of one teacher: how long it takes, whether it may be asked, and when to try it again."""

import random
from dataclasses import dataclass, field

_UNKNOWN = 30.0  # seconds to wait for a teacher's first answer; it may have to warm up
_LEAST, _MOST = 3.0, 120.0  # of any deadline, in seconds
_SLACK = 6.0  # a deadline as a multiple of the slowest answer of late
_FIRST_BACKOFF, _LAST_BACKOFF = 0.25, 5.0  # seconds
_WRONG = 3  # wrong answers in a row until a teacher is left out
_LEFT_OUT = 60.0  # seconds between looks at one that is
_FOLLOW = 0.3  # the weight of the newest answer in a mean


@dataclass
class Health:
    """Success and failure of one teacher. Times are seconds of a clock that is passed in.

    service: mean seconds that it takes for one request, shared out among those that it has at once; 0 until it has answered.
    slowest: of its answers of late, and `_UNKNOWN` until it has answered.
    """

    service: float = 0.0
    slowest: float = _UNKNOWN / _SLACK
    answers: int = 0
    retry_at: float = 0.0
    problem: str = ""
    _failures: int = 0
    _late: int = 0
    _wrong: int = 0
    _random: random.Random = field(default_factory=random.Random)

    @property
    def left_out(self) -> bool:
        """Whether it was wrong so often that it is hardly tried any more."""
        return self._wrong >= _WRONG

    @property
    def proven(self) -> bool:
        """Whether the last that it did was to answer rightly."""
        return self.answers > 0 and self._failures == 0

    def deadline(self) -> float:
        """Seconds to wait for its next answer; more after each that came too late, as it may have grown slow for good."""
        return min(max(_SLACK * self.slowest, _LEAST) * 2**self._late, _MOST)

    def described(self) -> None:
        """It is there and serves what it should."""
        self.problem = ""

    def answered(self, seconds: float, together: int) -> None:
        """It answered rightly, having `together` requests at once."""
        service = seconds / together
        self.service = service if self.answers == 0 else (1 - _FOLLOW) * self.service + _FOLLOW * service
        self.slowest = seconds if self.answers == 0 else max(seconds, 0.9 * self.slowest)
        self.answers += 1
        self._failures = self._late = self._wrong = 0
        self.problem, self.retry_at = "", 0.0

    def overtaken(self, seconds: float) -> None:
        """Another answered while this one had had a request for so long."""
        self.service = max(self.service, seconds)

    def unavailable(self, now: float, problem: str, late: bool = False) -> None:
        """It could not be reached, was too busy, or (`late`) did not answer in time."""
        self._late = min(self._late + late, 16)
        self._failed(now, problem)

    def wrong(self, now: float, problem: str) -> None:
        """It answered what cannot be right."""
        self._wrong += 1
        self._failed(now, problem)
        if self.left_out:
            self.retry_at = now + _LEFT_OUT

    def _failed(self, now: float, problem: str) -> None:
        self.problem = problem
        wait = min(_FIRST_BACKOFF * 2**self._failures, _LAST_BACKOFF)
        self._failures = min(self._failures + 1, 16)
        # Not all students at the same moment.
        self.retry_at = now + wait * self._random.uniform(0.75, 1.25)
