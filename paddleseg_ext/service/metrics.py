"""What a server counts, for Prometheus, on a port of its own."""

import contextlib
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from paddleseg_ext.errors import ConfigError

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counts of one server.

    Args:
        waiting: how many requests wait now.
    """

    def __init__(self, waiting: Callable[[], float] = lambda: 0) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("teacher_requests", "Requests by how they ended", ["status"], registry=registry)
        self.rows = Counter("teacher_rows", "Rows that were answered", registry=registry)
        self.received = Counter("teacher_received_bytes", "Bytes of tensors that came in", registry=registry)
        self.sent = Counter("teacher_sent_bytes", "Bytes of tensors that went out", registry=registry)
        self.latency = Histogram(
            "teacher_request_seconds", "From a request's arrival to its answer", buckets=_SECONDS, registry=registry
        )
        self.run_seconds = Histogram("teacher_run_seconds", "Of the model", buckets=_SECONDS, registry=registry)
        self.run_rows = Histogram(
            "teacher_run_rows", "Rows that the model ran at once", buckets=_ROWS, registry=registry
        )
        self.waiting = Gauge("teacher_waiting_requests", "Requests that wait for a predictor", registry=registry)
        self.waiting.set_function(waiting)

    def ran(self, rows: int, seconds: float) -> None:
        """The model ran once."""
        self.run_rows.observe(rows)
        self.run_seconds.observe(seconds)

    @contextlib.contextmanager
    def shown(self, host: str, port: int | None) -> Iterator[int | None]:
        """Serve `/metrics` meanwhile; gives the port, which is a free one for 0. None: not served. Raises ConfigError."""
        if port is None:
            yield None
            return
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            raise ConfigError(f"--metrics_port {port}: {host}:{port} cannot be had: {error.strerror}") from None
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
