"""What is to be exported: a model, its weights and the tensors that are wanted of it; written in a process of its own.

Which IR Paddle uses is settled when it is imported, and an export that crashes or hangs must not take training with it.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor, nn

from paddleseg_ext.config import Component
from paddleseg_ext.distill.adaptor import AdaptorBase
from paddleseg_ext.distill.recorder import Recorder
from paddleseg_ext.distill.user_file import load_user_file
from paddleseg_ext.inference import rewrites

FORMATS = ("paddle", "pir", "onnx")
"""'paddle' is a model of Paddle's old IR, which paddle.inference runs with oneDNN; 'pir' of its new one, which it runs without;
'onnx' is for OpenVINO and ONNX Runtime."""

_SECONDS = 300  # an export that takes longer hangs
_PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "paddleseg", "paddle2onnx", "openvino")


@dataclass(frozen=True)
class ExportJob:
    """One model to export.

    model: its component as a tree of plain values. wanted: the number of an output each, or a key of the recorder. names:
    layers that the recorder catches besides those of the adaptor, which is the TeacherAdaptor of the file `distill_config`
    (None: catches nothing). shape: [N, C, H, W] of the images at hand.
    """

    model: Mapping[str, Any]
    num_classes: int
    in_channels: int
    wanted: tuple[str, ...]
    names: tuple[str, ...]
    distill_config: str | None
    shape: tuple[int, ...]


class Wanted(nn.Layer):
    """A model that gives the wanted tensors and nothing else."""

    def __init__(self, model: nn.Layer, recorder: Recorder, wanted: Sequence[str]) -> None:
        super().__init__()
        self.model, self.wanted = model, tuple(wanted)
        self._recorder = (recorder,)

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = self.model(x)
        caught = self._recorder[0].take()
        return [outputs[int(name)] if name.isdigit() else caught[name] for name in self.wanted]


def plain(value: Any) -> Any:
    """A component as a tree of plain values."""
    if isinstance(value, Component):
        return {"type": value.type, **{name: plain(part) for name, part in value.params.items()}}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def component(value: Any) -> Any:
    """The inverse of `plain`."""
    if isinstance(value, dict) and "type" in value:
        return Component(value["type"], {k: component(v) for k, v in value.items() if k != "type"}, "the engine")
    return [component(part) for part in value] if isinstance(value, list) else value


def key(job: ExportJob, weights: str, kind: str) -> str:
    """What an export depends on, as a name: a stale one has another. Only a fixed one depends on the size of the images."""
    shape = job.shape if kind.endswith("-fixed") else job.shape[1:2]
    job = replace(job, shape=shape)
    adaptor = Path(job.distill_config).read_bytes().hex() if job.distill_config else None
    content = json.dumps([asdict(job), weights, adaptor, kind, _versions(), _how()], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def export(job: ExportJob, model: nn.Layer, weights: str, kind: str, cache: Path) -> tuple[Path | None, str]:
    """The folder of an exported model, made now or earlier, or None and why it cannot be made, which is kept too.

    Args:
        model: has the weights.
        weights: their digest.
        kind: one of FORMATS, with `-fixed` after it for images of the job's own shape alone.
        cache: where exports are kept. Another process that makes the same one does no harm: whoever is first is taken.
    """
    folder = cache / key(job, weights, kind)
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=cache, prefix=".making_"))
        try:
            reason = _export_in_child(job, model, kind, work)
            if reason and _MOMENTARY.search(reason):
                return None, reason
            (work / "weights.pdparams").unlink(missing_ok=True)
            if reason:
                shutil.rmtree(work / "model", ignore_errors=True)
                (work / "failed.txt").write_text(reason)
            _publish(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    failed = folder / "failed.txt"
    return (None, failed.read_text()) if failed.exists() else (folder / "model", "")


_MOMENTARY = re.compile(r"code -(9|15)\b|MemoryError|No space left|Cannot allocate memory")
"""Of this machine at this time; another run tries again."""


def _publish(work: Path, folder: Path) -> None:
    try:
        os.rename(work, folder)
    except OSError:
        if not folder.exists():
            raise


def _export_in_child(job: ExportJob, model: nn.Layer, kind: str, work: Path) -> str:
    """Returns what went wrong, or nothing."""
    paddle.save(model.state_dict(), str(work / "weights.pdparams"))
    (work / "job.json").write_text(json.dumps(asdict(job)))
    (work / "model").mkdir()
    flag = "0" if kind.startswith("paddle") else "1"
    environment = {**os.environ, "FLAGS_enable_pir_api": flag, "PYTHONPATH": os.pathsep.join(sys.path)}
    for name in ("PADDLE_TRAINER_ENDPOINTS", "PADDLE_TRAINERS_NUM", "PADDLE_TRAINER_ID"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "paddleseg_ext.cli.export_engine", str(work), kind]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return f"took more than {_SECONDS} s"
    if done.returncode == 0:
        return ""
    ending, said = f"the export ended with code {done.returncode}", _reason(done.stdout + done.stderr)
    return f"{ending}: {said}" if said and done.returncode < 0 else said or ending


# Logs, Paddle's own warnings, headings and rules, and the trace after a crash, which come last as often as not.
_NOISE = re.compile(
    r"\[20|\d{4}-.*\[INFO\]|\[[IW]\] |[IW]\d{4} |-+$|\.$"
    r"|\d+ |C\+\+ Traceback|Error Message Summary|FatalError|\[(Time|Signal)Info|For more info"
)


def _reason(said: str) -> str:
    """What went wrong, of everything that an export's process wrote."""
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).strip() for line in said.splitlines()]
    errors = [line.split("[ERROR]", 1)[1].strip() for line in lines if "[ERROR]" in line]
    raised = [line for line in lines if re.match(r"\w*(Error|Exception): ", line) and not _NOISE.match(line)]
    return (errors or raised or [line for line in lines if line and not _NOISE.match(line)] or [""])[-1][:300]


