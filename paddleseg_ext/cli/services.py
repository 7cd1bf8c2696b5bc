"""What the commands of the service share: flags to options, signals to an orderly end."""

import argparse
import signal
from dataclasses import replace
from queue import SimpleQueue

from paddleseg_ext.service.registry import StoreOptions, password


def store(args: argparse.Namespace) -> StoreOptions:
    """The options of `add_store`. Raises ConfigError."""
    endpoints = tuple(word.strip() for word in args.db_endpoints.split(",") if word.strip())
    options = StoreOptions(endpoints, password(args.redis_password, args.redis_password_file), args.key_prefix)
    return replace(options, lease=args.lease) if "lease" in args else options


def ending() -> SimpleQueue[int]:
    """A queue that gets the number of a SIGTERM or SIGINT (Ctrl-C).

    Its `put` may be called while its `get` waits in the same thread, as a signal's handler is; an Event would deadlock now
    and then.
    """
    queue: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: queue.put(number))
    return queue
