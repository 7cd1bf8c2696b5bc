"""The store of who teaches and who learns: a Redis server, or several of which the first that works is used.

Below a prefix: a lease for each teacher, a report for each student, and who asks whom for each service. Everything runs out
unless it is renewed, so that nobody has to clean up after a crash.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from paddleseg_ext.errors import ConfigError, UserError
from paddleseg_ext.service import scripts
from paddleseg_ext.service.addresses import is_endpoint, is_name
from paddleseg_ext.service.messages import Lease, MalformedText, Report

PASSWORD_VARIABLE = "REDIS_PASSWORD"
_SECONDS = 2.0  # that Redis may take to answer
_AGAIN = 5.0  # seconds after which the first endpoint is tried again
_AWAY = (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError, redis.BusyLoadingError, OSError)

Found = TypeVar("Found")
Parsed = TypeVar("Parsed", Lease, Report)


class RegistryError(UserError):
    """Redis cannot be used, or does not give what was asked for."""


class RegistryAway(RegistryError):
    """Redis does not answer; it may later."""


class LeaseRefused(RegistryError):
    """The endpoint is registered by somebody else, or the service serves another model."""


@dataclass(frozen=True)
class StoreOptions:
    """Where the store is.

    endpoints: `host:port`, `redis://[user:password@]host:port[/db]` or `rediss://...` for TLS, for which the parameters of
    redis-py may follow, such as `?ssl_ca_certs=FILE`; they are tried in turn, always from the first. password: where the
    endpoint has none. prefix: of every key. lease: seconds after which what is not renewed is gone.
    """

    endpoints: tuple[str, ...]
    password: str = ""
    prefix: str = "paddleseg_ext"
    lease: float = 10.0


@dataclass(frozen=True)
class View:
    """A service at one moment. shares: the text that `share` left. now: the store's clock in milliseconds."""

    teachers: tuple[Lease, ...]
    students: tuple[Report, ...]
    shares: str
    now: int


