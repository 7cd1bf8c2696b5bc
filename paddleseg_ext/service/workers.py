"""Models in processes of their own: an engine that holds Python's global lock while it runs would stop the server meanwhile."""

import contextlib
import json
import multiprocessing
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from paddleseg_ext.errors import UserError
from paddleseg_ext.service import wire
from paddleseg_ext.service.batching import Predict
from paddleseg_ext.service.spec import ModelSpec, TensorSpec

Open = Callable[[], tuple[ModelSpec, Predict]]
"""Opens a model. It is called in the new process, so that it must be importable there."""


class Worker:
    """A Predict whose model lives in a process of its own, which ends with this one, however this one ends.

    A process that died is replaced: the call during which it died fails, the next one waits for the new process.

    Args:
        opened: opens the model.
    """

    def __init__(self, opened: Open) -> None:
        self._opened = opened
        self._model: ModelSpec | None = None
        self._start()

    def spec(self) -> ModelSpec:
        """The model, as soon as it is open.

        Raises:
            UserError: `opened` raises it, or its process dies.
            RuntimeError: it raises anything else.
        """
        if self._model is None:
            try:
                self._model = _spec(self._said())
            except EOFError:
                self._process.join()
                raise UserError(f"the process that opens the model ended with code {self._process.exitcode}") from None
        return self._model

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        try:
            self.spec()
            _send(self._pipe, inputs)
            return _receive(self._pipe, self._said()["arrays"])
        except (EOFError, OSError, UserError):
            self.close()
            code = self._process.exitcode
            self._start()
            raise RuntimeError(f"its process ended with code {code}; another one is started") from None

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._model = None
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, self._opened), daemon=True)
        self._process.start()
        other.close()

    def _said(self) -> Any:
        said = json.loads(self._pipe.recv_bytes())
        if "wrong" in said:
            raise UserError(said["wrong"])
        if "failed" in said:
            raise RuntimeError(said["failed"])
        return said


def _work(pipe: Connection, opened: Open) -> None:
    """In the new process: until the other end of the pipe is closed."""
    os.setsid()  # Ctrl-C at the terminal is the server's, which finishes what it accepted
    with contextlib.suppress(EOFError, OSError):
        try:
            spec, predict = opened()
        except UserError as error:
            _say(pipe, {"wrong": str(error)})
            return
        except Exception:
            _say(pipe, {"failed": traceback.format_exc()})
            return
        _say(pipe, asdict(spec))
        while True:
            _answer(pipe, predict)


def _answer(pipe: Connection, predict: Predict) -> None:
    inputs = _receive(pipe, json.loads(pipe.recv_bytes())["arrays"])
    try:
        outputs = predict(inputs)
    except Exception as error:
        _say(pipe, {"failed": f"{type(error).__name__}: {error}"})
    else:
        _send(pipe, outputs)


def _say(pipe: Connection, content: Any) -> None:
    pipe.send_bytes(json.dumps(content).encode())


def _send(pipe: Connection, arrays: Sequence[np.ndarray]) -> None:
    _say(pipe, {"arrays": [(wire.datatype(x.dtype), x.shape) for x in arrays]})
    for x in arrays:
        pipe.send_bytes(wire.raw(x))


def _receive(pipe: Connection, described: Any) -> list[np.ndarray]:
    arrays = [np.empty(shape, wire.DTYPES[datatype]) for datatype, shape in described]
    for x in arrays:
        pipe.recv_bytes_into(wire.raw(x))
    return arrays


def _spec(said: Any) -> ModelSpec:
    def tensors(described: Any) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(t["name"], t["datatype"], tuple(t["shape"]), t["alias"]) for t in described)

    return ModelSpec(said["name"], said["version"], tensors(said["inputs"]), tensors(said["outputs"]))
