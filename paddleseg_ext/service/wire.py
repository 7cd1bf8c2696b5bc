"""NumPy arrays to and from the Open Inference Protocol's messages, whose published stubs come with tritonclient.

The bytes of tensors go round protobuf: a message is its small fields followed by the raw ones, each of which is a tag, a
length and the bytes. That saves two copies on each side, and the message is the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import ml_dtypes
import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

SERVICE = "inference.GRPCInferenceService"
"""The protocol's name, which is the first part of its methods' paths."""

DTYPES: Mapping[str, np.dtype] = MappingProxyType(
    {
        "FP32": np.dtype("<f4"),
        "FP16": np.dtype("<f2"),
        "BF16": np.dtype(ml_dtypes.bfloat16),
        "FP64": np.dtype("<f8"),
        "INT8": np.dtype("i1"),
        "INT16": np.dtype("<i2"),
        "INT32": np.dtype("<i4"),
        "INT64": np.dtype("<i8"),
        "UINT8": np.dtype("u1"),
        "BOOL": np.dtype("?"),
    }
)
"""The protocol's data types as NumPy's."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Where a message has typed values instead of raw bytes; 16-bit floats travel raw only.
_TYPED = {
    **{"BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents"},
    **{"INT64": "int64_contents", "UINT8": "uint_contents", "FP32": "fp32_contents", "FP64": "fp64_contents"},
}
_LENGTH_DELIMITED = 2
_MOST_FIELDS = 4096  # that a message may have at its top; honest ones have a few for each tensor

Header = TypeVar("Header", pb.ModelInferRequest, pb.ModelInferResponse)


class MalformedMessage(ValueError):
    """A message or tensor that contradicts itself; the text says how."""


@dataclass
class Message(Generic[Header]):
    """A request or response: its small fields, and the raw bytes of its tensors in their order."""

    header: Header
    raw: list[Any] = field(default_factory=list)


def datatype(dtype: np.dtype) -> str | None:
    """The protocol's name, None where it has none."""
    return _NAMES.get(np.dtype(dtype).newbyteorder("="))


def is_float(datatype: str) -> bool:
    """Whether it may hold NaN."""
    return datatype in ("FP32", "FP16", "BF16", "FP64")


def raw(array: np.ndarray) -> Any:
    """The bytes of an array, row by row, little-endian, in its own memory where they lie so."""
    array = np.ascontiguousarray(array)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.reshape(-1).view(np.uint8).data


def array(tensor: Any, data: Any | None) -> np.ndarray:
    """The array of an input or output of a message. It may share memory with the message and be read-only.

    Args:
        tensor: has `name`, `datatype`, `shape` and, without `data`, `contents`.
        data: its raw bytes.

    Raises:
        MalformedMessage: an unknown data type, or not as many values as the shape says.
    """
    dtype, shape = DTYPES.get(tensor.datatype), tuple(tensor.shape)
    if dtype is None:
        raise MalformedMessage(f"'{tensor.name}': data type {tensor.datatype!r} is none of {', '.join(DTYPES)}")
    if any(size < 0 for size in shape):
        raise MalformedMessage(f"'{tensor.name}': shape {list(shape)} has a negative size")
    count = 1
    for length in shape:
        count *= length
    if data is not None:
        size = count * dtype.itemsize
        if len(data) != size:
            raise MalformedMessage(
                f"'{tensor.name}': {tensor.datatype} {list(shape)} takes {size} bytes, but there are {len(data)}"
            )
        return np.frombuffer(data, dtype).reshape(shape)
    values = getattr(tensor.contents, _TYPED[tensor.datatype]) if tensor.datatype in _TYPED else ()
    if len(values) != count:
        raise MalformedMessage(f"'{tensor.name}': {list(shape)} takes {count} values, but there are {len(values)}")
    try:
        return np.array(values, dtype).reshape(shape)
    except OverflowError:
        raise MalformedMessage(f"'{tensor.name}': a value lies outside of {tensor.datatype}") from None


def arrays(message: Message, tensors: Sequence[Any]) -> dict[str, np.ndarray]:
    """All inputs of a request or outputs of a response by name.

    Raises:
        MalformedMessage: see `array`; a name twice, or raw bytes for some tensors only.
    """
    if message.raw and len(message.raw) != len(tensors):
        raise MalformedMessage(f"{len(tensors)} tensors, but raw bytes of {len(message.raw)}")
    found: dict[str, np.ndarray] = {}
    for index, tensor in enumerate(tensors):
        if tensor.name in found:
            raise MalformedMessage(f"'{tensor.name}' comes twice")
        found[tensor.name] = array(tensor, message.raw[index] if message.raw else None)
    return found


def write_request(message: Message[pb.ModelInferRequest]) -> bytes:
    """A request as bytes."""
    return _join(message, pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER)


def write_response(message: Message[pb.ModelInferResponse]) -> bytes:
    """A response as bytes."""
    return _join(message, pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER)


def read_request(data: bytes) -> Message[pb.ModelInferRequest]:
    """The inverse of `write_request`; raw bytes stay where they are. Raises MalformedMessage."""
    return _split(data, pb.ModelInferRequest, pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER)


def read_response(data: bytes) -> Message[pb.ModelInferResponse]:
    """The inverse of `write_response`; raw bytes stay where they are. Raises MalformedMessage."""
    return _split(data, pb.ModelInferResponse, pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER)


def _join(message: Message, number: int) -> bytes:
    parts: list[Any] = [message.header.SerializeToString()]
    for data in message.raw:
        parts += [_varint(number << 3 | _LENGTH_DELIMITED), _varint(len(data)), data]
    return b"".join(parts)


def _split(data: bytes, kind: type[Header], number: int) -> Message[Header]:
    view, position, small, raws = memoryview(data), 0, bytearray(), []
    for count, (tag, start, end) in enumerate(_fields(data)):
        if count == _MOST_FIELDS:
            raise MalformedMessage(f"more than {_MOST_FIELDS} fields")
        if tag == number << 3 | _LENGTH_DELIMITED:
            raws.append(view[start:end])
        else:
            small += view[position:end]
        position = end
    try:
        return Message(kind.FromString(bytes(small)), raws)
    except DecodeError as error:
        raise MalformedMessage(f"no message of the protocol: {error}") from None


def _fields(data: bytes) -> Iterable[tuple[int, int, int]]:
    """The tag of each field of a message, and where its value starts and ends."""
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        kind, start = tag & 7, position
        if kind == _LENGTH_DELIMITED:
            length, start = _read_varint(data, position)
            end = start + length
        elif kind == 0:
            _, end = _read_varint(data, position)
        elif kind in (1, 5):
            end = start + (8 if kind == 1 else 4)
        else:
            raise MalformedMessage(f"no message of the protocol: a field of wire type {kind}")
        if end > len(data):
            raise MalformedMessage("no message of the protocol: it ends within a field")
        yield tag, start, end
        position = end


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise MalformedMessage("no message of the protocol: it ends within a number")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise MalformedMessage("no message of the protocol: a number of more than 10 bytes")
