"""Weights into models, and models from their configuration."""

import pickle

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_ext.config import Component
from paddleseg_ext.errors import ConfigError, WeightsError
from paddleseg_ext.models import build_model, load_weights


def net(width=4, classes=3):
    return nn.Sequential(nn.Conv2D(3, width, 3), nn.BatchNorm2D(width), nn.Conv2D(width, classes, 1))


@pytest.fixture
def saved(tmp_path):
    paddle.seed(0)
    model = net()
    paddle.save(model.state_dict(), str(tmp_path / "model.pdparams"))
    return model, str(tmp_path / "model.pdparams")


def equal(a, b):
    b = b.state_dict()
    return all(np.array_equal(value.numpy(), b[name].numpy()) for name, value in a.state_dict().items())


def test_weights_of_the_same_model_match_whole(saved):
    model, path = saved
    other = net()
    report = load_weights(other, path, strict=True)
    assert (report.matched, report.total) == (8, 8) and equal(model, other)


def test_a_folder_stands_for_the_file_in_it(saved, tmp_path):
    other = net()
    load_weights(other, str(tmp_path))
    assert equal(saved[0], other)


def test_another_head_is_left_out_and_reported(saved):
    _, path = saved
    other = net(classes=5)
    head = other[2].weight.numpy().copy()
    report = load_weights(other, path)
    assert report.matched == 6 and np.array_equal(other[2].weight.numpy(), head)
    assert "6 of 8 tensors of Sequential matched; 2 of another shape: 2.weight [3, 4, 1, 1] for [5, 4, 1, 1]" in str(
        report
    )


def test_strict_loading_refuses_what_does_not_fit_with_both_shapes(saved):
    with pytest.raises(WeightsError, match=r"2 of another shape: 2.weight \[3, 4, 1, 1\] for \[5, 4, 1, 1\], 2.bias"):
        load_weights(net(classes=5), saved[1], strict=True)


def test_strict_loading_refuses_what_is_missing(saved):
    larger = nn.Sequential(*net(), nn.Conv2D(3, 3, 1))
    with pytest.raises(WeightsError, match="8 of 10 tensors of Sequential matched; 2 missing: 3.weight, 3.bias"):
        load_weights(larger, saved[1], strict=True)


def test_weights_of_which_nothing_fits_are_an_error(saved):
    with pytest.raises(WeightsError, match="0 of 2 tensors of Linear matched.*these weights belong to another model"):
        load_weights(nn.Linear(2, 2), saved[1])


def test_bfloat16_and_float16_weights_become_the_models_float32(tmp_path):
    for dtype in ("bfloat16", "float16"):
        model, other = net(), net()
        state = {name: value.astype(dtype) for name, value in model.state_dict().items()}
        paddle.save(state, str(tmp_path / "low.pdparams"))
        assert load_weights(other, str(tmp_path / "low.pdparams")).matched == 8
        wanted = state["0.weight"].astype("float32").numpy()
        assert other[0].weight.dtype == paddle.float32 and np.array_equal(other[0].weight.numpy(), wanted)


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("used", ["bfloat16", "float16", "float32", "float64"])
def test_weights_of_any_precision_become_the_models(tmp_path, stored, used):
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    paddle.save(
        {name: value.astype(stored) for name, value in model.state_dict().items()}, str(tmp_path / "x.pdparams")
    )
    other.to(dtype=used)
    assert load_weights(other, str(tmp_path / "x.pdparams"), strict=True).matched == 2
    wanted = model.weight.astype(stored).astype(used).astype("float64").numpy()
    assert str(other.weight.dtype) == f"paddle.{used}"
    assert np.array_equal(other.weight.astype("float64").numpy(), wanted)


@pytest.mark.parametrize("array", [np.array([["a", "b"]] * 2), np.array([[None, 1]] * 2, dtype=object)])
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, array):
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps({"weight": array, "bias": np.ones(2, "float32")}, 2))
    with pytest.raises(WeightsError, match="x.pdparams: not a weights file of Paddle .*no array of numbers"):
        load_weights(nn.Linear(2, 2), str(tmp_path / "x.pdparams"))


@pytest.mark.parametrize("value", ["text", None, np.ones([2, 2], "complex64")])
def test_what_holds_no_numbers_counts_as_missing(tmp_path, value):
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps({"weight": value, "bias": np.ones(2, "float32")}, 2))
    model = nn.Linear(2, 2)
    before = model.weight.numpy().copy()
    assert load_weights(model, str(tmp_path / "x.pdparams")).missing == ("weight",)
    assert np.array_equal(model.weight.numpy(), before) and model.bias.numpy().tolist() == [1, 1]


@pytest.mark.parametrize("source", ["nowhere.pdparams", "."])
def test_weights_that_are_not_there_are_named(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="pdparams: no such weights file"):
        load_weights(net(), source)


def component(**params):
    return Component(
        "FCN", {"backbone": Component("HRNet_W18_Small_V1", {}, "s.yml:3: model.backbone"), **params}, "s.yml:2: model"
    )


def test_the_number_of_classes_comes_from_the_data():
    model, report = build_model(component(), 7)
    model.eval()
    assert model(paddle.rand([1, 3, 64, 64]))[0].shape[1] == 7 and report is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 5}, "s.yml:2: model.num_classes: 5, but the data set has 7 classes"),
        ({"num_clases": 7}, "s.yml:2: model.*num_clases.*closest: 'num_classes'"),
        (
            {"backbone": Component("HRNetW18_Small", {}, "s.yml:3: model.backbone")},
            "s.yml:3: .*'HRNetW18_Small'; closest: .*'HRNet_W18_Small_V1'",
        ),
        (
            {"backbone": Component("HRNet_W18", {"aligncorners": 1}, "s.yml:3: model.backbone")},
            "s.yml:3: model.backbone: .*'aligncorners'",
        ),
    ],
)
def test_what_cannot_be_built_is_named_with_what_would_be_right(change, message):
    with pytest.raises(ConfigError, match=message):
        build_model(component(**change), 7)


def test_a_model_of_another_name_is_answered_with_the_closest():
    with pytest.raises(ConfigError, match="'DeepLabV3Plus'; closest: 'DeepLabV3P'"):
        build_model(Component("DeepLabV3Plus", {}, "s.yml:2: model"), 2)


def test_a_teacher_with_weights_of_its_own_does_not_fetch_its_backbones(tmp_path):
    model, _ = build_model(component(), 7)
    paddle.save(model.state_dict(), str(tmp_path / "teacher.pdparams"))
    backbone = Component(
        "HRNet_W18_Small_V1", {"pretrained": "http://127.0.0.1:9/none.pdparams"}, "s.yml:3: model.backbone"
    )
    given = component(backbone=backbone, pretrained=str(tmp_path / "teacher.pdparams"))
    teacher, report = build_model(given, 7, strict=True)
    assert report.matched == report.total and equal(model, teacher)


def test_parameter_names_do_not_depend_on_what_was_built_before():
    first, _ = build_model(component(), 7)
    second, _ = build_model(component(), 7)
    other, _ = build_model(component(), 7, name_prefix="teacher_")
    assert [p.name for p in first.parameters()] == [p.name for p in second.parameters()]
    assert not {p.name for p in first.parameters()} & {p.name for p in other.parameters()}
