"""Gives students their teachers; any number of these on the same Redis give the same answer.

python -m paddleseg_ext.cli.balance_server --db_endpoints 127.0.0.1:6379 --server 127.0.0.1:7001
"""

import argparse
import asyncio
import logging
import signal
from collections.abc import Sequence
from contextlib import closing

from paddleseg_ext.cli import args as flags
from paddleseg_ext.cli import services
from paddleseg_ext.cli.screen import start_logging, user_errors
from paddleseg_ext.service import addresses
from paddleseg_ext.service.balance_server import BalanceServer
from paddleseg_ext.service.registry import Registry
from paddleseg_ext.service.security import Security

_log = logging.getLogger("paddleseg_ext.balance_server")


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = flags.parser("Give students their teachers and keep the load even.")
    flags.add_store(parser)
    add = parser.add_argument
    add("--server", default="127.0.0.1:7001", metavar="D:P", help="address to listen at; port 0 takes a free one")
    add("--host", help="listen at this host instead of --server's; 0.0.0.0 opens the server to the network")
    flags.add_security(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parser().parse_args(argv)
    start_logging(0)
    with user_errors():
        address = addresses.endpoint("--server", args.server)
        if args.host:
            address = addresses.endpoint("--host", f"{args.host}:{address.rpartition(':')[2]}")
        with closing(Registry(services.store(args))) as registry:
            registry.ping()
            asyncio.run(
                _serve(
                    BalanceServer(registry, Security.of(args.tls_cert, args.tls_key, args.tls_ca, args.token_file)),
                    address,
                )
            )


async def _serve(server: BalanceServer, address: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await server.run(address, stop, lambda endpoint: _log.info("[BALANCE] listening at %s", endpoint))


if __name__ == "__main__":
    main()
