"""PaddleSeg's YAML files, read as PaddleSeg reads them, with errors that name file, line and key."""

import re
from pathlib import Path

import pytest
import yaml

from paddleseg_ext import config as configuration
from paddleseg_ext.errors import ConfigError

BASE = """
batch_size: 2
iters: 80000
train_dataset:
  type: Cityscapes
  dataset_root: data/cityscapes
  transforms:
    - type: ResizeStepScaling
      min_scale_factor: 0.5
    - type: RandomPaddingCrop
      crop_size: [1024, 512]
    - type: Normalize
  mode: train
val_dataset:
  type: Cityscapes
  dataset_root: data/cityscapes
  transforms: [{type: Normalize}]
  mode: val
optimizer:
  type: sgd
  momentum: 0.9
  weight_decay: 4.0e-5
lr_scheduler:
  type: PolynomialDecay
  learning_rate: 0.01
  end_lr: 0
  power: 0.9
loss:
  types:
    - type: CrossEntropyLoss
  coef: [1]
model:
  type: BiSeNetV2
  pretrained: null
"""


@pytest.fixture
def write(tmp_path):
    (tmp_path / "base.yml").write_text(BASE)

    def file(text, name="s.yml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return file


@pytest.fixture
def load(write):
    return lambda text, **arguments: configuration.load(write(f"_base_: base.yml\n{text}"), **arguments)


def error(load, *arguments, **options):
    with pytest.raises(ConfigError) as caught:
        load(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return re.sub(r"/[\w/.-]+/", "", message)


def test_a_file_goes_over_its_base_key_by_key(load):
    config = load("batch_size: 4\noptimizer: {weight_decay: 1.0e-4}\n")
    assert (config.batch_size, config.iters) == (4, 80000)
    assert config.optimizer.type == "sgd" and config.optimizer.params == {"momentum": 0.9, "weight_decay": 1e-4}


def test_lists_are_replaced_and_not_joined(load):
    config = load("train_dataset: {transforms: [{type: Normalize}]}")
    assert [t.type for t in config.train_dataset.params["transforms"]] == ["Normalize"]


def test_inherited_false_drops_the_bases_mapping(load):
    assert load("optimizer: {_inherited_: False, type: adam}").optimizer.params == {}


@pytest.mark.parametrize("mark", [True, False])
def test_inherited_means_nothing_where_no_base_has_the_mapping(load, mark):
    text = f"model: {{backbone: {{_inherited_: {mark}, type: STDC1}}}}\ntest_config: {{_inherited_: {mark}, aug_eval: True}}"
    config = load(text)
    assert config.model.params["backbone"].params == {} and config.test_config.aug_eval
    assert "_inherited_" not in str(config.resolved)


def test_a_mark_of_a_middle_file_does_not_drop_the_childs_other_bases(write):
    write("_inherited_: False\niters: 7", "middle.yml")
    config = configuration.load(write("_base_: [middle.yml, base.yml]"))
    assert (config.iters, config.batch_size) == (7, 2)


def test_a_base_has_bases_relative_to_itself(write):
    write("_base_: ../base.yml\niters: 7", "sub/middle.yml")
    config = configuration.load(write("_base_: sub/middle.yml\nbatch_size: 3"))
    assert (config.iters, config.batch_size) == (7, 3)


def test_flags_go_over_the_file(load):
    config = load("", batch_size=8, iters=5, learning_rate=0.5, opts=["iters=6", "optimizer.momentum=0.5"])
    assert (config.batch_size, config.iters) == (8, 5)
    assert config.lr_scheduler.params["learning_rate"] == 0.5 and config.optimizer.params["momentum"] == 0.5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-4", 1e-4),
        ("[64, 64]", [64, 64]),
        ("null", None),
        ("True", True),
        ("false", False),
        ("a/b.c", "a/b.c"),
        ("a=b", "a=b"),
        ("{[1]: 2}", "{[1]: 2}"),
    ],
)
def test_opts_are_typed_as_written(load, text, value):
    assert load("", opts=[f"model.pretrained={text}"]).model.params["pretrained"] == value


