"""Exports a trained model for inference, and checks what was exported against the model.

python -m paddleseg_ext.cli.export --config S.yml --model_path output/best_model --save_dir output/inference
"""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import yaml
from paddle import nn

from paddleseg_ext import registry
from paddleseg_ext.cli import args as flags
from paddleseg_ext.cli.screen import user_errors
from paddleseg_ext.cli.trained import Trained, open_trained
from paddleseg_ext.data.build import dataset_facts
from paddleseg_ext.data.check import check_images
from paddleseg_ext.distill.adaptor import AdaptorBase
from paddleseg_ext.distill.own_resolution import own_logits
from paddleseg_ext.distill.recorder import Recorder
from paddleseg_ext.engine import env
from paddleseg_ext.engine.export import OUTPUTS, Exported, agreement, export, predictor, run_predictor, static_layer
from paddleseg_ext.errors import ConfigError, DataError, UserError
from paddleseg_ext.inference.job import Wanted, save_onnx
from paddleseg_ext.inference.predictor import describe
from paddleseg_ext.inference.runners import onnxruntime_runner
from paddleseg_ext.service.serving_files import FILE, write_yaml
from paddleseg_ext.service.spec import ModelSpec
from paddleseg_ext.types import Batch

_ENOUGH = 0.999  # share of pixels that must get the same class
# Paddle's old IR first: paddle.inference runs it with oneDNN, and PaddleSeg's deploy tools know its file. Some models need PIR.
_IRS = {"old IR": "0", "PIR": "1"}
_FILES = ("model.pdmodel", "model.json", "model.pdiparams.info", "model.onnx", "deploy.yaml", FILE)
_FOR_ONNX = ("paddle2onnx", "onnxruntime")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = flags.parser("Export a trained model for inference.")
    flags.add_trained_model(parser)
    flags.add_device(parser)
    add = parser.add_argument
    add("--save_dir", type=Path, default=Path("output/inference_model"), help="folder to write")
    add("--input_shape", type=int, nargs=4, metavar=("N", "C", "H", "W"), help="fixed; default: any N, H, W")
    add("--output_op", choices=OUTPUTS, default="argmax", help="what the model gives")
    add(
        "--for_serving",
        action="store_true",
        help="for students, in place of --output_op: logits at the network's own resolution, before it enlarges them",
    )
    add("--features", nargs="+", default=[], metavar="LAYER", help="with --for_serving: outputs of these layers too")
    add("--onnx", action="store_true", help="write model.onnx too; needs paddle2onnx and onnxruntime")
    add("--in_process", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    with user_errors():
        if args.input_shape and min(args.input_shape) < 1:
            raise ConfigError(f"--input_shape is N, C, H and W, each at least 1, but got {args.input_shape}")
        if args.features and not args.for_serving:
            raise ConfigError("--features needs --for_serving")
        missing = [name for name in _FOR_ONNX if args.onnx and importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(f"--onnx: not installed: {', '.join(missing)}; python -m pip install {' '.join(missing)}")
        if args.in_process is not None:
            (_onnx_here if args.onnx else _export_here)(args, args.in_process)
        else:
            _export_in_children(args, sys.argv[1:] if argv is None else list(argv))


def _export_in_children(args: argparse.Namespace, words: list[str]) -> None:
    """Each export in a process of its own: which IR Paddle uses is settled when it is imported, and some exports crash."""
    try:
        args.save_dir.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=args.save_dir.parent, prefix=f".{args.save_dir.name}."))
    except OSError as error:
        raise ConfigError(f"--save_dir {args.save_dir}: cannot be made: {error.strerror}") from None
    try:
        _export_paddle(args, [word for word in words if word != "--onnx"], work)
        if args.onnx:
            _export_onnx(args, words, work / "onnx")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _export_paddle(args: argparse.Namespace, words: list[str], work: Path) -> None:
    reasons: list[str] = []
    for name, flag in _IRS.items():
        folder = work / name.replace(" ", "_")
        figures = _in_child(words, folder, flag)
        if isinstance(figures, str):
            reasons.append(f"{name}: {figures}")
            continue
        _publish(folder, args.save_dir, _FILES)
        if name == "PIR":
            print(
                f"the old IR does not take this model ({reasons[0]}); "
                "to run it on a CPU, switch oneDNN off: disable_mkldnn()"
            )
        files = [figures["model_file"], "model.pdiparams", *([] if args.for_serving else ["deploy.yaml"]), FILE]
        print(f"exported to {args.save_dir} ({name}): {', '.join(files)}")
        print(f"paddle.inference {_agreement_in_words(args, figures)}")
        return
    raise UserError(f"{args.config}: this model cannot be exported ({'; '.join(reasons)})")


