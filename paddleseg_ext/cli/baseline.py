"""The student alone, trained alike: what a distilled one is to be compared with."""

import argparse
import contextlib
import copy
import json
import logging
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from paddleseg_ext import config as configuration
from paddleseg_ext.cli.args import training_words
from paddleseg_ext.engine import env
from paddleseg_ext.engine.checkpoint import CheckpointStore, read_state
from paddleseg_ext.errors import ConfigError, UserError

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def compared_with_baseline(args: argparse.Namespace, train: Path) -> Iterator[None]:
    """With --baseline, train the student alone by the script `train` first, and show both best mIoU afterwards.

    The flags and the seed are the same, so first weights and data are too. An interrupted baseline is resumed with the run.

    Raises:
        UserError: --baseline without --do_eval or with several processes, or the baseline's training failed.
    """
    if not args.baseline:
        yield
        return
    if not args.do_eval:
        raise ConfigError("--baseline compares by mIoU and needs --do_eval")
    if env.world_size() > 1:
        raise ConfigError("--baseline runs in one process; train the student alone with train.py, launched alike")
    folder = Path(args.save_dir) / "baseline"
    if args.seed is None:
        args.seed = _seed(args, folder)
    alone = copy.copy(args)
    alone.save_dir = str(folder)
    alone.resume_model = "auto" if args.resume_model else None
    command = [sys.executable, str(train), "--config", args.student_config, *training_words(alone)]
    print(f"== student alone ==\npython {' '.join(command[1:])}", flush=True)
    code, asked = _call(command)
    if asked or (code == 0 and not _finished(args, folder)):
        print("stopped while the student trained alone; go on with --resume_model auto", flush=True)
        raise SystemExit(0)
    if code:
        raise UserError(f"--baseline: training the student alone ended with exit code {code}")
    print("== student distilled ==", flush=True)
    yield
    if (before := best_miou(folder)) is not None and (after := best_miou(Path(args.save_dir))) is not None:
        _log.info("[GAIN] best mIoU: student alone %.4f, distilled %.4f, gain %+.4f", before, after, after - before)


def _seed(args: argparse.Namespace, folder: Path) -> int:
    """The seed of both runs: of the one that is resumed, else a new one."""
    if not args.resume_model:
        return random.SystemRandom().randrange(2**31)
    distilled = CheckpointStore(args.save_dir).latest() if args.resume_model == "auto" else Path(args.resume_model)
    found = [path for path in (distilled, CheckpointStore(str(folder)).latest()) if path is not None]
    seeds = {read_state(path).seed: path for path in found}
    if len(seeds) > 1:
        said = " and ".join(f"{path} was trained with seed {seed}" for seed, path in seeds.items())
        raise ConfigError(f"--baseline: {said}; they cannot be compared")
    return next(iter(seeds)) if seeds else random.SystemRandom().randrange(2**31)


def _call(command: list[str]) -> tuple[int, bool]:
    """The exit code of a command, and whether this process was asked to end meanwhile, which it asks of the command."""
    asked = threading.Event()
    child = subprocess.Popen(command)

    def end(_number: int, _frame: FrameType | None) -> None:
        asked.set()
        child.terminate()

    previous = signal.signal(signal.SIGTERM, end)
    try:
        return child.wait(), asked.is_set()
    finally:
        signal.signal(signal.SIGTERM, previous)


def _finished(args: argparse.Namespace, folder: Path) -> bool:
    options = {"batch_size": args.batch_size, "iters": args.iters, "learning_rate": args.learning_rate}
    wanted = configuration.load(args.student_config, opts=args.opts, **options).iters
    latest = CheckpointStore(str(folder)).latest()
    return latest is not None and read_state(latest).iteration >= wanted


def best_miou(save_dir: Path) -> float | None:
    """The largest mIoU that a run has written, or None before its first evaluation."""
    try:
        records = [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]
    except OSError:
        return None
    return max((record["mIoU"] for record in records if record["kind"] == "eval"), default=None)
