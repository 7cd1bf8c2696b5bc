"""Builds and runs every model that PaddleSeg registers, and writes down how each of them did."""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from paddleseg_ext.cli.args import parser
from paddleseg_ext.cli.engine_trial import EngineTrial, attempt_engines
from paddleseg_ext.cli.model_trial import Trial, attempt
from paddleseg_ext.cli.models_page import ModelRecord
from paddleseg_ext.cli.screen import user_errors
from paddleseg_ext.engine import env
from paddleseg_ext.errors import ConfigError, closest
from paddleseg_ext.models.catalogue import CATALOGUE

_MODELS_PER_PROCESS = 16  # memory is given back, and importing Paddle takes as long as a few models
_SECONDS_PER_MODEL = 180
_SECONDS_OF_ENGINES = 1800  # of one model's: several exports, and each engine in two precisions


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    flags = parser(__doc__ or "")
    flags.add_argument("--only", nargs="+", metavar="NAME", help="these models; default: all")
    flags.add_argument(
        "--engines",
        action="store_true",
        help="instead of training them, let engines compete for them; goes on with the models that the record lacks",
    )
    flags.add_argument("--again", action="store_true", help="with --engines, also those that it has")
    flags.add_argument("--output", type=Path, help="the page to write, its record beside it; default: docs/models.md")
    flags.add_argument("--in_process", action="store_true", help=argparse.SUPPRESS)
    args = flags.parse_args(argv)
    with user_errors():
        names = args.only or sorted(CATALOGUE, key=str.lower)
        for name in names:
            if name not in CATALOGUE:
                raise ConfigError(f"--only: no model '{name}'{closest(name, CATALOGUE)}")
        if args.in_process:
            for name in names:
                print(json.dumps(dataclasses.asdict(_here(name, args.engines))), flush=True)
            return
        page = args.output or (None if args.only and not args.engines else Path("docs/models.md"))
        record = ModelRecord.read(page)
        if args.engines:
            names = [name for name in names if args.again or name not in record.engines]
        trials: Iterator[Trial | EngineTrial] = _engines(names) if args.engines else _in_processes(names)
        for count, trial in enumerate(trials, 1):
            if isinstance(trial, EngineTrial):
                said = trial.failure or f"{trial.engine}; " + "; ".join(trial.tried)
                record.engines[trial.name] = trial
            else:
                said = trial.failure or "runs"
                record.models[trial.name] = trial
            print(f"[{count}/{len(names)}] {trial.name}: {said}", flush=True)
            if page is not None:
                record.write(page)
        if page is not None:
            record.write(page)
            print(f"wrote {page}")


def _here(name: str, engines: bool) -> Trial | EngineTrial:
    if not engines:
        return attempt(name)
    env.set_device("cpu")
    with tempfile.TemporaryDirectory() as cache:
        return attempt_engines(name, Path(cache))


def _engines(names: Sequence[str]) -> Iterator[Trial | EngineTrial]:
    """Each model in a process of its own."""
    command = [sys.executable, "-m", "paddleseg_ext.cli.models", "--engines", "--in_process", "--only"]
    for name in names:
        try:
            done = subprocess.run([*command, name], capture_output=True, text=True, timeout=_SECONDS_OF_ENGINES)
        except subprocess.TimeoutExpired:
            yield EngineTrial(name, failure=f"took more than {_SECONDS_OF_ENGINES} s")
            continue
        found = [line for line in done.stdout.splitlines() if line.startswith('{"name"')]
        if found:
            yield EngineTrial(**json.loads(found[-1]))
        else:
            yield EngineTrial(name, failure=f"its process ended with code {done.returncode}")


def _in_processes(names: Sequence[str]) -> Iterator[Trial | EngineTrial]:
    """Try models in child processes: the one that kills its process is a row, and the next ones get a new process."""
    left = list(names)
    while left:
        batch = left[:_MODELS_PER_PROCESS]
        for trial in _in_one_process(batch):
            left.remove(trial.name)
            yield trial


def _in_one_process(names: list[str]) -> Iterator[Trial]:
    command = [sys.executable, "-m", "paddleseg_ext.cli.models", "--in_process", "--only", *names]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        waiting = list(names)
        watch = _watch(child)
        for line in child.stdout:
            if line.startswith('{"name"'):  # PaddleSeg logs to the standard output too
                watch.cancel()
                trial = Trial(**json.loads(line))
                waiting.remove(trial.name)
                yield trial
                watch = _watch(child)
        code = child.wait()
        watch.cancel()
    if waiting:
        yield Trial(waiting[0], failure=f"its process ended with code {code} ({_SECONDS_PER_MODEL} s are the limit)")


def _watch(child: subprocess.Popen[str]) -> threading.Timer:
    watch = threading.Timer(_SECONDS_PER_MODEL, child.kill)
    watch.daemon = True
    watch.start()
    return watch


if __name__ == "__main__":
    main()
