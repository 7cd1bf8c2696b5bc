"""Teachers as real processes on free ports."""

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

_START = 30.0  # seconds


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ToyServer:
    """One teacher's process, which says READY and its endpoint. It ends with ours, as its standard input does."""

    script = Path(__file__).with_name("toy_server.py")

    def __init__(self, seconds=0.002, kind="double", port=0, words=None):
        words = [port, seconds, kind] if words is None else words
        self.process = subprocess.Popen(
            [sys.executable, str(self.script), *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.endpoint = ""

    def ready(self):
        """Waits until it answers."""
        timer = threading.Timer(_START, self.process.kill)
        timer.start()
        words = self.process.stdout.readline().split()
        timer.cancel()
        assert words[:1] == ["READY"], f"the toy server ended with {self.process.wait(5)}"
        self.endpoint = words[1]
        return self

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def halt(self):
        """It hangs: alive, but no byte moves."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def close(self):
        self.process.kill()
        self.process.wait(10)
        self.process.stdin.close()
        self.process.stdout.close()


class Teachers:
    """Starts teachers and ends them all."""

    def __init__(self):
        self.started = []

    def start(self, count=1, **options):
        new = [ToyServer(**options) for _ in range(count)]
        self.started += new
        return [server.ready() for server in new]

    def close(self):
        for server in self.started:
            server.close()


class Listed:
    """An EndpointSource that a test changes."""

    def __init__(self, endpoints):
        self.listed = list(endpoints)

    def endpoints(self):
        return list(self.listed)

    def problem(self):
        return ""

    def close(self):
        pass
