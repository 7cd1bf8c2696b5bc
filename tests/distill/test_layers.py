"""Layers in the order of a forward, and the pairs that are suggested."""

import paddle
import pytest

from paddleseg_ext.config import load
from paddleseg_ext.distill.layers import record_layers, stages, suggest_pairs
from paddleseg_ext.models import build_model
from paddleseg_ext.models.catalogue import model_config


@pytest.fixture(scope="module")
def layers(tmp_path_factory):
    import yaml

    known = {}

    def of(name, size=128):
        if name not in known:
            path = tmp_path_factory.mktemp("models") / "m.yml"
            path.write_text(yaml.safe_dump({"model": model_config(name, 5)}))
            model, _ = build_model(load(str(path), model_only=True).model, 5)
            known[name] = record_layers(model, paddle.rand([1, 3, size, size]))
        return known[name]

    return of


def test_shapes_parameters_and_times_add_up(layers):
    records = {r.name: r for r in layers("DeepLabV3P")}
    block, inside = records["backbone.bb_3_1"], records["backbone.bb_3_1.conv0"]
    assert block.shape == (1, 512, 16, 16) and block.stride == 8
    assert block.parameters > inside.parameters > 0
    assert block.seconds >= inside.seconds and inside.depth <= block.depth <= 1
    assert records["backbone.bb_0_0"].depth < block.depth


def test_the_model_is_left_as_it_was():
    model, _ = build_model(load_model("FastSCNN"), 5)
    model.train()
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    record_layers(model, paddle.rand([1, 3, 64, 64]))
    assert model.training and not any(layer._forward_post_hooks for layer in model.sublayers())
    assert all((value.numpy() == before[name]).all() for name, value in model.state_dict().items())


def load_model(name):
    from paddleseg_ext.config import Component

    params = model_config(name, 5)
    return Component(params.pop("type"), params, "test")


def test_stages_are_whole_blocks_by_stride(layers):
    found = {stride: r.name for stride, r in stages(layers("DeepLabV3P")).items()}
    assert found == {4: "backbone.bb_0_1", 8: "backbone.bb_3_1"}


def test_layers_of_equal_stride_are_paired_the_deepest_first(layers):
    pairs = suggest_pairs(layers("FastSCNN"), layers("LRASPP"))
    assert [s.stride for s, _ in pairs] == [32, 16, 8, 4] and all(s.stride == t.stride for s, t in pairs)
    assert pairs[0][0].name == "global_feature_extractor"


def test_the_nearest_strides_are_paired_where_none_are_equal(layers):
    shallow = [r for r in layers("LRASPP") if r.stride == 4]
    deep = [r for r in layers("FastSCNN") if r.stride == 32]
    ((student, teacher),) = suggest_pairs(shallow, deep)
    assert (student.stride, teacher.stride) == (4, 32)
