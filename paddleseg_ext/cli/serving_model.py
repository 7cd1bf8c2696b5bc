"""What a training command leaves for students: the model that it trained, ready to be served."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from paddleseg_ext.cli.training import Session
from paddleseg_ext.engine import env
from paddleseg_ext.errors import ConfigError, UserError

_DEFAULT = "serving_model"


def add_serving_model(parser: argparse.ArgumentParser) -> None:
    """The flag."""
    parser.add_argument(
        "--save_serving_model",
        nargs="?",
        const="",
        metavar="DIR",
        help=f"at the end, export the best model, or without --do_eval the last, for serving; DIR: save_dir/{_DEFAULT}",
    )


def check_serving_model(session: Session) -> None:
    """Say before training what would be wrong after it. Raises ConfigError."""
    if session.args.save_serving_model is not None and session.config.val_dataset is None:
        raise ConfigError(f"{session.config.path}: --save_serving_model needs the key 'val_dataset'")


def save_serving_model(session: Session) -> None:
    """Export what was trained, if it was asked for, by the export command. Raises UserError."""
    args = session.args
    if args.save_serving_model is None or env.rank() != 0:
        return
    folder = args.save_serving_model or str(Path(args.save_dir) / _DEFAULT)
    best = Path(args.save_dir) / "best_model"
    weights = best if args.do_eval and (best / "model.pdparams").is_file() else session.store.latest()
    words = ["--config", args.config, "--model_path", str(weights), "--save_dir", folder, "--for_serving"]
    words += ["--device", args.device, *(["--opts", *args.opts] if args.opts else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for name in ("PADDLE_TRAINER_ENDPOINTS", "PADDLE_TRAINERS_NUM", "PADDLE_TRAINER_ID"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "paddleseg_ext.cli.export", *words]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"--save_serving_model: {weights} is trained, but: {lines[-1].removeprefix('error: ')}")
