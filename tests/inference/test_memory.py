"""What a process gives back of its memory."""

import mmap
import os
import sys
from pathlib import Path

import pytest

from paddleseg_ext.inference.memory import page_out

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")


def resident(file):
    """KiB of a mapped file that this process holds."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    next(line for line in lines if line.rstrip().endswith(str(file)))
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))


def lies_in_memory(folder):
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(len(point), kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return max(above)[1] in ("tmpfs", "ramfs")


def test_a_file_that_was_read_leaves_the_memory_and_reads_the_same_again(tmp_path):
    if lies_in_memory(tmp_path):
        pytest.skip("a file in memory has nowhere to go")
    file = tmp_path / "weights.bin"
    content = bytes(range(256)) * 4096
    with file.open("wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())  # what the disk does not have yet stays
    (tmp_path / "link.bin").symlink_to(file)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:] == content
        assert resident(file) == 1024
        page_out(tmp_path / "other.bin")
        assert resident(file) == 1024
        page_out(tmp_path / "link.bin")
        assert resident(file) < 1024
        assert mapped[:] == content
