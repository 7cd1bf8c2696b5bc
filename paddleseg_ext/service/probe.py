"""A look at teachers before they are relied on."""

import asyncio
import time
from collections.abc import Mapping, Sequence

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.service.event_loop import event_loop
from paddleseg_ext.service.spec import ModelSpec
from paddleseg_ext.service.transport import Connect, TeacherError, TeacherUnavailable

_CALL = 3.0  # seconds
_PAUSE = 0.3  # seconds between two tries


def probe(
    where: str, endpoints: Sequence[str], connect: Connect, seconds: float
) -> tuple[ModelSpec, Mapping[str, str]]:
    """What all teachers that can be reached serve, and why others could not be reached, by endpoint.

    Args:
        where: what named the endpoints, for messages.
        seconds: for all of them; those that are just starting are tried again until then.

    Raises:
        ConfigError: none can be reached, one answers what cannot be, or they serve different models.
    """
    said = event_loop().run(_ask_all(endpoints, connect, time.monotonic() + seconds))
    specs = {endpoint: spec for endpoint, spec in said.items() if isinstance(spec, ModelSpec)}
    away = {endpoint: str(error) for endpoint, error in said.items() if isinstance(error, TeacherUnavailable)}
    for error in said.values():
        if isinstance(error, TeacherError) and not isinstance(error, TeacherUnavailable):
            raise ConfigError(f"{where}: {error}")
    if not specs:
        raise ConfigError(f"{where}: no teacher can be reached: {'; '.join(list(away.values())[:4])}")
    first, *others = specs.items()
    for endpoint, spec in others:
        if spec.digest() != first[1].digest():
            raise ConfigError(f"{where}: {first[0]} serves {_words(first[1])}, but {endpoint} {_words(spec)}")
    return first[1], away


async def _ask_all(endpoints: Sequence[str], connect: Connect, end: float) -> dict[str, ModelSpec | TeacherError]:
    answers = await asyncio.gather(*(_ask(endpoint, connect, end) for endpoint in endpoints))
    return dict(zip(endpoints, answers, strict=True))


async def _ask(endpoint: str, connect: Connect, end: float) -> ModelSpec | TeacherError:
    transport = connect(endpoint)
    try:
        while True:
            try:
                return await transport.describe(_CALL)
            except TeacherUnavailable as error:
                if time.monotonic() + _PAUSE >= end:
                    return error
            except TeacherError as error:
                return error
            await asyncio.sleep(_PAUSE)
    finally:
        await transport.close()


def _words(spec: ModelSpec) -> str:
    takes, gives = (", ".join(tensor.words() for tensor in tensors) for tensors in (spec.inputs, spec.outputs))
    return f"'{spec.name}' from {takes} to {gives}"
