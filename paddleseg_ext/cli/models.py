"""Builds and runs every model that PaddleSeg registers, and writes down how each of them did."""

import argparse
import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from paddleseg_ext.cli.args import parser
from paddleseg_ext.cli.model_trial import Trial, attempt
from paddleseg_ext.cli.screen import user_errors
from paddleseg_ext.errors import ConfigError, closest
from paddleseg_ext.models.catalogue import CATALOGUE

_MODELS_PER_PROCESS = 16  # memory is given back, and importing Paddle takes as long as a few models
_SECONDS_PER_MODEL = 180

_HEAD = """# Models

Made by `make models` with paddle {paddle} and paddleseg {paddleseg} on {device}: every model that PaddleSeg registers
is built as `paddleseg_ext/models/catalogue.py` has it (a light backbone, 5 classes, no pretrained weights), trained for
one step on 2 images with the losses named here, and run in eval mode. {good} of {all} run.

- outputs: their number; what they are where not all of them are tensors.
- stride: pixels of the input per pixel of the first output in eval mode.
- idle: trainable tensors that get no gradient (`find_unused_parameters` for data-parallel training).

| model | backbone | input | parameters (M) | outputs in training | losses | outputs in eval | stride | idle | runs |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    flags = parser(__doc__ or "")
    flags.add_argument("--only", nargs="+", metavar="NAME", help="these models; default: all, and the page is written")
    flags.add_argument("--output", type=Path, help="the page to write; default: docs/models.md if all models are run")
    flags.add_argument("--in_process", action="store_true", help=argparse.SUPPRESS)
    args = flags.parse_args(argv)
    with user_errors():
        names = args.only or sorted(CATALOGUE, key=str.lower)
        for name in names:
            if name not in CATALOGUE:
                raise ConfigError(f"--only: no model '{name}'{closest(name, CATALOGUE)}")
        if args.in_process:
            for name in names:
                print(json.dumps(dataclasses.asdict(attempt(name))), flush=True)
            return
        trials = []
        for trial in _in_processes(names):
            trials.append(trial)
            print(f"[{len(trials)}/{len(names)}] {trial.name}: {trial.failure or 'runs'}", flush=True)
        output = args.output or (None if args.only else Path("docs/models.md"))
        if output is not None:
            output.write_text(_page(trials), encoding="utf-8")
            print(f"wrote {output}")


def _in_processes(names: Sequence[str]) -> Iterator[Trial]:
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


def _page(trials: list[Trial]) -> str:
    from importlib.metadata import version

    import paddle

    head = _HEAD.format(
        paddle=paddle.__version__,
        paddleseg=version("paddleseg"),
        device=paddle.get_device().split(":")[0].upper(),
        good=sum(not trial.failure for trial in trials),
        all=len(trials),
    )
    return head + "".join(_row(trial) for trial in trials)


def _row(trial: Trial) -> str:
    cells = [
        trial.name,
        trial.backbone,
        f"{trial.size}x{trial.size}" if trial.size else "",
        f"{trial.parameters / 1e6:.2f}" if trial.parameters else "",
        trial.train_outputs,
        trial.losses,
        trial.eval_outputs,
        trial.stride,
        str(trial.idle) if trial.stride else "",
        trial.failure or "yes",
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


if __name__ == "__main__":
    main()