def _export_onnx(args: argparse.Namespace, words: list[str], folder: Path) -> None:
    figures = _in_child(words, folder, _IRS["PIR"])
    if isinstance(figures, str):
        hint = "" if args.input_shape else "; some models are taken at a fixed size only: --input_shape N C H W"
        raise UserError(f"--onnx: this model cannot be written as ONNX: {figures}{hint}; the Paddle model is whole")
    _publish(folder, args.save_dir)
    print(f"exported to {args.save_dir}: model.onnx")
    print(f"ONNX Runtime {_agreement_in_words(args, figures)}")


def _in_child(words: list[str], folder: Path, flag: str) -> dict[str, Any] | str:
    """What an export says of itself, or why there is none.

    Raises:
        UserError: what the user can mend.
    """
    folder.mkdir()
    command = [sys.executable, "-m", "paddleseg_ext.cli.export", *words, "--in_process", str(folder)]
    environment = {**os.environ, "FLAGS_enable_pir_api": flag, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    report = folder / "report.json"
    if done.returncode == 2:
        raise UserError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))
    if done.returncode == 0 and report.is_file():
        figures = json.loads(report.read_text())
        report.unlink()
        return figures
    return _reason(done)


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """What a failed export says last, but for glog's warnings (W1125 ...), and the signal that ended it, if one did."""
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    lines = [line for line in lines if not re.match(r"[IW]\d{4} ", line)]
    code = done.returncode
    ended = f"the export ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return ", ".join([*(line[:300].rstrip(".") for line in lines[-1:]), *([ended] if code < 0 or not lines else [])])


def _agreement_in_words(args: argparse.Namespace, figures: Mapping[str, Any]) -> str:
    of_classes = args.output_op == "argmax" and not args.for_serving
    difference = "" if of_classes else f", largest difference {figures['difference']:.2e}"
    return f"gives {100 * figures['same_class']:.3f} % of the pixels the same class as the model{difference}"


def _publish(folder: Path, target: Path, names: Sequence[str] = ()) -> None:
    """Put the files in their place; those of an earlier export with other names go."""
    target.mkdir(parents=True, exist_ok=True)
    for old in names:
        if not (folder / old).exists():
            (target / old).unlink(missing_ok=True)
    for file in sorted(folder.iterdir()):
        os.replace(file, target / file.name)


def _export_here(args: argparse.Namespace, folder: Path) -> None:
    trained = open_trained(args)
    shape, images = _shape(args, trained), _images(trained, args.input_shape)
    transforms = trained.config.resolved["val_dataset"].get("transforms") or []
    with _layer(trained, args, images[0]) as (layer, aliases):
        model_file = export(layer, folder, shape)
        engine = predictor(folder / model_file, folder / "model.pdiparams")
        _check(layer, images, folder, model_file, lambda image: run_predictor(engine, image))
    if not args.for_serving:
        deploy = {
            **{"model": model_file, "params": "model.pdiparams", "transforms": transforms, "input_shape": shape},
            **{"output_op": args.output_op, "output_dtype": "int32" if args.output_op == "argmax" else "float32"},
        }
        (folder / "deploy.yaml").write_text(yaml.safe_dump({"Deploy": deploy}, sort_keys=False))
    inputs, outputs = describe(folder / model_file)
    spec = ModelSpec(
        *(Path(args.config).stem, "1", tuple(replace(t, alias="img") for t in inputs)),
        tuple(replace(t, alias=alias) for t, alias in zip(outputs, aliases, strict=True)),
    )
    write_yaml(folder, spec, model_file, "model.pdiparams", {"transforms": transforms})


