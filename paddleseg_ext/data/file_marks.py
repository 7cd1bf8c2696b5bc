"""Whether a file is still the one it was."""

import hashlib
import os
from dataclasses import dataclass


@dataclass(frozen=True)
class FileMark:
    """A file's size, the time of its last change in ns, and the SHA-256 of its content."""

    size: int
    changed: int
    digest: str

    @classmethod
    def of(cls, path: str) -> "FileMark":
        """The mark of a file as it is now; reads all of it. Raises OSError."""
        stat = os.stat(path)
        return cls(stat.st_size, stat.st_mtime_ns, _digest(path))

    def fits(self, path: str) -> bool:
        """Whether the file is this one: by size and time or, where only the time differs, as in a copy, by content."""
        stat = os.stat(path)
        if stat.st_size != self.size:
            return False
        return stat.st_mtime_ns == self.changed or _digest(path) == self.digest


def name_of(path: str, root: str | None) -> str:
    """What an image is called wherever its data set lies: its path from the data set's folder, or the path itself without one."""
    return os.path.relpath(path, root) if root else path


def _digest(path: str) -> str:
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()
