"""Inference engines behind one call, NumPy in and out. Each is imported where it is started, and nothing else is."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddleseg_ext.inference import memory

ArrayRunner = Callable[[np.ndarray], Sequence[np.ndarray]]
"""float32 [N, C, H, W] to the tensors that were wanted of the model, in their order. Raises where the engine does."""

_SECONDS = 100  # for a conversion
# What oneDNN's bf16 passes may touch: with more, they crash on some models.
_BF16 = {"conv2d", "fused_conv2d", "depthwise_conv2d"}


def paddle_config(
    model: Path, params: Path | None, precision: str, threads: int, gpu: int | None, *, mem_optim: bool = False
) -> Any:
    """paddle.inference's settings: on a CPU with oneDNN, which does not take PIR's files, on a GPU (its number) natively."""
    from paddle.inference import Config, PrecisionType

    config = Config(str(model), str(params))
    config.disable_glog_info()
    # Without oneDNN, PIR's files are run by passes that Paddle 3.3.1's memory optimisation looks for and does not find.
    config.enable_memory_optim(mem_optim and model.suffix != ".json")
    if gpu is not None:
        kind = PrecisionType.Half if precision == "fp16" else PrecisionType.Float32
        config.enable_use_gpu(256, gpu, kind)
        return config
    config.disable_gpu()
    config.set_cpu_math_library_num_threads(threads)
    if model.suffix == ".json":
        config.disable_mkldnn()
        return config
    config.enable_mkldnn()
    config.set_mkldnn_cache_capacity(4)
    if precision == "bf16":
        config.enable_mkldnn_bfloat16()
        config.set_bfloat16_op(_BF16)
    return config


def paddle_runner(folder: Path, precision: str, threads: int, device: str) -> ArrayRunner:
    """paddle.inference: on a CPU with oneDNN from the old IR and without from PIR, which takes more models; on a GPU natively."""
    import paddle

    predictor = paddle_predictor(folder, precision, threads, device)
    # Paddle's `numpy` shares memory; what the predictor gives lies in its own, which is used again.
    return lambda images: [x.clone().numpy() for x in predictor.run([paddle.to_tensor(images)])]


def paddle_predictor(folder: Path, precision: str, threads: int, device: str) -> Any:
    """The predictor of an export; what its `run` gives lies in its own memory, where the next run writes."""
    from paddle.inference import create_predictor

    old = folder / "model.pdmodel"
    model = old if old.exists() else folder / "model.json"
    gpu = int(device.split(":")[1]) if device.startswith("gpu") else None
    return create_predictor(paddle_config(model, folder / "model.pdiparams", precision, threads, gpu))


def openvino_options(precision: str, threads: int) -> dict[str, Any]:
    """OpenVINO's settings."""
    return {
        "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp32": "f32"}[precision],
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }


def openvino_runner(folder: Path, precision: str, threads: int, device: str) -> ArrayRunner:
    """OpenVINO on the CPU, compiled once for each shape of images."""
    import openvino

    file = _folded(folder)
    core = openvino.Core()
    options = openvino_options(precision, threads)
    compiled: dict[tuple[int, ...], Any] = {}

    def run(images: np.ndarray) -> list[np.ndarray]:
        known = images.shape in compiled
        if not known:
            model = core.read_model(str(file))
            if model.is_dynamic():
                model.reshape(list(images.shape))
            compiled[images.shape] = core.compile_model(model, "CPU", options)
        given = compiled[images.shape](images, share_inputs=True, share_outputs=True)
        if not known:  # it has arranged the weights for itself
            memory.page_out(file.with_suffix(".bin"))
            memory.trim()
        return [np.asarray(given[i]) for i in range(len(given))]

    return run


def _folded(folder: Path) -> Path:
    """An export as OpenVINO simplifies it, its weights in a file of their own; the ONNX file where there is none.

    A weight that is multiplied by a norm's would else be kept beside what is made of it. Made once, by a process whose own
    memory, several times the weights', is given back, and which reports to nobody.
    """
    made, part = folder / "folded.xml", folder / f"making_{os.getpid()}.xml"
    if not made.exists():
        convert = (
            "import sys; sys.modules['openvino_telemetry'] = None; import openvino; "
            "openvino.save_model(openvino.convert_model(sys.argv[1]), sys.argv[2], compress_to_fp16=False)"
        )
        command = [sys.executable, "-c", convert, str(folder / "model.onnx"), str(part)]
        subprocess.run(command, capture_output=True, timeout=_SECONDS)
        if not part.exists():
            return folder / "model.onnx"
        # Another process that does the same writes the same; what it reads is whole.
        os.replace(part.with_suffix(".bin"), made.with_suffix(".bin"))
        os.replace(part, made)
    return made


def onnxruntime_runner(folder: Path, precision: str, threads: int, device: str) -> ArrayRunner:
    """ONNX Runtime on the CPU, in fp32."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    # Between two batches its threads would keep the cores busy with waiting, which the student needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})


@dataclass(frozen=True)
class Backend:
    """One engine: what must be installed, the exports it reads, the best first, which alone bf16 takes, its precisions on a CPU,
    and how it is started: from an export, with a precision, a number of threads and Paddle's name of the device."""

    modules: tuple[str, ...]
    kinds: tuple[str, ...]
    precisions: tuple[str, ...]
    start: Callable[[Path, str, int, str], ArrayRunner]


BACKENDS: Mapping[str, Backend] = {
    "openvino": Backend(("openvino", "paddle2onnx"), ("onnx",), ("bf16", "fp32"), openvino_runner),
    "paddle": Backend((), ("paddle", "pir"), ("bf16", "fp32"), paddle_runner),
    "onnxruntime": Backend(("onnxruntime", "paddle2onnx"), ("onnx",), ("fp32",), onnxruntime_runner),
}
