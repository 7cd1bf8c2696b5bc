"""Parameters of a merged program: the teacher's from a file, the student's into one, and the student alone for inference."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddleseg_ext.errors import ConfigError, WeightsError
from paddleseg_ext.models.safe_load import safe_load
from paddleseg_ext.static.variables import check_not_random, find, parameters


def load_teacher(program: Any, path: str, place: Any, name_prefix: str = "", scope: Any = None) -> None:
    """Give a program's parameters the values of a file.

    Args:
        program: the teacher's program, or the merged one with its `name_prefix`.
        path: a .pdparams file of names to arrays, or a folder with model.pdparams or with a file for each parameter.
        place: where they are to lie.
        name_prefix: of the teacher's names in the program; the file has them without it.
        scope: default the global one.

    Raises:
        WeightsError: the file is missing, or a parameter is missing in it or has another shape.
    """
    scope = scope or paddle.static.global_scope()
    values = _read(path)
    wanted = {name: v for name, v in parameters(program).items() if name.startswith(name_prefix)}
    missing = sorted(name for name in wanted if name.removeprefix(name_prefix) not in values)
    if missing:
        raise WeightsError(f"{path}: {len(missing)} of {len(wanted)} parameters are missing, such as '{missing[0]}'")
    for name, variable in wanted.items():
        value = values[name.removeprefix(name_prefix)]
        if list(value.shape) != list(variable.shape):
            raise WeightsError(f"{path}: '{name}' is {list(value.shape)}, the program's is {list(variable.shape)}")
    for name in wanted:
        value = np.ascontiguousarray(values[name.removeprefix(name_prefix)])
        scope.var(name).get_tensor().set(value, place)


def save_student(program: Any, path: str, name_prefix: str = "teacher_", scope: Any = None) -> None:
    """Write a program's parameters but those with the teacher's prefix into one .pdparams file, whole or not at all."""
    scope = scope or paddle.static.global_scope()
    values = {}
    for name in parameters(program):
        variable = scope.find_var(name)
        if not name.startswith(name_prefix) and variable is not None and variable.get_tensor()._is_initialized():
            values[name] = np.array(variable.get_tensor())
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    paddle.save(values, str(partial))
    os.replace(partial, target)


def export_student(
    program: Any, path_prefix: str, feed_names: Sequence[str], fetch_names: Sequence[Any], executor: Any
) -> None:
    """Write the student alone as an inference model that paddle.inference loads, in test mode.

    Args:
        program: the student's or the merged program, also with losses and an optimizer.
        path_prefix: folder and name of the files to write.
        feed_names, fetch_names: inputs and outputs by name.

    Raises:
        ConfigError: a name is unknown, or an output comes of random numbers that test mode does not switch off.
    """
    where = "export_student"
    feeds = [find(program, name, where) for name in feed_names]
    fetches = [find(program, name, where) for name in fetch_names]
    if not fetches:
        raise ConfigError(f"{where}: name at least one output")
    check_not_random(paddle.static.io.normalize_program(program, feeds, fetches), where)
    Path(path_prefix).parent.mkdir(parents=True, exist_ok=True)
    paddle.static.save_inference_model(path_prefix, feeds, fetches, executor, program=program)


def _read(path: str) -> Mapping[str, np.ndarray]:
    given = Path(path)
    if given.is_dir() and not (given / "model.pdparams").is_file():
        files = [file for file in given.iterdir() if file.is_file()]
        if not files:
            raise WeightsError(f"{path}: an empty folder; a file for each parameter, or model.pdparams, is expected")
        return {file.name: _one(file) for file in files}
    file = given / "model.pdparams" if given.is_dir() else given
    if not file.is_file():
        raise WeightsError(f"{path}: no such file")
    content = safe_load(str(file))
    return {name: np.asarray(value) for name, value in content.items() if name != "StructuredToParameterName@@"}


_DTYPES = {
    0: "bool",
    1: "int16",
    2: "int32",
    3: "int64",
    4: "float16",
    5: "float32",
    6: "float64",
    20: "uint8",
    21: "int8",
}


def _one(file: Path) -> np.ndarray:
    """One parameter in the layout of Paddle's save operators.

    uint32 version, uint64 levels of nesting (none), uint32 version, int32 length, a protobuf message of that length with the
    dtype in field 1 and the sizes in field 2, the values.
    """
    data = file.read_bytes()
    try:
        levels, length = int.from_bytes(data[4:12], "little"), int.from_bytes(data[16:20], "little")
        if levels != 0:
            raise ValueError("nested")
        dtype, shape = _description(data[20 : 20 + length])
        return np.frombuffer(data[20 + length :], _DTYPES[dtype]).reshape(shape)
    except (ValueError, KeyError, IndexError) as error:
        raise WeightsError(f"{file}: not a parameter that Paddle saved ({error})") from None


def _description(message: bytes) -> tuple[int, list[int]]:
    dtype, shape, position = -1, [], 0

    def number() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(message):
        field = number()
        if field == 0x08:
            dtype = number()
        elif field == 0x10:
            shape.append(number())
        else:
            raise ValueError(f"field {field >> 3}")
    return dtype, shape
