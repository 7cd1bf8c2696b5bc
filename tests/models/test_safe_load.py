"""Weights files are read without running anything that they contain."""

import os
import pickle
import struct

import numpy as np
import paddle
import pytest

from paddleseg_ext.errors import WeightsError
from paddleseg_ext.models.safe_load import safe_load


class Runs:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_what_paddle_saves_comes_back_bit_for_bit(tmp_path, protocol):
    paddle.seed(0)
    layer = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 3), paddle.nn.BatchNorm2D(4))
    path = str(tmp_path / "model.pdparams")
    paddle.save(layer.state_dict(), path, protocol=protocol)
    loaded = safe_load(path)
    loaded.pop("StructuredToParameterName@@", None)
    assert set(loaded) == set(layer.state_dict())
    assert all(loaded[name].tobytes() == value.numpy().tobytes() for name, value in layer.state_dict().items())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int64", "bool", "uint8"])
@pytest.mark.parametrize("shape", [[], [0], [2, 3]])
def test_every_kind_of_tensor(tmp_path, dtype, shape):
    tensor = paddle.ones(shape).astype(dtype)
    path = str(tmp_path / "x.pdparams")
    paddle.save({"x": tensor}, path)
    loaded = safe_load(path)["x"]
    assert list(loaded.shape) == shape and loaded.tobytes() == tensor.numpy().tobytes()


def test_it_reads_what_paddle_reads_names_of_parameters_included(tmp_path):
    paddle.seed(0)
    path = str(tmp_path / "model.pdparams")
    paddle.save(paddle.nn.Linear(2, 3).state_dict(), path)
    ours, theirs = safe_load(path), paddle.load(path, return_numpy=True, keep_name_table=True)
    assert ours["StructuredToParameterName@@"] == theirs.pop("StructuredToParameterName@@")
    assert set(ours) == {*theirs, "StructuredToParameterName@@"}
    assert all(ours[name].tobytes() == value.tobytes() for name, value in theirs.items())


def test_an_optimizers_state_can_be_read(tmp_path):
    layer = paddle.nn.Linear(2, 2)
    schedule = paddle.optimizer.lr.PolynomialDecay(0.1, 10)
    optimizer = paddle.optimizer.Momentum(schedule, parameters=layer.parameters())
    layer(paddle.ones([1, 2])).sum().backward()
    optimizer.step()
    path = str(tmp_path / "model.pdopt")
    paddle.save(optimizer.state_dict(), path)
    assert {"LR_Scheduler"} < set(safe_load(path))


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        (lambda: Runs(os.mkdir, "ran"), r"posix\.mkdir"),
        (lambda: Runs(eval, "__import__('os').mkdir('ran')"), r"(builtins|__builtin__)\.eval"),
        (lambda: Runs(exec, "import os; os.mkdir('ran')"), r"(builtins|__builtin__)\.exec"),
        (lambda: Runs(getattr, 3, "real"), r"(builtins|__builtin__)\.getattr"),
        (lambda: Runs(np.load, "x"), r"numpy.*load"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_file_that_asks_to_run_something_is_refused_and_does_not(tmp_path, monkeypatch, payload, named, protocol):
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"weight": payload()}, protocol)
    (tmp_path / "bad.pdparams").write_bytes(data)
    with pytest.raises(
        WeightsError, match=f"bad.pdparams: refused, it asks to run '{named}', which weights never need"
    ):
        safe_load("bad.pdparams")
    assert not (tmp_path / "ran").exists()


def test_what_hangs_on_an_allowed_name_is_refused_too(tmp_path):
    (tmp_path / "bad.pdparams").write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.")
    with pytest.raises(WeightsError, match="asks to run 'numpy.ndarray.tofile'"):
        safe_load(str(tmp_path / "bad.pdparams"))


def name(module, attribute):
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def raw(value):
    return name("_codecs", "encode") + text(value.decode("latin1")) + text("latin1") + b"\x86R"


