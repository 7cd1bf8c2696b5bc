"""Inference engines behind one call: images on the device in, the wanted tensors out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

Runner = Callable[[Tensor], Sequence[Tensor]]
"""float32 [N, C, H, W] to the tensors that were wanted of the model, in their order. Raises where the engine does."""

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


def paddle_runner(folder: Path, precision: str, threads: int) -> Runner:
    """paddle.inference; tensors stay on the device."""
    from paddle.inference import create_predictor

    device = paddle.get_device()
    gpu = int(device.split(":")[1]) if device.startswith("gpu") else None
    files = folder / "model.pdmodel", folder / "model.pdiparams"
    predictor = create_predictor(paddle_config(*files, precision, threads, gpu))
    # What it gives lies in its own memory, where the next run writes.
    return lambda images: [x.clone() for x in predictor.run([images])]


def openvino_options(precision: str, threads: int) -> dict[str, Any]:
    """OpenVINO's settings."""
    return {
        "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp32": "f32"}[precision],
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }


def openvino_runner(folder: Path, precision: str, threads: int) -> Runner:
    """OpenVINO on the CPU, compiled once for each shape of images."""
    import openvino

    core = openvino.Core()
    options = openvino_options(precision, threads)
    compiled: dict[tuple[int, ...], Any] = {}

    def run(images: Tensor) -> list[Tensor]:
        shape = tuple(images.shape)
        if shape not in compiled:
            model = core.read_model(str(folder / "model.onnx"))
            if model.is_dynamic():
                model.reshape(list(shape))
            compiled[shape] = core.compile_model(model, "CPU", options)
        given = compiled[shape](images.numpy(), share_inputs=True)
        return [paddle.to_tensor(np.asarray(given[i], "float32")) for i in range(len(given))]

    return run


def onnxruntime_runner(folder: Path, precision: str, threads: int) -> Runner:
    """ONNX Runtime on the CPU, in fp32."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: [paddle.to_tensor(x) for x in session.run(None, {name: images.numpy()})]


@dataclass(frozen=True)
class Backend:
    """One engine: what must be installed, the exports it reads, the precisions it has on a CPU, and how it is started."""

    modules: tuple[str, ...]
    kind: str
    precisions: tuple[str, ...]
    start: Callable[[Path, str, int], Runner]


BACKENDS: Mapping[str, Backend] = {
    "paddle": Backend((), "paddle", ("bf16", "fp32"), paddle_runner),
    "openvino": Backend(("openvino", "paddle2onnx"), "onnx", ("bf16", "fp32"), openvino_runner),
    "onnxruntime": Backend(("onnxruntime", "paddle2onnx"), "onnx", ("fp32",), onnxruntime_runner),
}
