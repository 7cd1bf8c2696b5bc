"""`serve --register`: a server that registers itself while it takes requests."""

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial

from paddleseg_ext.cli import args as flags
from paddleseg_ext.cli import services
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.service import addresses
from paddleseg_ext.service.liveness import OwnTeacher
from paddleseg_ext.service.registrar import Registrar
from paddleseg_ext.service.registry import Registry
from paddleseg_ext.service.server import Running

Registered = Callable[[Running], contextlib.AbstractAsyncContextManager]


def add_registration(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    add = parser.add_argument
    add("--register", action="store_true", help="let students find this server by discovery; needs --db_endpoints")
    add("--service_name", help="what students ask for; default: the model's name")
    add("--advertise", metavar="T:P", help="where students reach this server; default: where it listens")
    flags.add_store(parser, required=False)


def registration(args: argparse.Namespace) -> Registered:
    """What is to last while requests are taken. Raises ConfigError or RegistryError, so that both are said at the start."""
    if not args.register:
        return lambda server: contextlib.nullcontext()
    if not args.db_endpoints:
        raise ConfigError("--register needs --db_endpoints R:P, the Redis server")
    if args.advertise:
        addresses.endpoint("--advertise", args.advertise)
    elif args.host.strip("[]") in ("0.0.0.0", "::"):
        raise ConfigError(f"--register: nobody reaches {args.host}; say where students do: --advertise T:P")
    if args.service_name:
        addresses.service_name("--service_name", args.service_name)
    registry = Registry(services.store(args))
    registry.ping()
    return partial(_registered, registry, args.service_name, args.advertise)


@contextlib.asynccontextmanager
async def _registered(
    registry: Registry, service_name: str | None, endpoint: str | None, server: Running
) -> AsyncIterator[None]:
    teacher = OwnTeacher(server.spec, asyncio.get_running_loop(), server.problem)
    with contextlib.closing(registry):
        registrar = Registrar(registry, service_name or server.spec.name, endpoint or server.endpoint, teacher)
        registrar.start()
        try:
            yield
        finally:
            # The loop goes on meanwhile: students are still served.
            await asyncio.to_thread(registrar.close)
