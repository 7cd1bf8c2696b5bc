"""Arrays between two processes over a socket. Imports no framework: a process that runs an engine does without."""

import json
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def send(connection: socket.socket, said: Mapping[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    """One message: its words and its arrays.

    Raises:
        OSError: nobody is there, or does not listen within the connection's time limit.
    """
    arrays = [np.ascontiguousarray(array) for array in arrays]
    kinds = [[array.dtype.str, list(array.shape)] for array in arrays]
    head = json.dumps({**said, "arrays": kinds}).encode()
    connection.sendall(struct.pack("<I", len(head)) + head)
    for array in arrays:
        if array.size:
            connection.sendall(_bytes_of(array))


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The next message.

    Raises:
        EOFError: the other side has gone.
        OSError: it says nothing within the connection's time limit.
    """
    head = bytearray(struct.unpack("<I", _filled(connection, bytearray(4)))[0])
    said = json.loads(_filled(connection, head))
    arrays = [np.empty(shape, dtype) for dtype, shape in said.pop("arrays")]
    for array in arrays:
        if array.size:
            _filled(connection, _bytes_of(array))
    return said, arrays


def _bytes_of(array: np.ndarray) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8).data)


def _filled(connection: socket.socket, buffer: Any) -> Any:
    view = memoryview(buffer)
    while len(view):
        count = connection.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return buffer
