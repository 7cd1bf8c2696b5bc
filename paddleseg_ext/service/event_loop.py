"""The event loop in which a process talks to teachers: one, in a thread that stays.

gRPC has one poller for all event loops of a process, and it is any of them that tells the others which of their calls have
ended, cancelled ones a while later. A loop that is closed by then cannot be told, and what came with it is lost.
"""

import asyncio
import functools
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class EventLoop:
    """Runs coroutines in a thread of its own until the process ends."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        # A daemon, so that a process that ends is not kept.
        self._thread = threading.Thread(target=self.loop.run_forever, name="event loop", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it runs; it does not in a process that was forked."""
        return self._thread.is_alive()

    @property
    def here(self) -> bool:
        """Whether its own thread asks, which cannot wait for what it does."""
        return self._thread is threading.current_thread()

    def start(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Begin to run a coroutine; any thread may wait for its end."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What a coroutine returns or raises."""
        future = self.start(work)
        try:
            return future.result()
        except BaseException:  # Ctrl-C in the thread that waits
            future.cancel()
            raise

    def soon(self, call: Callable[[], object]) -> None:
        """Have something called in the loop."""
        self.loop.call_soon_threadsafe(call)


def event_loop() -> EventLoop:
    """The loop of this process; it begins when it is first asked for, in one that was forked too."""
    return _of(os.getpid())


@functools.cache  # two, if two threads are the first at the same moment, do no harm: neither is ever closed
def _of(process: int) -> EventLoop:
    return EventLoop()
