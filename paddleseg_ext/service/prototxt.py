"""The text files in which Paddle Serving describes a model's inputs and outputs, read by protobuf's own text parser."""

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.service.spec import TensorSpec

_LARGEST = 1 << 20  # bytes; real files have a few hundred
# The numbers that stand for data types there, in their order; complex ones and texts are left out.
_DATATYPES = ("INT64", "FP32", "INT32", "FP64", "INT16", "FP16", "BF16", "UINT8", "INT8", "BOOL")
_Field = descriptor_pb2.FieldDescriptorProto


def read_prototxt(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of a `serving_server_conf.prototxt` or `serving_client_conf.prototxt`.

    Shapes are as they are there: without the sizes that may change, the batch among them.

    Raises:
        ConfigError: it cannot be read, is malformed (which line), or has a data type that is not known.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if len(content) > _LARGEST:
        raise ConfigError(f"{path}: larger than {_LARGEST} bytes")
    message = _message_class()()
    try:
        text_format.Parse(content, message, allow_unknown_field=True)
    except text_format.ParseError as error:
        line = error.GetLine()
        reason = str(error).split(" : ", 1)[-1]
        raise ConfigError(f"{path}{f', line {line}' if line else ''}: {reason}") from None
    except RecursionError:
        raise ConfigError(f"{path}: blocks within blocks without end") from None
    found = tuple(
        tuple(_tensor(path, f"{kind}_var[{i}]", item, kind) for i, item in enumerate(getattr(message, f"{kind}_var")))
        for kind in ("feed", "fetch")
    )
    for kind, tensors in zip(("feed", "fetch"), found, strict=True):
        if not tensors:
            raise ConfigError(f"{path}: there is no {kind}_var")
    return found[0], found[1]


def _tensor(path: Path, where: str, item: Any, kind: str) -> TensorSpec:
    number = getattr(item, f"{kind}_type")
    if not item.name:
        raise ConfigError(f"{path}: {where}: the name is missing")
    if not 0 <= number < len(_DATATYPES):
        known = ", ".join(f"{i} {name}" for i, name in enumerate(_DATATYPES))
        raise ConfigError(f"{path}: {where}.{kind}_type: one of {known} is expected, but got {number}")
    return TensorSpec(item.name, _DATATYPES[number], tuple(item.shape), item.alias_name or item.name)


def _message_class() -> Any:
    """The class of such a file's message; the fields are those that Paddle Serving writes."""
    file = descriptor_pb2.FileDescriptorProto(name="paddle_serving.proto", package="paddle_serving", syntax="proto2")
    model = file.message_type.add(name="Model")
    for number, kind in enumerate(("feed", "fetch"), 1):
        variable = file.message_type.add(name=f"{kind}_var")
        fields = (
            *(("name", _Field.TYPE_STRING), ("alias_name", _Field.TYPE_STRING), ("is_lod_tensor", _Field.TYPE_BOOL)),
            *((f"{kind}_type", _Field.TYPE_INT32), ("shape", _Field.TYPE_INT32)),
        )
        for index, (name, type_) in enumerate(fields, 1):
            label = _Field.LABEL_REPEATED if name == "shape" else _Field.LABEL_OPTIONAL
            variable.field.add(name=name, number=index, type=type_, label=label)
        model.field.add(
            **{"name": f"{kind}_var", "number": number, "label": _Field.LABEL_REPEATED, "type": _Field.TYPE_MESSAGE},
            type_name=f".paddle_serving.{kind}_var",
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("paddle_serving.Model"))
