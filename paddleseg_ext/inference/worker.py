"""An engine in a process of its own: what it does to settings, threads or memory, its crashes and hangs stay there.

OpenVINO and Paddle in one process share one libtbb, the one that was loaded first, whichever version the other was built with; a
run of paddle.inference changes Paddle's number of threads; and a fault in either would end training.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import paddle
from paddle import Tensor

from paddleseg_ext.inference.messages import receive, send
from paddleseg_ext.inference.runners import paddle_predictor

Runner = Callable[[Tensor], Sequence[Tensor]]
"""float32 [N, C, H, W] to the tensors that were wanted of the model, in their order. Raises where the engine does."""

_SECONDS = 120  # an engine that takes longer for its start, or for a batch, hangs


class EngineError(RuntimeError):
    """The engine said no, or its process is gone."""


class Worker:
    """A Runner whose engine lives in a child process, from construction to `close`.

    Args:
        name: of the engine, one of BACKENDS.
        folder: the exported model.
        precision, threads: what it computes with.
        device: Paddle's name of it.

    Raises: EngineError, also when called, with the reason in one line.
    """

    def __init__(self, name: str, folder: Path, precision: str, threads: int, device: str = "cpu") -> None:
        self._arguments = (name, folder, precision, threads, device)
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "paddleseg_ext.cli.run_engine", str(theirs.fileno())]
            command += [name, str(folder), precision, str(threads), device]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            environment.setdefault("MALLOC_ARENA_MAX", "1")  # less memory is kept for later
            null = subprocess.DEVNULL
            self._child = subprocess.Popen(
                command, env=environment, pass_fds=[theirs.fileno()], stdin=null, stdout=null, stderr=null
            )
        self._connection = ours
        ours.settimeout(_SECONDS)
        self._asked = False
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def __call__(self, images: Tensor) -> list[Tensor]:
        self.ask(images)
        return self.answer()

    def ask(self, images: Tensor) -> None:
        """Give it images to work on while the caller does something else."""
        if self._asked:  # a question whose answer nobody wanted
            with contextlib.suppress(EngineError):
                self.answer()
        self._asked = True
        with self._as_engine_error():
            send(self._connection, {}, [images.numpy()])

    def answer(self) -> list[Tensor]:
        """What it made of them."""
        self._asked = False
        return self._answer()

    @property
    def process(self) -> int:
        """Its number."""
        return self._child.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked again."""
        return self._child.poll() is None

    def again(self) -> "Worker":
        """Another one of the same."""
        return Worker(*self._arguments)

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(1)
        self._child.kill()
        self._child.wait()

    def __del__(self) -> None:
        if hasattr(self, "_connection"):
            self.close()

    def _answer(self) -> list[Tensor]:
        with self._as_engine_error():
            said, arrays = receive(self._connection)
        if "problem" in said:
            raise EngineError(said["problem"])
        return [paddle.to_tensor(array) for array in arrays]

    @contextlib.contextmanager
    def _as_engine_error(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            self._child.kill()
            self._child.wait()
            raise EngineError(f"took more than {_SECONDS} s") from None
        except (OSError, EOFError):
            raise EngineError(f"its process ended {self._end()}") from None

    def _end(self) -> str:
        """How the process, which has hung up, ended; it needs a moment for it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(5)
        self._child.kill()
        code = self._child.wait()
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"


class OnDevice:
    """A Runner by paddle.inference in this process, for a GPU: tensors stay on the device."""

    def __init__(self, folder: Path, precision: str, threads: int, device: str) -> None:
        self._predictor = paddle_predictor(folder, precision, threads, device)

    def __call__(self, images: Tensor) -> list[Tensor]:
        try:
            return [x.clone() for x in self._predictor.run([images])]
        except Exception as error:  # engines raise what they like
            raise EngineError(" ".join(str(error).split())[-200:] or type(error).__name__) from error

    def close(self) -> None:
        """Nothing to end."""


def start(name: str, folder: Path, precision: str, threads: int, images: Tensor) -> "Worker | OnDevice":
    """An engine that has answered a batch. On a GPU it has done so in a process of its own before it is let into this one.

    Raises: EngineError
    """
    device = paddle.get_device()
    worker = Worker(name, folder, precision, threads, device)
    try:
        worker(images)
    except EngineError:
        worker.close()
        raise
    if not device.startswith("gpu"):
        return worker
    worker.close()
    return OnDevice(folder, precision, threads, device)
