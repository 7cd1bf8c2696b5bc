"""Arrays from one process to another by memory that both see; a pipe carries only what and where they are.

The memory has no name and goes with the processes, however they end. It is no part of /dev/shm, which is small in containers.
"""

import json
import mmap
import os
import tempfile
from collections.abc import Sequence
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from paddleseg_ext.service import wire

_ALIGNED = 64


class Outbox:
    """Sends arrays into a pipe. What was sent before is overwritten, so that it must have been read by then."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._memory: mmap.mmap | None = None

    def send(self, arrays: Sequence[np.ndarray]) -> None:
        """Put them where the other side sees them, and say so."""
        described, end = [], 0
        for x in arrays:
            described.append((wire.datatype(x.dtype), x.shape, end))
            end += -(-x.nbytes // _ALIGNED) * _ALIGNED
        if self._memory is None or len(self._memory) < end:
            descriptor = _new_memory(2 * end or _ALIGNED)
            try:
                self._memory = mmap.mmap(descriptor, 0)
                self._put(arrays, described)
                say(self._pipe, {"arrays": described, "fresh": True})
                reduction.send_handle(self._pipe, descriptor, os.getpid())
            finally:
                os.close(descriptor)
        else:
            self._put(arrays, described)
            say(self._pipe, {"arrays": described, "fresh": False})

    def _put(self, arrays: Sequence[np.ndarray], described: Sequence[tuple[Any, ...]]) -> None:
        assert self._memory is not None
        for x, (datatype, shape, start) in zip(arrays, described, strict=True):
            np.frombuffer(self._memory, wire.DTYPES[datatype], x.size, start).reshape(shape)[...] = x


class Inbox:
    """Takes arrays from a pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._memory: mmap.mmap | None = None

    def take(self, said: Any) -> list[np.ndarray]:
        """The arrays of which the other side has said `said`, in its memory: they last until it sends others."""
        if said["fresh"]:
            descriptor = reduction.recv_handle(self._pipe)
            try:
                self._memory = mmap.mmap(descriptor, 0)
            finally:
                os.close(descriptor)
        assert self._memory is not None
        found = []
        for datatype, shape, start in said["arrays"]:
            count = int(np.prod(shape, dtype=np.int64))
            found.append(np.frombuffer(self._memory, wire.DTYPES[datatype], count, start).reshape(shape))
        return found


def say(pipe: Connection, content: Any) -> None:
    """Send plain values."""
    pipe.send_bytes(json.dumps(content).encode())


def hear(pipe: Connection) -> Any:
    """The inverse of `say`."""
    return json.loads(pipe.recv_bytes())


def _new_memory(size: int) -> int:
    """A descriptor of as many bytes."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("teacher")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, size)
    return descriptor