def test_opts_reach_into_lists(load):
    config = load("", opts=["train_dataset.transforms.1.crop_size=[8, 8]", "loss.coef.0=2"])
    assert config.train_dataset.params["transforms"][1].params["crop_size"] == [8, 8] and config.loss[0].coef == 2


def test_opts_change_one_of_two_sections_that_share_an_anchor(load):
    text = "train_dataset: {transforms: &t [{type: Resize, target_size: [8, 8]}]}\nval_dataset: {transforms: *t}"
    config = load(text, opts=["train_dataset.transforms.0.target_size=[4, 4]"])
    train, val = (data.params["transforms"][0].params for data in (config.train_dataset, config.val_dataset))
    assert (train["target_size"], val["target_size"]) == ([4, 4], [8, 8])


def test_numbers_in_scientific_notation_are_numbers(load):
    assert load("optimizer: {weight_decay: 1e-3}").optimizer.params["weight_decay"] == 1e-3


def test_one_loss_for_several_outputs_and_one_coefficient_for_several_losses(load):
    terms = load("loss: {types: [{type: CrossEntropyLoss}], coef: [1, 0.4]}").loss
    assert [(t.loss.type, t.coef, t.output) for t in terms] == [
        ("CrossEntropyLoss", 1, 0),
        ("CrossEntropyLoss", 0.4, 1),
    ]
    terms = load("loss: {types: [{type: CrossEntropyLoss}, {type: DiceLoss}], coef: [0.5]}").loss
    assert [(t.loss.type, t.coef, t.output) for t in terms] == [("CrossEntropyLoss", 0.5, 0), ("DiceLoss", 0.5, 1)]


def test_a_mixed_loss_holds_its_parts(load):
    text = "{type: MixedLoss, losses: [{type: CrossEntropyLoss}, {type: LovaszSoftmaxLoss}], coef: [0.8, 0.2]}"
    (term,) = load(f"loss: {{types: [{text}], coef: [1]}}").loss
    assert [part.type for part in term.loss.params["losses"]] == ["CrossEntropyLoss", "LovaszSoftmaxLoss"]


def test_what_several_distillation_losses_compare_is_left_open(load):
    terms = load("distill_loss: {types: [{type: KLLoss}, {type: SegChannelwiseLoss}], coef: [3, 1]}").distill_loss
    assert [(t.loss.type, t.coef, t.output) for t in terms] == [("KLLoss", 3, None), ("SegChannelwiseLoss", 1, None)]
    terms = load("distill_loss: {types: [{type: KLLoss}], coef: [3, 1]}").distill_loss
    assert [t.output for t in terms] == [0, 1]


def test_pairs_of_outputs(load):
    (pair,) = load(
        "distill: {outputs: [{student: 1, loss: {type: KLLoss, temperature: 2}, weight: 3}]}"
    ).distill.outputs
    assert (pair.student, pair.teacher, pair.weight, pair.loss.params) == (1, 0, 3, {"temperature": 2})


def test_pairs_of_features(load):
    text = "{student: a.b, teacher: c, loss: {type: HintLoss}, weight: 10, connector: mlp, schedule: {start: 5, decay: linear}}"
    first, second = load(f"distill: {{features: [{text}, {{student: 'x:input', loss: HintLoss}}]}}").distill.features
    assert (first.student, first.teacher, first.loss.type, first.weight) == ("a.b", "c", "HintLoss", 10)
    assert first.connector.type == "mlp" and first.schedule == configuration.Schedule(5, -1, 0, "linear")
    assert (second.student, second.teacher, second.weight) == ("x:input", "x:input", 1.0)
    assert second.connector.type == "auto" and second.schedule is None