def _onnx_here(args: argparse.Namespace, folder: Path) -> None:
    trained = open_trained(args)
    images = _images(trained, args.input_shape)
    with _layer(trained, args, images[0]) as (layer, _):
        save_onnx(static_layer(layer, _shape(args, trained)), folder / "model.onnx")
        run = onnxruntime_runner(folder, "fp32", env.threads(), "cpu")
        _check(layer, images, folder, "model.onnx", run)


def _shape(args: argparse.Namespace, trained: Trained) -> list[int | None]:
    return (
        list(args.input_shape) if args.input_shape else [None, dataset_facts(trained.dataset).img_channels, None, None]
    )


@contextlib.contextmanager
def _layer(trained: Trained, args: argparse.Namespace, image: np.ndarray) -> Iterator[tuple[nn.Layer, list[str]]]:
    """What is exported, and what its outputs are called."""
    if not args.for_serving:
        yield Exported(trained.model, args.output_op), ["prediction"]
        return
    batch = Batch(paddle.to_tensor(image), paddle.zeros([1, 1, 1], "int64"))
    with paddle.no_grad():
        outputs = trained.model(batch.images)
    # Who asks a service resizes without aligned corners, so an output that is resized otherwise is given as it is.
    own = {i: source.layer for i, source in own_logits(trained.model, batch).items() if not source.align_corners}
    logits = [own.get(i, str(i)) for i, output in enumerate(outputs) if isinstance(output, paddle.Tensor)]
    twice = [name for name in args.features if name in logits]
    if twice:
        raise ConfigError(f"--features {twice[0]}: these are the logits, which are an output already")
    names = [*dict.fromkeys(logits), *dict.fromkeys(args.features)]
    layers = [name for name in names if not name.isdigit()]
    with Recorder(AdaptorBase(trained.model), layers, "--features") as recorder:
        aliases = ["prediction", *(f"prediction_{i}" for i in range(1, len(set(logits))))]
        yield Wanted(trained.model, recorder, names), [*aliases, *names[len(aliases) :]]


def _check(
    layer: nn.Layer,
    images: Sequence[np.ndarray],
    folder: Path,
    model_file: str,
    run: Callable[[np.ndarray], Sequence[np.ndarray]],
) -> None:
    """Compare on images, and write down the worst.

    Raises:
        RuntimeError: the exported model gives something else than the layer.
    """
    found = [agreement(layer, image, run(image)) for image in images]
    same = min(f.same_class for f in found)
    if same < _ENOUGH:
        raise RuntimeError(f"only {100 * same:.2f} % of the pixels get the class that the model gives them")
    figures = {"model_file": model_file, "same_class": same, "difference": max(f.difference for f in found)}
    (folder / "report.json").write_text(json.dumps(figures))


def _images(trained: Trained, shape: Sequence[int] | None) -> list[np.ndarray]:
    """A few val images, or one random image of a fixed shape that they do not have.

    Raises:
        DataError: there is none.
    """
    dataset: Any = registry.build(trained.dataset, "data set")
    check_images([str(pair[0]) for pair in getattr(dataset, "file_list", [])[:3]], trained.dataset.where)
    samples = (dataset[index] for index in range(min(len(dataset), 3)))
    images = [sample["img"][None].astype("float32") for sample in samples]
    if shape is not None:
        fitting = [image for image in images if list(image.shape) == list(shape)]
        return fitting or [np.random.default_rng(0).normal(0, 1, shape).astype("float32")]
    if not images:
        raise DataError(f"{trained.dataset.where}: no image to check the export on; give one, or --input_shape")
    return images


if __name__ == "__main__":
    main()
