"""Keeps a teacher registered while it is alive and healthy; for teachers that do not do so themselves.

python -m paddleseg_ext.cli.server_register --db_endpoints 127.0.0.1:6379 --service_name N --server 127.0.0.1:9292
"""

import argparse
from collections.abc import Sequence
from contextlib import closing

from paddleseg_ext.cli import args as flags
from paddleseg_ext.cli import services
from paddleseg_ext.cli.screen import start_logging, user_errors
from paddleseg_ext.service.client import ClientOptions, connector
from paddleseg_ext.service.liveness import NetworkTeacher
from paddleseg_ext.service.registrar import Registrar
from paddleseg_ext.service.registry import Registry
from paddleseg_ext.service.security import Security


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = flags.parser("Keep a teacher registered while it is alive and healthy.")
    flags.add_store(parser)
    add = parser.add_argument
    add("--service_name", required=True, help="what students ask for")
    add("--server", required=True, metavar="T:P", help="where students reach the teacher")
    add("--model_name", default="", help="which model of a server that has several")
    add("--wait", type=float, default=30.0, help="seconds that the teacher has to become ready at the start")
    flags.add_security(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parser().parse_args(argv)
    start_logging(0)
    with user_errors():
        security = Security.of(args.tls_cert, args.tls_key, args.tls_ca, args.token_file)
        connect = connector(ClientOptions(model=args.model_name, security=security))
        ending = services.ending()
        with closing(Registry(services.store(args))) as registry:
            registry.ping()
            with (
                NetworkTeacher(args.server, connect, security) as teacher,
                Registrar(registry, args.service_name, args.server, teacher) as registrar,
            ):
                registrar.wait(args.wait, stopped=lambda: not ending.empty())
                ending.get()


if __name__ == "__main__":
    main()
