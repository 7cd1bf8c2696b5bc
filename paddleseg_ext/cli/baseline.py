"""The student alone, trained alike: what a distilled one is to be compared with."""

import argparse
import contextlib
import copy
import json
import logging
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from paddleseg_ext.cli.args import training_words
from paddleseg_ext.engine import env
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
    if args.seed is None and not args.resume_model:
        args.seed = random.SystemRandom().randrange(2**31)
    folder = Path(args.save_dir) / "baseline"
    alone = copy.copy(args)
    alone.save_dir = str(folder)
    alone.resume_model = "auto" if args.resume_model else None
    command = [sys.executable, str(train), "--config", args.student_config, *training_words(alone)]
    print(f"== student alone ==\npython {' '.join(command[1:])}", flush=True)
    if code := subprocess.call(command):
        raise UserError(f"--baseline: training the student alone ended with exit code {code}")
    print("== student distilled ==", flush=True)
    yield
    if (before := best_miou(folder)) is not None and (after := best_miou(Path(args.save_dir))) is not None:
        _log.info("[GAIN] best mIoU: student alone %.4f, distilled %.4f, gain %+.4f", before, after, after - before)


def best_miou(save_dir: Path) -> float | None:
    """The largest mIoU that a run has written, or None before its first evaluation."""
    try:
        records = [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]
    except OSError:
        return None
    return max((record["mIoU"] for record in records if record["kind"] == "eval"), default=None)