def test_a_loss_of_several_features_and_a_teacher_by_name(load):
    text = "{student: [a, b], teacher: {big: [c, d], small: [e, f]}, loss: FSPLoss, connector: {type: conv1x1, norm: false}}"
    teachers = "teachers: [{config: big.yml, name: big, weight: 2}, {config: s.yml, name: small, pretrained: w}]"
    distill = load(f"distill: {{features: [{text}], {teachers}, combine: each}}").distill
    assert [(p.student, p.teacher, p.only) for p in distill.features] == [
        (("a", "b"), ("c", "d"), "big"),
        (("a", "b"), ("e", "f"), "small"),
    ]
    assert distill.features[0].connector.params == {"norm": False} and distill.combine == "each"
    assert [(t.name, t.config, t.weight, t.pretrained) for t in distill.teachers] == [
        ("big", "big.yml", 2, None),
        ("small", "s.yml", 1, "w"),
    ]


def test_the_kind_of_teacher_and_its_engine(load):
    assert load("").distill == load("distill: {}").distill == configuration.Distillation()
    assert load("distill: {teacher: mutual}").distill.kind == "mutual"
    ema = load("distill: {teacher: {type: ema, decay: 0.9}}").distill
    assert (ema.kind, ema.decay) == ("ema", 0.9)
    stored = load("distill: {teacher: {cache: some/folder}}").distill
    assert (stored.kind, stored.cache) == ("model", "some/folder")
    engine = load("distill: {teacher: {engine: openvino, max_error: 0.1}}").distill
    assert (engine.kind, engine.engine, engine.bounds) == ("model", "openvino", {"max_error": 0.1})


def test_a_class_map_here_or_in_a_file_of_its_own(load, tmp_path):
    assert load("distill: {class_map: {0: 0, 2: 1}}").distill.class_map == {0: 0, 2: 1}
    (tmp_path / "map.yml").write_text("3: 1\n4: 1\n")
    assert load(f"distill: {{class_map: {tmp_path}/map.yml}}").distill.class_map == {3: 1, 4: 1}


def test_auto_is_kept_until_the_number_of_classes_is_known(load):
    assert load("distill: auto").distill.auto.endswith(": distill")
    assert load("distill: {teacher: ema}").distill.auto is None


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("outptus: []", "unknown key 'outptus'; closest: 'outputs'"),
        ("teacher: emma", "distill.teacher: one of model, ema, mutual is expected, but got 'emma'; closest: 'ema'"),
        ("teacher: {type: ema, decay: 1.5}", "distill.teacher.decay: 0 to 1 is expected, but got 1.5"),
        ("teacher: {type: ema, cache: x}", "teacher.cache: stored are outputs of a teacher of type 'model', not 'ema'"),
        ("teacher: {engine: auto, cache: x}", "teacher.engine: no engine runs where `cache` has the outputs; leave"),
        ("teacher: {cache: x}, teachers: [{config: t}]", "teacher.cache: of one teacher; leave distill.teachers out"),
        ("teacher: {decay: 0.5}", "distill.teacher.decay: below 1, of an 'ema' teacher, but got 0.5"),
        ("teacher: {engine: tensorrt}", "distill.teacher.engine: one of auto, model, paddle, openvino, onnxruntime"),
        ("teacher: {type: ema, engine: auto}", "an engine runs a teacher of type 'model', not 'ema'"),
        ("teacher: ema, teachers: [{config: t.yml}]", "'ema' has one teacher; leave distill.teachers out"),
        ("teachers: [{cnofig: t.yml}]", "unknown key 'cnofig'; closest: 'config'"),
        ("teachers: [{config: t.yml, weight: 0}]", "teachers[0].weight: a weight above 0 is expected, but got 0"),
        ("teachers: [{config: t.yml, name: a}, {config: u.yml, name: a}]", "'a' is another teacher's name"),
        ("combine: each", "distill.combine: of distill.teachers, which are not there; leave it out"),
        (
            "teacher: ema, class_map: {0: 1}",
            "distill.class_map: an 'ema' teacher has the student's classes; leave it out",
        ),
        ("combine: max", "distill.combine: one of mean, each is expected, but got 'max'"),
        ("class_map: nowhere.yml", "distill.class_map: no such file nowhere.yml"),
        ("class_map: {a: 0}", "distill.class_map: {teacher class: student class} in numbers is expected"),
        ("unlabelled: 3", "distill.unlabelled: a text is expected, but got 3"),
        ("outputs: [{loss: KLLoss, resolution: full}]", "outputs[0].resolution: one of network, label is expected"),
        (
            "features: [{student: [a], loss: FSPLoss}]",
            "features[0].student: the name of a layer is expected, but got ['a']",
        ),
        (
            "features: [{student: a, teacher: {big: b}, loss: HintLoss}], teachers: [{config: t, name: bog}]",
            "features[0].teacher: no teacher 'big'; closest: 'bog'",
        ),
    ],
)
def test_what_cannot_be_in_the_distill_section_is_named(load, section, message):
    with pytest.raises(ConfigError) as caught:
        load(f"distill: {{{section}}}")
    assert message in str(caught.value) and ".yml:" in str(caught.value)


