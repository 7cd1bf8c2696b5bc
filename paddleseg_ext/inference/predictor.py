"""Exported models behind one call, NumPy in and NumPy out, whatever their inputs and outputs are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.service.formats import cast
from paddleseg_ext.service.spec import ModelSpec, TensorSpec
from paddleseg_ext.service.wire import is_float

_NAMES = {
    **{"float32": "FP32", "float16": "FP16", "bfloat16": "BF16", "float64": "FP64", "bool": "BOOL", "uint8": "UINT8"},
    **{f"int{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
}
ENGINES = ("paddle", "openvino", "onnxruntime")
"""The first reads Paddle's files, the others ONNX."""

_PRECISIONS = {
    ("paddle", False): ("fp32", "bf16"),
    ("paddle", True): ("fp32", "fp16"),
    ("openvino", False): ("fp32", "bf16"),
    ("onnxruntime", False): ("fp32",),
}


@dataclass(frozen=True)
class PredictorOptions:
    """How a model is run.

    engine: one of ENGINES; "": paddle for Paddle's files, openvino for ONNX. precision: fp32, on a CPU bf16, on a GPU fp16.
    gpu: number of the card, None for the CPU. threads: of the CPU, 0 for all. mem_optim: let tensors share memory.
    """

    engine: str = ""
    precision: str = "fp32"
    gpu: int | None = None
    threads: int = 0
    mem_optim: bool = True

    def checked(self, model: Path) -> "PredictorOptions":
        """With the engine chosen. Raises ConfigError where it does not run the model or does not have the precision."""
        onnx = model.suffix == ".onnx"
        engine = self.engine or ("openvino" if onnx else "paddle")
        if onnx != (engine != "paddle"):
            wanted = "ONNX models" if engine != "paddle" else "Paddle's own models"
            raise ConfigError(f"--engine {engine}: it runs {wanted}, but {model} is none")
        kinds = _PRECISIONS.get((engine, self.gpu is not None))
        where = "a CPU" if self.gpu is None else "a GPU"
        if kinds is None:
            raise ConfigError(f"--engine {engine}: it does not run on {where}")
        if self.precision not in kinds:
            raise ConfigError(f"--precision {self.precision}: {engine} on {where} has {' and '.join(kinds)}")
        if self.precision == "bf16" and model.suffix == ".json":
            raise ConfigError(f"--precision bf16: oneDNN does not take {model}, which is of Paddle's new IR (PIR)")
        return replace(self, engine=engine)


_Specs = tuple[TensorSpec, ...]

Run = Callable[[Sequence[np.ndarray]], list[np.ndarray]]
"""A model's inputs in their order to its outputs in theirs; arrays are the caller's own."""

_Opened = tuple[_Specs, _Specs, Run]


def open_predictor(
    model: Path, params: Path | None, options: PredictorOptions, datatype: str = "FP32"
) -> tuple[ModelSpec, Run]:
    """Load a model, which is given no name; its floating-point outputs come as `datatype`.

    Raises:
        ConfigError: the file is no model, the engine does not run it or is not installed, or the card is missing.
    """
    options = options.checked(model)
    start = {"paddle": _paddle, "openvino": _openvino, "onnxruntime": _onnxruntime}[options.engine]
    inputs, outputs, run = start(model, params, options)
    kinds = [datatype if is_float(output.datatype) else output.datatype for output in outputs]
    spec = ModelSpec("", "", inputs, outputs)
    return spec, lambda arrays: [cast(x, kind) for x, kind in zip(run(arrays), kinds, strict=True)]


def describe(model: Path) -> tuple[_Specs, _Specs]:
    """Inputs and outputs of a program of Paddle's old IR (`.pdmodel`, `__model__`) or of PIR (`.json`). Raises ConfigError."""
    import paddle  # noqa: F401 (the next line takes its parts from it)
    from paddle.base import core

    try:
        found = _in_pir(core, model) if model.suffix == ".json" else _in_old_ir(core, model)
    except (ValueError, RuntimeError, SystemError, OSError) as error:
        raise ConfigError(f"{model}: no model of Paddle's ({_reason(error)})") from None
    if not all(found):
        raise ConfigError(f"{model}: a model without {'outputs' if found[0] else 'inputs'}")
    return found


