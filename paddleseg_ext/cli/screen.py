"""What a command shows: log lines that do not tear progress bars, and the user's errors in one line."""

import contextlib
import logging
import sys
from collections.abc import Iterator

from tqdm import tqdm

from paddleseg_ext.errors import UserError


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def start_logging(rank: int) -> None:
    """Log to the standard output; ranks other than the first only what is wrong."""
    handler = _Lines()
    form = "%(asctime)s [%(levelname)s] " + (f"[rank {rank}] " if rank else "") + "%(message)s"
    handler.setFormatter(logging.Formatter(form, "%Y-%m-%d %H:%M:%S"))
    logger = logging.getLogger("paddleseg_ext")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    logger.propagate = False


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns what a user can mend into one line and exit code 2; anything else keeps its traceback."""
    try:
        yield
    except UserError as error:
        sys.stdout.flush()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
