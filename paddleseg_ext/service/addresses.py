"""Addresses and names as users write them, and whether one can listen there."""

import re
import socket
from collections.abc import Sequence

from paddleseg_ext.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")


def is_name(text: object) -> bool:
    """Whether it can name a service or a student: letters, digits, `.`, `_`, `-`, at most 128."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def is_endpoint(text: object) -> bool:
    """Whether it is `host:port`, or `[address]:port` with an IPv6 address."""
    if not isinstance(text, str):
        return False
    host, colon, port = text.rpartition(":")
    return bool(colon and _HOST.fullmatch(host) and re.fullmatch(r"[0-9]{1,5}", port)) and int(port) < 65536


def service_name(flag: str, text: str) -> str:
    """The name of a service. Raises ConfigError."""
    if not is_name(text):
        raise ConfigError(
            f"{flag}: letters, digits, '.', '_' and '-' make a name, at most 128 of them, but got {text[:200]!r}"
        )
    return text


def endpoint(flag: str, text: str) -> str:
    """One `host:port`. Raises ConfigError."""
    if not is_endpoint(text):
        raise ConfigError(f"{flag}: host:port is expected, such as 127.0.0.1:7001, but got {text!r}")
    return text


def endpoints(flag: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """`host:port[,host:port...]`, or a list of them, each once. Raises ConfigError."""
    words = given.split(",") if isinstance(given, str) else given
    found = tuple(dict.fromkeys(word.strip() for word in words))
    wrong = [word for word in found if not is_endpoint(word)]
    if wrong or not found:
        raise ConfigError(f"{flag}: host:port[,host:port...] is expected, such as 127.0.0.1:7001, but got {given!r}")
    return found


def in_the_way(address: str) -> str:
    """Why nobody can listen at `host:port`; empty where one can. gRPC would not say it, and writes lines of its own."""
    host, _, port = address.rpartition(":")
    try:
        family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        socket.create_server((host.strip("[]"), int(port)), family=family).close()
    except OSError as error:
        return str(error.strerror or error).partition(" (while")[0]
    return ""
