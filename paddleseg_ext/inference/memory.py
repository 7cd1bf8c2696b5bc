"""Memory that a process does not need any more, given back to the system, where the system lets itself be told."""

import ctypes
from pathlib import Path

_PAGEOUT = 21  # MADV_PAGEOUT, Linux since 5.4


def trim() -> None:
    """What glibc keeps of freed memory; other C libraries have no such call."""
    call = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if call is not None:
        call(0)


def page_out(file: Path) -> None:
    """What this process has read of a file that it has mapped; where it is looked at again, it is read again. Linux only."""
    maps, call = Path("/proc/self/maps"), getattr(ctypes.CDLL(None), "madvise", None)
    if call is None or not maps.exists():
        return
    for line in maps.read_text().splitlines():
        span, _access, *_, name = line.split(maxsplit=5)
        if name == str(file.resolve()):
            first, end = (int(part, 16) for part in span.split("-"))
            call(ctypes.c_void_p(first), ctypes.c_size_t(end - first), _PAGEOUT)