def run_job(work: Path, kind: str) -> None:
    """In the child: write `model/model.pdmodel`, `model/model.json` or `model/model.onnx`."""
    from paddleseg_ext.models import build_model, load_weights, without_pretrained

    job = ExportJob(**json.loads((work / "job.json").read_text()))
    model, _ = build_model(without_pretrained(component(job.model)), job.num_classes, job.in_channels)
    load_weights(model, str(work / "weights.pdparams"), strict=True)
    model.eval()
    adaptor = load_user_file(job.distill_config).teacher_adaptor if job.distill_config else AdaptorBase
    shape = list(job.shape) if kind.endswith("-fixed") else [None, job.shape[1], None, None]
    onnx = kind.startswith("onnx")
    with (
        Recorder(adaptor(model), job.names) as recorder,
        rewrites.exact_pooling(),
        rewrites.for_onnx() if onnx else contextlib.nullcontext(),
    ):
        layer = Wanted(model, recorder, job.wanted)
        layer.eval()
        specification = [paddle.static.InputSpec(shape, "float32", name="x")]
        static = paddle.jit.to_static(layer, input_spec=specification, full_graph=True)
        if onnx:
            save_onnx(static, work / "model" / "model.onnx")
        else:
            paddle.jit.save(static, str(work / "model" / "model"))


def save_onnx(layer: Any, file: Path) -> None:
    """Write what `paddle.jit.to_static` gave as ONNX, by paddle2onnx, which must be installed. Needs PIR.

    Raises:
        Exception: whatever Paddle and paddle2onnx raise for a model that they do not take; they may also end the process.
    """
    import paddle2onnx

    with tempfile.TemporaryDirectory(dir=file.parent) as work:
        paddle.jit.save(layer, f"{work}/pir")
        paddle2onnx.export(
            f"{work}/pir.json",
            f"{work}/pir.pdiparams",
            str(file),
            opset_version=16,
            enable_onnx_checker=False,
            verbose=False,
        )
    if not file.exists():
        raise RuntimeError("paddle2onnx wrote nothing")


@functools.cache
def _how() -> str:
    """A digest of what makes exports here."""
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in (__file__, rewrites.__file__))).hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
