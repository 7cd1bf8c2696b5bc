"""What a run was made of, written beside its results."""

import datetime
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import paddle

from paddleseg_ext import __version__
from paddleseg_ext.config import Config
from paddleseg_ext.engine import env

_PACKAGES = ("paddleseg", "numpy", "opencv-python-headless")


def write_provenance(
    folder: Path,
    seed: int,
    resumed_from: Path | None,
    config: Config,
    teachers: Sequence[Mapping[str, Any]],
    pairs: Sequence[Mapping[str, Any]],
) -> None:
    """Append one line to `provenance.jsonl`: each start of the run with command, versions, git state, seed and resolved files.

    Args:
        config: what is trained. A file's keys with bases, flags and `--opts` applied are in `resolved`.
        teachers: `name`, `path` and `resolved` of each teacher that has a file.
        pairs: what is compared with a teacher.
    """
    record = {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "folder": str(Path.cwd()),
        "seed": seed,
        "resumed_from": str(resumed_from) if resumed_from else None,
        "device": paddle.get_device(),
        "processes": env.world_size(),
        "versions": _versions(),
        "git": _git_state(),
        "config": {"path": config.path, "resolved": config.resolved},
        "teachers": teachers,
        "pairs": pairs,
    }
    with (folder / "provenance.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, default=str) + "\n")


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version(), "paddle": paddle.__version__}
    found["paddleseg_ext"] = __version__
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def _git_state() -> dict[str, Any] | None:
    """The commit of the folder that the command was given in, and whether files differ from it; None outside a repository."""
    try:
        commit, changes = (
            subprocess.run(["git", *words], capture_output=True, text=True, timeout=10)
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode or changes.returncode:
        return None
    return {"commit": commit.stdout.strip(), "changed": bool(changes.stdout.strip())}
