"""The child process of an engine: `python -m paddleseg_ext.cli.run_engine SOCKET ENGINE FOLDER PRECISION THREADS DEVICE`.

Started by the teacher's engine; answers batches until the other side hangs up.
"""

import contextlib
import signal
import socket
import sys
from pathlib import Path

from paddleseg_ext.inference.messages import receive, send
from paddleseg_ext.inference.runners import BACKENDS


def serve(connection: socket.socket, name: str, folder: Path, precision: str, threads: int, device: str) -> None:
    """Start the engine, say so, and answer."""
    try:
        run = BACKENDS[name].start(folder, precision, threads, device)
    except Exception as error:  # engines raise what they like
        send(connection, {"problem": _line(error)})
        return
    send(connection, {})
    while True:
        _, (images,) = receive(connection)
        try:
            arrays = run(images)
        except Exception as error:
            send(connection, {"problem": _line(error)})
        else:
            send(connection, {}, arrays)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[-200:] or type(error).__name__


if __name__ == "__main__":
    # A signal to stop training reaches the whole group; the training process has then still a batch to finish.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    descriptor, name, folder, precision, threads, device = sys.argv[1:]
    with contextlib.suppress(EOFError, OSError):  # the training process has gone
        serve(socket.socket(fileno=int(descriptor)), name, Path(folder), precision, int(threads), device)
