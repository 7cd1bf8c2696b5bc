"""How a student reaches one teacher; the gRPC client is one way, an object in memory another."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from paddleseg_ext.service.spec import ModelSpec


class TeacherError(Exception):
    """What one teacher did not do; the message names its endpoint."""


class TeacherUnavailable(TeacherError):
    """It could not be reached, was too busy, or did not answer in time: the request may be sent again, here or elsewhere."""


class TeacherWrong(TeacherError):
    """It answered what cannot be right: another model, shape, type or id, a value that is not finite."""


class Transport(Protocol):
    """One teacher at one endpoint; used from one asyncio event loop."""

    async def describe(self, seconds: float) -> ModelSpec:
        """What it serves. Raises TeacherError, after `seconds` at the latest."""

    async def infer(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], seconds: float
    ) -> dict[str, np.ndarray]:
        """The outputs of these names or aliases, by the name asked for; arrays are the caller's own.

        Raises TeacherError, after `seconds` at the latest.
        """

    async def close(self) -> None:
        """Give up the connection and whatever is under way."""


Connect = Callable[[str], Transport]
"""An endpoint `ip:port` to a transport; does not wait for the connection."""


class EndpointSource(Protocol):
    """Which teachers there are at present. Thread-safe; no call waits."""

    def endpoints(self) -> Sequence[str]:
        """`ip:port` of each teacher that may be asked now. What it raises ends the waiting for teachers."""

    def problem(self) -> str:
        """Why there is none, in words; empty where nothing is wrong with the source itself."""

    def close(self) -> None:
        """Stop looking."""