def _in_old_ir(core: Any, model: Path) -> tuple[_Specs, _Specs]:
    program = core.ProgramDesc(model.read_bytes())  # its parts do not keep it alive
    block = program.block(0)
    operators = [block.op(i) for i in range(block.op_size())]

    def tensors(kind: str, name: Callable[[Any], str]) -> _Specs:
        chosen = sorted((op for op in operators if op.type() == kind), key=lambda op: op.attr("col"))
        variables = [block.find_var(name(op).encode()) for op in chosen]
        return tuple(_tensor(v.name(), v.dtype(), v.shape()) for v in variables)

    return tensors("feed", lambda op: op.output("Out")[0]), tensors("fetch", lambda op: op.input("X")[0])


def _in_pir(core: Any, model: Path) -> tuple[_Specs, _Specs]:
    import paddle

    program = paddle.pir.Program()
    core.deserialize_pir_program(str(model), program, 1)
    operators = program.global_block().ops

    def tensors(kind: str) -> _Specs:
        chosen = [(op.attrs(), (op.results() or op.operands_source())[0]) for op in operators if op.name() == kind]
        return tuple(_tensor(attrs["name"], value.dtype, value.shape) for attrs, value in chosen)

    return tensors("pd_op.data"), tensors("pd_op.fetch")


def _tensor(name: str, dtype: Any, shape: Sequence[int]) -> TensorSpec:
    kind = str(dtype).split(".")[-1].lower()
    if kind not in _NAMES:
        raise ValueError(f"'{name}' has the data type {kind}, which does not travel")
    return TensorSpec(name, _NAMES[kind], tuple(int(size) for size in shape), name)


def _paddle(model: Path, params: Path | None, options: PredictorOptions) -> _Opened:
    import paddle
    from paddle.inference import create_predictor

    from paddleseg_ext.inference.runners import paddle_config

    cards = paddle.device.cuda.device_count()
    if options.gpu is not None and not 0 <= options.gpu < cards:
        raise ConfigError(f"--gpu_ids {options.gpu}: Paddle finds {cards} GPUs here")
    inputs, outputs = describe(model)
    settings = paddle_config(
        *(model, params, options.precision, options.threads, options.gpu), mem_optim=options.mem_optim
    )
    try:
        predictor = create_predictor(settings)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{model}: cannot be loaded with {params} ({_reason(error)})") from None

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        for spec, x in zip(inputs, arrays, strict=True):
            handle = predictor.get_input_handle(spec.name)
            handle.reshape(x.shape)
            handle.copy_from_cpu(np.ascontiguousarray(x))
        predictor.run()
        return [predictor.get_output_handle(spec.name).copy_to_cpu() for spec in outputs]

    return inputs, outputs, run


def _openvino(model: Path, params: Path | None, options: PredictorOptions) -> _Opened:
    openvino = _imported("openvino")
    from paddleseg_ext.inference.runners import openvino_options

    core = openvino.Core()
    read = core.read_model(str(model))
    compiled = core.compile_model(read, "CPU", openvino_options(options.precision, options.threads))

    def tensors(ports: Any) -> _Specs:
        def shape(port: Any) -> list[int]:
            return [-1 if size.is_dynamic else size.get_length() for size in port.partial_shape]

        return tuple(_tensor(p.any_name, np.dtype(p.element_type.to_dtype()), shape(p)) for p in ports)

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        given = compiled(list(arrays), share_inputs=True)
        return [np.array(given[i]) for i in range(len(given))]

    return tensors(read.inputs), tensors(read.outputs), run


def _onnxruntime(model: Path, params: Path | None, options: PredictorOptions) -> _Opened:
    onnxruntime = _imported("onnxruntime")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])

    def tensors(nodes: Any) -> _Specs:
        kinds = {"tensor(float)": "float32", "tensor(double)": "float64"}

        def shape(node: Any) -> list[int]:
            return [size if isinstance(size, int) else -1 for size in node.shape]

        return tuple(_tensor(n.name, kinds.get(n.type, n.type[7:-1]), shape(n)) for n in nodes)

    inputs = tensors(session.get_inputs())

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        return session.run(None, {spec.name: x for spec, x in zip(inputs, arrays, strict=True)})

    return inputs, tensors(session.get_outputs()), run


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _imported(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(f"--engine {name}: it is not installed") from None