MAKE = name("numpy._core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"K\x00\x85" + raw(b"b") + b"\x87R"


def array(kind, shape, content):
    """A pickle of an array as NumPy writes it, and of what it never writes."""
    return (
        b"\x80\x02"
        + MAKE
        + b"(K\x01"
        + shape
        + name("numpy", "dtype")
        + text(kind)
        + b"\x85R"
        + b"\x89"
        + raw(content)
        + b"tb."
    )


@pytest.mark.parametrize(
    "content",
    [
        array("O", b"K\x01\x85", b"A" * 8),  # objects at addresses that the file says
        array("f4", b"K\x03\x85", b"A" * 8),  # more than there is
        array("f4", b"J\xff\xff\xff\xff\x85", b""),  # less than nothing
        array("V8", b"K\x01\x85", b"A" * 8),
        b"\x80\x02" + name("numpy", "ndarray") + b"K\x01\x85" + text("O") + b"\x86R.",  # an array at once
        b"\x80\x02"
        + name("numpy", "dtype")
        + text("f4")
        + b"\x85R(K\x03X\x01\x00\x00\x00<)NNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb.",
    ],
)
def test_what_numpy_would_take_for_memory_is_refused(tmp_path, content):
    (tmp_path / "bad.pdparams").write_bytes(content)
    with pytest.raises(WeightsError, match="bad.pdparams: not a weights file of Paddle"):
        safe_load(str(tmp_path / "bad.pdparams"))


def test_a_small_file_takes_little_memory(tmp_path):
    (tmp_path / "index.pdparams").write_bytes(b"\x80\x02}r" + struct.pack("<I", 1 << 31) + b".")
    assert safe_load(str(tmp_path / "index.pdparams")) == {}
    (tmp_path / "long.pdparams").write_bytes(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.")
    with pytest.raises(WeightsError, match="long.pdparams: not a weights file"):
        safe_load(str(tmp_path / "long.pdparams"))
    nested = []
    for _ in range(60):
        nested = (nested, nested)  # 2**60 lists, to whom it counts each by itself
    (tmp_path / "nested.pdparams").write_bytes(pickle.dumps({"w": nested}, 4))
    assert set(safe_load(str(tmp_path / "nested.pdparams"))) == {"w"}


def test_arrays_come_back_in_any_order_of_bytes_and_axes(tmp_path):
    wanted = {
        "big": np.arange(6, dtype=">f4").reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    wanted |= {"number": np.float32(1.5), "flags": np.array([True, False]), "c": np.ones([2], "complex64")}
    twice = [wanted["big"], (wanted["big"], 3)]
    for protocol in (2, 4, 5):
        (tmp_path / "x.pdparams").write_bytes(pickle.dumps({**wanted, "twice": twice}, protocol))
        given = safe_load(str(tmp_path / "x.pdparams"))
        for key, value in wanted.items():
            np.testing.assert_array_equal(given[key], value)
            assert given[key].dtype == value.dtype and type(given[key]) is type(value)
        assert given["twice"][0] is given["twice"][1][0] is given["big"] and given["big"].flags.writeable


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_file_cut_off_anywhere_is_named_and_never_half_loaded(tmp_path, protocol):
    path = tmp_path / "cut.pdparams"
    paddle.save(paddle.nn.Linear(2, 3).state_dict(), str(path), protocol=protocol)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match="cut.pdparams: not a weights file of Paddle") as caught:
            safe_load(str(path))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("slices", [3, {"w": 3}, {"w": {"OriginShape": (1,), "slices": ["gone"]}}, {"w": {}}])
def test_slices_that_cannot_be_joined_are_named(tmp_path, slices):
    (tmp_path / "big.pdparams").write_bytes(pickle.dumps({"UnpackBigParamInfor@@": slices}, 2))
    with pytest.raises(WeightsError, match="big.pdparams: not a weights file of Paddle"):
        safe_load(str(tmp_path / "big.pdparams"))


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps({"a": np.zeros(100)})[:60]])
def test_a_broken_file_is_named(tmp_path, content):
    (tmp_path / "broken.pdparams").write_bytes(content)
    with pytest.raises(WeightsError, match=r"broken.pdparams: not a weights file of Paddle"):
        safe_load(str(tmp_path / "broken.pdparams"))


def test_a_file_of_something_else_is_named(tmp_path):
    (tmp_path / "list.pdparams").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(WeightsError, match="weights by name are expected, but this holds a list"):
        safe_load(str(tmp_path / "list.pdparams"))


def test_a_missing_file_is_named():
    with pytest.raises(WeightsError, match="nowhere.pdparams: no such weights file"):
        safe_load("nowhere.pdparams")


def test_slices_of_a_large_array_are_joined(tmp_path):
    whole = np.arange(12, dtype="float32").reshape(3, 4)
    content = {
        "w@@.0": whole.ravel()[:5],
        "w@@.1": whole.ravel()[5:],
        "UnpackBigParamInfor@@": {"w": {"OriginShape": (3, 4), "slices": ["w@@.0", "w@@.1"]}},
    }
    (tmp_path / "big.pdparams").write_bytes(pickle.dumps(content, 2))
    loaded = safe_load(str(tmp_path / "big.pdparams"))
    assert list(loaded) == ["w"] and np.array_equal(loaded["w"], whole)
