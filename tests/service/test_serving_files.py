"""What a folder says of its model is read safely, must make sense, and must fit the model."""

import dataclasses

import pytest
import yaml

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.service.prototxt import read_prototxt
from paddleseg_ext.service.serving_files import read_folder, write_yaml
from paddleseg_ext.service.spec import TensorSpec
from tests.service.servers import SPEC

PROTOTXT = """feed_var {
  name: "x"
  alias_name: "img"
  is_lod_tensor: false
  feed_type: 1
  shape: 3
}
fetch_var {
  name: "fc_0.tmp_2"
  alias_name: "prediction"
  is_lod_tensor: false
  fetch_type: 1
  shape: 5
}
"""


@pytest.fixture
def folder(tmp_path):
    for name in ("model.pdmodel", "model.pdiparams"):
        (tmp_path / name).touch()
    return tmp_path


def named(spec):
    """As files say it: every tensor without an alias has its name for one."""
    tensors = [tuple(dataclasses.replace(t, alias=t.alias or t.name) for t in ts) for ts in (spec.inputs, spec.outputs)]
    return dataclasses.replace(spec, inputs=tensors[0], outputs=tensors[1])


def test_serving_yml_says_all_and_comes_back(folder):
    write_yaml(folder, SPEC, "model.pdmodel", "model.pdiparams", {"transforms": [{"type": "Normalize"}]})
    found = read_folder(folder)
    assert (found.model, found.params) == (folder / "model.pdmodel", folder / "model.pdiparams")
    assert found.preprocessing == {"transforms": [{"type": "Normalize"}]}
    assert found.joined(dataclasses.replace(SPEC, name="other", version="5")) == named(SPEC)


def test_a_folder_that_says_nothing_takes_the_models_word(folder):
    assert read_folder(folder).joined(SPEC) == named(SPEC)


def test_files_of_paddle_serving_give_aliases_choose_outputs_and_leave_the_shapes_to_the_model(folder):
    (folder / "serving_server_conf.prototxt").write_text(PROTOTXT)
    assert read_folder(folder).joined(SPEC) == dataclasses.replace(SPEC, outputs=SPEC.outputs[:1])


def test_the_older_names_of_files_will_do(tmp_path):
    for name in ("__model__", "__params__"):
        (tmp_path / name).touch()
    assert read_folder(tmp_path).model == tmp_path / "__model__"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"x"', '"z"'), "the input 'x' of model.pdmodel is missing"),
        (('"fc_0.tmp_2"', '"fc_0.tmp_1"'), "model.pdmodel has no output 'fc_0.tmp_1'; closest: 'fc_0.tmp_2'"),
        (("shape: 5", "shape: 4"), "output 'fc_0.tmp_2' is FP32 [-1, 5, -1, -1] in model.pdmodel, but FP32 [4] here"),
        (("feed_type: 1", "feed_type: 7"), "input 'x' is FP32 [-1, 3, -1, -1] in model.pdmodel, but UINT8 [3] here"),
    ],
)
def test_what_contradicts_the_model_is_said(folder, change, message):
    (folder / "serving_client_conf.prototxt").write_text(PROTOTXT.replace(*change))
    with pytest.raises(ConfigError) as caught:
        read_folder(folder).joined(SPEC)
    assert str(caught.value) == f"{folder}/serving_client_conf.prototxt: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PROTOTXT.replace('"img"', "img"), ", line 3: "),
        (PROTOTXT.replace("shape: 3", "shape: three"), ", line 6: "),
        (PROTOTXT + "}", ", line 15: "),
        (PROTOTXT.replace("feed_type: 1", "feed_type: 20"), ": feed_var[0].feed_type: one of 0 INT64, 1 FP32, "),
        (PROTOTXT.replace('name: "x"', ""), ": feed_var[0]: the name is missing"),
        ("", ": there is no feed_var"),
        (PROTOTXT.partition("fetch_var")[0], ": there is no fetch_var"),
        ("a {" * 100_000, ": blocks within blocks without end"),
        ("#" * (1 << 21), ": larger than 1048576 bytes"),
    ],
)
def test_a_malformed_file_of_paddle_serving_is_said_with_its_line(tmp_path, text, message):
    path = tmp_path / "c.prototxt"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_prototxt(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_what_paddle_serving_may_write_is_read(tmp_path):
    path = tmp_path / "c.prototxt"
    path.write_text(
        '# a comment\nfeed_var: <name: "x" feed_type: 0 shape: [3, 4] more: 5>\nfetch_var { name: "y"; fetch_type: 9 }'
    )
    assert read_prototxt(path) == ((TensorSpec("x", "INT64", (3, 4), "x"),), (TensorSpec("y", "BOOL", (), "y"),))


def changed(**values):
    tensor = {"name": "x", "alias": "img", "datatype": "FP32", "shape": [-1, 3]}
    content = {"name": "toy", "version": "1", "model": "model.pdmodel", "params": "model.pdiparams"}
    return {**content, "inputs": [tensor], "outputs": [{**tensor, "name": "y", "alias": "z"}], **values}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "line 1: not YAML"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ([], "the file: a mapping with name, version, model"),
        (changed(input=[]), "the file: no key 'input'; closest: 'inputs'"),
        (
            changed(model="../model.pdmodel"),
            "model: the name of a file beside it is expected, but got '../model.pdmodel'",
        ),
        (changed(params="other"), "params: the name of a file beside it is expected, but got 'other'"),
        (changed(model=None), "model: the name of a file beside it is expected, but got None"),
        (changed(version=1), "version: a text is expected, but got 1"),
        (changed(outputs=[]), "outputs: a list of tensors is expected, but got []"),
        (changed(outputs=[{"name": "y"}]), "outputs[0].datatype: one of FP32, FP16"),
        (
            changed(outputs=[{"name": "y", "datatype": "FP32", "shape": [-2]}]),
            "outputs[0].shape: sizes, -1 for any, are",
        ),
        (changed(outputs=[{"name": "y", "datatype": "FP32", "shape": 3}]), "outputs[0].shape: sizes, -1 for any, are"),
        (changed(outputs=2 * changed()["outputs"]), "outputs: 'y' names two tensors"),
        (changed(preprocessing=[1]), "preprocessing: a mapping is expected, but got [1]"),
    ],
)
def test_a_serving_yml_that_makes_no_sense_is_said(folder, content, message):
    (folder / "serving.yml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    with pytest.raises(ConfigError) as caught:
        read_folder(folder)
    assert str(caught.value).startswith(f"{folder}/serving.yml") and message in str(caught.value)