class Registry:
    """The store; may be used by several threads. Calls raise RegistryError, after some seconds at the latest.

    Raises ConfigError for options that cannot be used; does not wait for a connection.
    """

    def __init__(self, options: StoreOptions) -> None:
        if not is_name(options.prefix.replace(":", ".")):
            raise ConfigError(f"--key_prefix: letters, digits, '.', '_', '-' and ':', but got {options.prefix!r}")
        if not 0.5 <= options.lease <= 3600:
            raise ConfigError(f"--lease: seconds from 0.5 to 3600 are expected, but got {options.lease:g}")
        if not options.endpoints:
            raise ConfigError("--db_endpoints: at least one host:port is expected")
        self.options = options
        self._clients = [_client(endpoint, options.password) for endpoint in options.endpoints]
        self._current, self._again = 0, 0.0
        loaded = self._clients[0].register_script
        self._take, self._drop = loaded(scripts.TAKE), loaded(scripts.DROP)
        self._visit, self._share = loaded(scripts.VISIT), loaded(scripts.SHARE)

    def ping(self) -> None:
        """Whether Redis answers and takes the password."""
        self._call(lambda client: client.ping())

    def take(self, lease: Lease) -> None:
        """Register a teacher, or renew its lease.

        Raises LeaseRefused where it is another's, or the service serves another model.
        """
        try:
            Lease.parse(lease.text())
        except MalformedText as error:  # nobody would read it
            raise LeaseRefused(f"{lease.endpoint} cannot be registered: {error}") from None
        leases, index = self._key("lease", lease.service), self._key("leases", lease.service)
        values = [lease.token, lease.digest, lease.text(), self._milliseconds, lease.endpoint]
        values += [f"{leases}:", self._key("services"), lease.service]
        said, who = self._run(self._take, [f"{leases}:{lease.endpoint}", index], values)
        if said == b"taken":
            raise LeaseRefused(f"{lease.endpoint} is registered for '{lease.service}' by another process")
        if said == b"other":
            raise LeaseRefused(
                f"'{lease.service}' is served by {who.decode()} with another model or other outputs than "
                f"'{lease.model}' of {lease.endpoint}; use another --service_name"
            )

    def drop(self, lease: Lease) -> bool:
        """Give up a lease; False where it has run out or is another's."""
        leases = self._key("lease", lease.service)
        keys = [f"{leases}:{lease.endpoint}", self._key("leases", lease.service)]
        return bool(self._run(self._drop, keys, [lease.token, lease.endpoint]))

    def visit(self, service: str, reports: Sequence[Report] = (), left: Sequence[str] = ()) -> View:
        """Store what students say, forget those that left, and see who is there, in one step."""
        keys = [self._key(kind, service) for kind in ("leases", "reports", "shares")] + [self._key("services")]
        values: list[Any] = [service, f"{self._key('lease', service)}:", f"{self._key('report', service)}:"]
        values += [self._milliseconds, len(reports)]
        values += [word for report in reports for word in (report.student, report.text())] + list(left)
        teachers, students, shares, now = self._run(self._visit, keys, values)
        return View(
            tuple(sorted(_sound(Lease, teachers), key=lambda lease: lease.endpoint)),
            tuple(sorted(_sound(Report, students), key=lambda report: report.student)),
            shares.decode(errors="surrogateescape"),
            int(now),
        )

    def share(self, service: str, expected: str, shares: str) -> bool:
        """Store who asks whom, unless it is no longer what is expected there; whether it was stored."""
        values = [expected.encode(errors="surrogateescape"), shares, self._milliseconds]
        return bool(self._run(self._share, [self._key("shares", service)], values))

    def services(self) -> list[str]:
        """Names of services with a teacher or a student, now or a moment ago."""
        found: set[Any] = self._call(lambda client: client.smembers(self._key("services")))
        return sorted(name for name in (member.decode(errors="replace") for member in found) if is_name(name))

    def close(self) -> None:
        """Give up the connections."""
        for client in self._clients:
            client.close()

    @property
    def _milliseconds(self) -> int:
        return int(1000 * self.options.lease)

    def _key(self, *parts: str) -> str:
        return ":".join((self.options.prefix, *parts))

    def _run(self, script: Any, keys: Sequence[str], values: Sequence[Any]) -> Any:
        return self._call(lambda client: script(keys=keys, args=values, client=client))

    def _call(self, work: Callable[[redis.Redis], Found]) -> Found:
        """By the first endpoint that works; one that does not is left out for some seconds."""
        if time.monotonic() > self._again:
            # All processes must come back to the same one, or they would not see each other.
            self._current, self._again = 0, time.monotonic() + _AGAIN
        reasons = []
        for attempt in range(len(self._clients)):
            number = (self._current + attempt) % len(self._clients)
            endpoint = shown(self.options.endpoints[number])
            try:
                found = work(self._clients[number])
            except redis.AuthenticationError as error:  # to redis-py a kind of ConnectionError
                reasons.append(f"{endpoint}: the password is refused or missing ({error}); see --redis_password")
                kind: type[RegistryError] = RegistryError
            except _AWAY as error:
                reasons.append(f"{endpoint}: {' '.join(str(error).split())[:200]}")
                kind = RegistryAway
            except redis.RedisError as error:
                reasons.append(f"{endpoint}: {' '.join(str(error).split())[:200]}")
                kind = RegistryError
            else:
                self._current = number
                return found
        raise kind(f"no use of Redis at {'; '.join(reasons)}")


def shown(endpoint: str) -> str:
    """An endpoint of Redis without its password, which may stand before the host or behind a question mark."""
    address = endpoint.partition("?")[0]
    return address.rpartition("@")[2] if "@" in address else address.removeprefix("redis://")


def password(given: str | None, file: Path | None) -> str:
    """Of Redis: as given, else the only line of a file, else from the environment. Raises ConfigError."""
    if given is not None:
        return given
    if file is not None:
        try:
            return file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "no text"
            raise ConfigError(f"--redis_password_file {file}: {reason}") from None
    return os.environ.get(PASSWORD_VARIABLE, "")


def _client(endpoint: str, password: str) -> redis.Redis:
    url = endpoint if "://" in endpoint else f"redis://{endpoint}"
    expected = "host:port, redis://host:port[/db] or rediss://host:port[/db] is expected"
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("redis", "rediss") and (parts.path.strip("/") or "0").isdecimal()
        if not known or not is_endpoint(parts.netloc.rpartition("@")[2]):
            raise ValueError(expected)
        options: dict[str, Any] = {"socket_timeout": _SECONDS, "socket_connect_timeout": _SECONDS}
        if password and parts.password is None:
            options["password"] = password
        # This program has its own way of trying again, and must not wait twice.
        client = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options)
        client.connection_pool.make_connection()  # unknown parameters of the URL show here
        return client
    except (ValueError, TypeError, redis.RedisError) as error:
        raise ConfigError(f"--db_endpoints {shown(endpoint)}: {str(error)[:200] or expected}") from None


def _sound(kind: type[Parsed], texts: Sequence[bytes]) -> list[Parsed]:
    """Those that can be read; what others wrote below our prefix is passed over."""
    found = []
    for text in texts:
        try:
            found.append(kind.parse(text))
        except MalformedText:
            continue
    return found
