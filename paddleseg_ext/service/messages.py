"""What students, balance servers and the store say to each other, as JSON; what comes from others is checked field by field."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paddleseg_ext.service.addresses import is_endpoint, is_name

MOST_TEACHERS = 1024
"""That one student may ask for or hold."""


class MalformedText(ValueError):
    """What came is not what is expected; the text says how."""


@dataclass(frozen=True)
class Lease:
    """A teacher's entry in the store.

    digest: ModelSpec.digest() of its model. token: known to its owner only. started: when it was registered, seconds since
    1970. rates: figures of the teacher's own to show, such as {"samples/s": 41.0}.
    """

    service: str
    endpoint: str
    model: str
    digest: str
    token: str
    started: float
    rates: Mapping[str, float] = field(default_factory=dict)

    def text(self) -> str:
        """Without the token, which is stored apart."""
        return _text(self, "service", "endpoint", "model", "digest", "started", "rates")

    @classmethod
    def parse(cls, text: bytes | str) -> "Lease":
        """Raises MalformedText."""
        found = _object(text)
        return cls(
            service=_name(found, "service"),
            endpoint=_endpoint(found.get("endpoint"), "endpoint"),
            model=_string(found, "model", 256),
            digest=_string(found, "digest", 64),
            token="",
            started=_number(found.get("started"), "started"),
            rates=_rates(found),
        )


@dataclass(frozen=True)
class Report:
    """What a student says with each poll.

    student: a name of its own. require_num: the most teachers it has a use for. digest: of the model it learns from; empty:
    of none yet. held: whom it asks at present. rates: samples per second by endpoint.
    """

    service: str
    student: str
    require_num: int = 1
    digest: str = ""
    held: tuple[str, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict)

    def text(self) -> str:
        """As JSON."""
        return _text(self, "service", "student", "require_num", "digest", "held", "rates")

    @classmethod
    def parse(cls, text: bytes | str) -> "Report":
        """Raises MalformedText."""
        found = _object(text)
        number = found.get("require_num")
        if type(number) is not int or not 1 <= number <= MOST_TEACHERS:
            raise MalformedText(f"'require_num' is a whole number from 1 to {MOST_TEACHERS}")
        return cls(
            service=_name(found, "service"),
            student=_name(found, "student"),
            require_num=number,
            digest=_string(found, "digest", 64),
            held=_endpoints(found, "held"),
            rates=_rates(found),
        )


@dataclass(frozen=True)
class Share:
    """What a balance server answers: whom to ask, and what they serve; digest is empty where there is nobody."""

    teachers: tuple[str, ...]
    digest: str

    def text(self) -> str:
        """As JSON."""
        return _text(self, "teachers", "digest")

    @classmethod
    def parse(cls, text: bytes | str) -> "Share":
        """Raises MalformedText."""
        found = _object(text)
        return cls(_endpoints(found, "teachers"), _string(found, "digest", 64))


def finite(rates: Mapping[str, float]) -> dict[str, float]:
    """The rates that are numbers, as JSON has them."""
    return {str(name): float(rate) for name, rate in rates.items() if math.isfinite(rate)}


def load(text: bytes | str) -> Any:
    """JSON of others. Raises MalformedText."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise MalformedText(f"no JSON: {' '.join(str(error).split())[:100]}") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _text(message: object, *fields: str) -> str:
    return json.dumps({name: getattr(message, name) for name in fields}, sort_keys=True)


def _object(text: bytes | str) -> dict[str, Any]:
    found = load(text)
    if not isinstance(found, dict):
        raise MalformedText("a JSON object is expected")
    return found


def _name(found: Mapping[str, Any], key: str) -> str:
    if not is_name(found.get(key)):
        raise MalformedText(f"'{key}' is a name of letters, digits, '.', '_' and '-'")
    return found[key]


def _string(found: Mapping[str, Any], key: str, most: int) -> str:
    value = found.get(key)
    if not isinstance(value, str) or len(value) > most or not value.isprintable():
        raise MalformedText(f"'{key}' is a text of at most {most} characters that can be shown")
    return value


def _endpoint(value: Any, key: str) -> str:
    if not is_endpoint(value):
        raise MalformedText(f"'{key}' is host:port")
    return value


def _endpoints(found: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = found.get(key)
    if not isinstance(values, list) or len(values) > MOST_TEACHERS:
        raise MalformedText(f"'{key}' is a list of at most {MOST_TEACHERS} endpoints")
    return tuple(_endpoint(value, key) for value in values)


def _number(value: Any, key: str) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e300:  # neither NaN nor an integer beyond all floats
        raise MalformedText(f"'{key}' is a number")
    return float(value)


def _rates(found: Mapping[str, Any]) -> dict[str, float]:
    values = found.get("rates")
    if not isinstance(values, dict) or len(values) > MOST_TEACHERS:
        raise MalformedText(f"'rates' is an object of at most {MOST_TEACHERS} numbers")
    return {key[:256]: _number(value, "rates") for key, value in values.items()}
