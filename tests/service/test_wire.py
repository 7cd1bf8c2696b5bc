"""Messages that go round protobuf are the ones that protobuf reads and writes."""

import ml_dtypes
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from paddleseg_ext.service import wire
from paddleseg_ext.service.spec import DATATYPES


def header(**values):
    message = pb.ModelInferRequest(model_name="m", id="5", **values)
    message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    message.outputs.add(name="y")
    return message


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_a_message_is_written_as_protobuf_reads_it_and_the_other_way_round(raws):
    message = wire.Message(header(), list(raws))
    plain = header(raw_input_contents=raws)
    assert pb.ModelInferRequest.FromString(wire.write_request(message)) == plain
    found = wire.read_request(plain.SerializeToString())
    assert found.header == header() and [bytes(r) for r in found.raw] == raws


@settings(max_examples=300)
@given(st.binary(max_size=60), st.integers(0, 40))
def test_damaged_messages_are_refused_or_read_as_protobuf_reads_them(noise, position):
    data = bytearray(header(raw_input_contents=[b"12345678"]).SerializeToString())
    data[position : position + len(noise)] = noise
    try:
        wanted = pb.ModelInferRequest.FromString(bytes(data))
    except DecodeError:
        wanted = None
    try:
        found = wire.read_request(bytes(data))
    except wire.MalformedMessage:
        return
    assert wanted is not None
    whole = pb.ModelInferRequest.FromString(wire.write_request(found))
    whole.DiscardUnknownFields()
    wanted.DiscardUnknownFields()
    assert whole == wanted


def test_a_message_of_countless_fields_is_refused():
    with pytest.raises(wire.MalformedMessage, match="more than 4096 fields"):
        wire.read_request(b"\x0a\x00" * 5000)


def test_every_data_type_of_a_spec_has_its_own_in_numpy():
    assert set(wire.DTYPES) == set(DATATYPES)
    assert [wire.datatype(dtype) for dtype in wire.DTYPES.values()] == list(wire.DTYPES)
    assert wire.datatype(np.dtype(">f4")) == "FP32" and wire.datatype(np.dtype("u8")) is None


@pytest.mark.parametrize("datatype", DATATYPES)
def test_arrays_come_back_from_raw_bytes(datatype):
    x = np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1).astype(wire.DTYPES[datatype])
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=x.shape)
    np.testing.assert_array_equal(wire.array(tensor, bytes(wire.raw(x))), x)


def test_bytes_are_little_endian_whatever_the_array_is():
    assert bytes(wire.raw(np.array([1, 2], ">i2"))) == b"\x01\x00\x02\x00"
    assert bytes(wire.raw(np.array(1.0, ml_dtypes.bfloat16))) == b"\x80\x3f"


@pytest.mark.parametrize(
    ("datatype", "where", "values"),
    [
        ("INT8", "int_contents", [-1, 5]),
        ("UINT8", "uint_contents", [0, 255]),
        ("INT64", "int64_contents", [-(2**40), 1]),
        ("BOOL", "bool_contents", [True, False]),
        ("FP64", "fp64_contents", [0.1, -2.0]),
    ],
)
def test_arrays_come_from_typed_values(datatype, where, values):
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=[2, 1])
    getattr(tensor.contents, where).extend(values)
    x = wire.array(tensor, None)
    assert x.dtype == wire.DTYPES[datatype] and x.tolist() == [[v] for v in values]


@pytest.mark.parametrize(
    ("datatype", "shape", "values", "message"),
    [
        ("FP32", [3], [], r"'x': \[3\] takes 3 values, but there are 0"),
        ("UINT8", [1], [256], "'x': a value lies outside of UINT8"),
        ("FP16", [1], [], r"'x': \[1\] takes 1 values, but there are 0"),
        ("BYTES", [1], [], "'x': data type 'BYTES' is none of"),
        ("FP32", [-1], [], r"'x': shape \[-1\] has a negative size"),
    ],
)
def test_values_that_do_not_fit_are_refused(datatype, shape, values, message):
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=shape)
    tensor.contents.uint_contents.extend(values)
    with pytest.raises(wire.MalformedMessage, match=message):
        wire.array(tensor, None)
