"""One teacher as the pool sees it: its connection, what it has to do, and how it has done so far."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from paddleseg_ext.service.health import Health
from paddleseg_ext.service.spec import ModelSpec
from paddleseg_ext.service.transport import Connect, TeacherError, TeacherWrong, Transport

_log = logging.getLogger(__name__)

IN_FLIGHT = 4
"""Requests that one teacher has at once: one it works on, the others travel or wait at its door."""

_DESCRIBE = 3.0  # seconds to say what it serves
_CLOSE = 1.0  # seconds for a good-bye


@dataclass(eq=False)
class Teacher:
    """One endpoint. ready: it may be asked. listed: it still belongs to those that teach. busy: it is being described or
    closed. load: requests that it has.
    """

    endpoint: str
    connect: Connect
    transport: Transport
    health: Health = field(default_factory=Health)
    ready: bool = False
    listed: bool = True
    busy: bool = False
    load: int = 0

    async def describe(self) -> ModelSpec:
        """What it serves. A connection that failed is made anew.

        Raises:
            TeacherError
        """
        if self.health.problem and not self.load:
            await self.close()
            self.transport = self.connect(self.endpoint)
        return await asyncio.wait_for(self.transport.describe(_DESCRIBE), _DESCRIBE + 0.5)

    def must_serve(self, spec: ModelSpec, wanted: ModelSpec) -> None:
        """Raises TeacherWrong where what it serves is not what is wanted."""
        if spec.digest() != wanted.digest():
            raise TeacherWrong(f"{self.endpoint}: {_difference(spec, wanted)}")

    async def close(self) -> None:
        """Give up the connection."""
        try:
            await asyncio.wait_for(self.transport.close(), _CLOSE)
        except (TeacherError, asyncio.TimeoutError):
            _log.debug("the connection to %s did not close in time", self.endpoint)


def least_loaded(teachers: Sequence[Teacher]) -> Teacher | None:
    """Who would be done first with one request more. One that has yet to prove itself is tried at once, but with one."""
    free = [t for t in teachers if t.load < (IN_FLIGHT if t.health.proven else 1)]
    return min(free, key=lambda t: ((t.load + 1) * t.health.service, t.load), default=None)


def _difference(spec: ModelSpec, wanted: ModelSpec) -> str:
    if spec.name != wanted.name:
        return f"it serves '{spec.name}', but the others '{wanted.name}'"
    kind = "inputs" if spec.inputs != wanted.inputs else "outputs"
    here, elsewhere = (", ".join(tensor.words() for tensor in getattr(one, kind)) for one in (spec, wanted))
    return f"'{spec.name}' has the {kind} {here} here, but {elsewhere} elsewhere"