def test_test_config(load):
    text = (
        "{aug_eval: True, scales: [0.5, 1], flip_horizontal: True, is_slide: True, crop_size: [32, 16], stride: [8, 8]}"
    )
    config = load(f"test_config: {text}").test_config
    assert config.scales == (0.5, 1.0) and config.crop_size == (32, 16) and config.flip_horizontal
    assert load("").test_config == configuration.TestConfig()


def test_a_teachers_file_needs_nothing_but_its_model(write):
    assert configuration.load(write("model: {type: ENet}"), model_only=True).model.type == "ENet"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize: 3", "s.yml:2: batchsize: unknown key 'batchsize'; closest: 'batch_size'"),
        ("batch_size: 2.5", "s.yml:2: batch_size: a whole number of at least 1 is expected, but got 2.5"),
        ("iters: 0", "s.yml:2: iters: a whole number of at least 1 is expected, but got 0"),
        ("iters: yes", "s.yml:2: iters: a number is expected, but got True"),
        ("batch_size: .inf", "s.yml:2: batch_size: a number is expected, but got inf"),
        ("iters: .nan", "s.yml:2: iters: a number is expected, but got nan"),
        ("loss: {coef: [.nan]}", "s.yml:2: loss.coef[0]: a number is expected, but got nan"),
        ("loss:\n  types:\n    - {type: 3}", "s.yml:4: loss.types[0].type: a name is expected, but got 3"),
        ("model: {type: null}", "s.yml:2: model.type: a name is expected, but got None"),
        ("model:\n  typ: ENet\n  _inherited_: False", "model: the key 'type' is missing; closest: 'typ'"),
        ("model: [ENet]", "s.yml:2: model: a mapping with a 'type' is expected, but got ['ENet']"),
        ("loss: {types: [{type: DiceLoss}]}", "s.yml:2: loss.coef"),
        ("loss: {typs: []}", "s.yml:2: loss.typs: unknown key 'typs'; closest: 'types'"),
        (
            "loss: {types: [{type: A}, {type: B}], coef: [1, 2, 3]}",
            "loss: 2 types need as many coef, or one, but there are 3",
        ),
        ("loss: {coef: [x]}", "s.yml:2: loss.coef[0]: a number is expected, but got 'x'"),
        ("loss: {coef: []}", "s.yml:2: loss.coef: a list is expected, but got []"),
        ("distill: {output: []}", "s.yml:2: distill.output: unknown key 'output'; closest: 'outputs'"),
        ("distill: 3", "s.yml:2: distill: a mapping is expected, but got 3"),
        ("distill: {outputs: 3}", "s.yml:2: distill.outputs: a list is expected, but got 3"),
        ("distill: {features: {a: b}}", "s.yml:2: distill.features: a list is expected, but got {'a': 'b'}"),
        ("distill: {features: [a]}", "s.yml:2: distill.features[0]: a mapping is expected, but got 'a'"),
        ("distill: {outputs: [{student: 0}]}", "s.yml:2: distill.outputs[0]: the key 'loss' is missing"),
        (
            "distill: {outputs: [{student: -1, loss: KLLoss}]}",
            "outputs[0].student: the number of an output, counted from 0",
        ),
        ("distill: {features: [{loss: HintLoss}]}", "s.yml:2: distill.features[0]: the key 'student' is missing"),
        (
            "distill: {features: [{student: 3, loss: HintLoss}]}",
            "distill.features[0].student: the name of a layer is expected, but got 3",
        ),
        ("distill: {features: [{student: a, loss: K, wieght: 3}]}", "unknown key 'wieght'; closest: 'weight'"),
        (
            "distill: {features: [{student: a, loss: K, schedule: {start: -2}}]}",
            "schedule.start: a number of iterations is expected",
        ),
        (
            "distill: {features: [{student: a, loss: K, schedule: {decay: exp}}]}",
            "'none', 'linear' or 'cosine' is expected, but got 'exp'",
        ),
        (
            "distill: {features: [{student: a, loss: K, schedule: {start: 9, end: 9}}]}",
            "end 9 leaves nothing after start and warmup",
        ),
        ("test_config: {is_slide: True}", "s.yml:2: test_config: is_slide needs crop_size and stride"),
        (
            "test_config: {is_slide: True, crop_size: [32, 32], stride: [32, 33]}",
            "s.yml:2: test_config: a stride of [32, 33] leaves gaps between windows of [32, 32]",
        ),
        ("test_config: {crop_size: 32}", "test_config.crop_size: [width, height] in pixels is expected, but got 32"),
        ("test_config: {scales: [0]}", "test_config.scales: positive numbers are expected, but got [0]"),
        ("test_config: {crop_size: [true, true]}", "[width, height] in pixels is expected, but got [True, True]"),
        ("test_config: {stride: [8]}", "test_config.stride: [width, height] in pixels is expected, but got [8]"),
        ("test_config: {scales: [true]}", "test_config.scales: positive numbers are expected, but got [True]"),
        ("test_config: {scales: .inf}", "test_config.scales: positive numbers are expected, but got [inf]"),
        ("test_config: {is_slide: 'no'}", "s.yml:2: test_config.is_slide: True or False is expected, but got 'no'"),
        ("test_config: {aug_eval: 1}", "s.yml:2: test_config.aug_eval: True or False is expected, but got 1"),
        ("test_config: {flip_horizontal: 'False'}", "flip_horizontal: True or False is expected, but got 'False'"),
        ("test_config: {flip: True}", "s.yml:2: test_config.flip: unknown key 'flip'"),
        ("test_config: {flip_horizontl: True}", "unknown key 'flip_horizontl'; closest: 'flip_horizontal'"),
    ],
)
def test_what_is_wrong_is_named_with_file_line_and_key(load, text, message):
    if message.endswith("loss.coef"):  # the base has one, so that the key is there unless dropped
        text, message = text.replace("{types", "{_inherited_: False, types"), "s.yml:2: loss: the key 'coef' is missing"
    assert message in error(load, text)


