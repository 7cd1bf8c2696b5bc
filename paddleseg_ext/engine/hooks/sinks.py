"""Where figures and pictures go: metrics.jsonl, VisualDL, the terminal."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from paddleseg_ext.engine.checkpoint import write_atomically


class RecordFile:
    """`metrics.jsonl`: one JSON object a line, in the order of the iterations.

    Args:
        start: the iteration training starts from. Records beyond it, from a run that was killed after its last checkpoint,
            are dropped, as those iterations come again; 0 begins a new file.
        path: None to write nowhere, as all ranks but the first do.
    """

    def __init__(self, path: Path | None, start: int = 0) -> None:
        self.path = path
        if path is None:
            return
        kept = []
        if start > 0 and path.exists():
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["iter"] <= start:
                        kept.append(line + "\n")
                except (ValueError, KeyError):
                    continue  # the line that a kill cut short
        write_atomically(path, "".join(kept))

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        if self.path is None:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


class VisualLog:
    """VisualDL's curves and pictures, or nothing where they are not wanted."""

    def __init__(self, folder: Path | None) -> None:
        self._writer: Any = None
        if folder is not None:
            from visualdl import LogWriter

            self._writer = LogWriter(str(folder))

    def scalars(self, iteration: int, values: dict[str, float]) -> None:
        """One point on each curve."""
        if self._writer is not None:
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, iteration)

    def picture(self, iteration: int, tag: str, rgb: np.ndarray) -> None:
        """One uint8 picture [H, W, 3]."""
        if self._writer is not None:
            self._writer.add_image(tag, rgb, iteration)

    def close(self) -> None:
        """Bring everything to the disk."""
        if self._writer is not None:
            self._writer.close()


class ProgressBar:
    """A bar with the time left on a terminal; nothing elsewhere, where the log's lines say as much."""

    def __init__(self, what: str, unit: str, shown: bool = True) -> None:
        self.what, self.unit = what, unit
        self.shown = shown and sys.stderr.isatty()
        self._bar: Any = None

    def start(self, done: int, total: int) -> None:
        """Show `done` of `total`."""
        if self.shown:
            self._bar = tqdm(total=total, initial=done, desc=self.what, unit=self.unit, dynamic_ncols=True, leave=False)

    def advance(self) -> None:
        """One more done."""
        if self._bar is not None:
            self._bar.update()

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
