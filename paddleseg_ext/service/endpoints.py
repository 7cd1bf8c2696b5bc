"""Teachers by address, and how much each of them does."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from paddleseg_ext.service.security import Security
from paddleseg_ext.service.transport import EndpointSource


class FixedEndpoints:
    """An EndpointSource that always says the same."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        self._endpoints = tuple(endpoints)

    def endpoints(self) -> Sequence[str]:
        """`host:port` of each."""
        return self._endpoints

    def problem(self) -> str:
        """Nothing."""
        return ""

    def close(self) -> None:
        """Nothing to stop."""


class Rates:
    """Samples per second by endpoint, from one call to the next. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._since = time.monotonic()

    def note(self, endpoint: str, samples: int) -> None:
        """So many were answered."""
        with self._lock:
            self._counts[endpoint] += samples

    def __call__(self) -> dict[str, float]:
        now = time.monotonic()
        with self._lock:
            seconds, counts = max(now - self._since, 1e-3), self._counts
            self._since, self._counts = now, Counter()
        return {endpoint: count / seconds for endpoint, count in counts.items()}


OpenSource = Callable[[Rates], EndpointSource]
"""Starts looking for teachers; the rates are told to whoever shows them."""


def discovery(servers: Sequence[str], service_name: str, most: int, security: Security) -> OpenSource:
    """Teachers that balance servers give for a service, `most` at a time. Opening raises ConfigError."""

    def start(rates: Rates) -> EndpointSource:
        from paddleseg_ext.service.discovery import DiscoveredEndpoints, DiscoveryOptions

        return DiscoveredEndpoints(servers, service_name, DiscoveryOptions(most, security=security, rates=rates))

    return start