def test_a_wrong_value_of_a_base_is_named_in_the_base(write):
    write(BASE.replace("power: 0.9", "power: 0.9\nitres: 3"), "base.yml")
    assert "base.yml:28: itres: unknown key 'itres'; closest: 'iters'" in error(
        configuration.load, write("_base_: base.yml")
    )


@pytest.mark.parametrize("key", ["train_dataset", "optimizer", "lr_scheduler", "loss", "model"])
def test_a_missing_section_is_named(write, key):
    tree = yaml.safe_load(BASE)
    del tree[key]
    assert f"the key '{key}' is missing" in error(configuration.load, write(yaml.safe_dump(tree)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1,\nb: 2", "s.yml:2: not valid YAML"),
        ("a: b: c", "s.yml:1: not valid YAML: mapping values are not allowed here"),
        ("- a", "s.yml: a configuration is a mapping of keys to values, but this is a list"),
        ("", "s.yml: the key 'batch_size' is missing"),
        ("a: 1\nb: \x07", "s.yml:2: not valid YAML: special characters are not allowed (#x0007)"),
        ("a: 1\nb: [2020-13-45]", "s.yml:2: not valid YAML: month must be in 1..12"),
        ("a: 1\nb: !!int x", "s.yml:2: not valid YAML: invalid literal for int() with base 10: 'x'"),
        ("a: 1\n---\nb: 2", "s.yml:2: not valid YAML: but found another document"),
        ("? [a]\n: 1", "s.yml:1: not valid YAML: found unhashable key"),
        ("a: *b", "s.yml:1: not valid YAML: found undefined alias"),
        ("a: &a [*a]", "s.yml: not valid YAML: nested too deeply, or an alias stands within its own anchor"),
        ("a: " + "[" * 20000, "s.yml: not valid YAML: nested too deeply"),
        ("a: 1\n_base_: null", "s.yml:2: _base_: a path or a list of paths is expected, but got None"),
        ("_base_: [3]", "s.yml:1: _base_: a path or a list of paths is expected, but got [3]"),
        ("_base_: broken.yml", "broken.yml:2: not valid YAML"),
        ("_base_: s.yml", "_base_ leads back to this file"),
        ("_base_: bsae.yml", "bsae.yml: no such file; closest: "),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_line(write, text, message):
    write("a: [1,\nb: 2", "broken.yml")
    assert message in error(configuration.load, write(text))


@pytest.mark.parametrize("content", [b"batch_size: \xff\xfe", None])
def test_a_file_that_is_no_text_or_a_folder_is_named(tmp_path, content):
    path = tmp_path / "s.yml"
    path.mkdir() if content is None else path.write_bytes(content)
    assert "s.yml: cannot be read: " in error(configuration.load, str(path))


def test_a_file_that_is_not_there_is_answered_with_its_neighbours(write):
    path = write("", "student.yml")
    assert "studnet.yml: no such file; closest: '" in error(configuration.load, path.replace("student", "studnet"))


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir [ran]", "!!python/name:os.system"])
def test_yaml_that_asks_to_run_code_is_refused_and_not_run(write, tmp_path, monkeypatch, tag):
    monkeypatch.chdir(tmp_path)
    message = error(configuration.load, write(f"model: {tag}"))
    assert "s.yml:1: not valid YAML: could not determine a constructor" in message
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("iters", "--opts takes key=value, such as batch_size=2, but got 'iters'"),
        ("modle.pretrained=x", "--opts: no key 'modle' in s.yml; closest: 'model'"),
        ("iters.x=3", "'iters' in s.yml is a value and has no key 'x'"),
        ("loss.types.4.type=x", "--opts: no key 'loss.types.4' in s.yml"),
        ("loss.coef.4=1", "--opts: no element 'loss.coef.4' in s.yml"),
    ],
)
def test_opts_that_lead_nowhere_are_named(load, item, message):
    assert message in error(load, "", opts=[item])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("loss.coef=['x']", "--opts: loss.coef[0]: a number is expected, but got 'x'"),
        ("loss={'types': [3], 'coef': [1]}", "--opts: loss.types[0]: a mapping with a 'type' is expected, but got 3"),
        ("batch_size=", "--opts: batch_size: a number is expected, but got ''"),
    ],
)
def test_what_opts_made_wrong_is_not_blamed_on_the_file(load, item, message):
    assert error(load, "", opts=[item]).startswith(message)
