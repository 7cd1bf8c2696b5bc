"""Teachers of every kind, from a student's file to a finished run."""

import json

import numpy as np
import pytest
import yaml
from conftest import DISTILL, ROOT, same_bits

KL = {"loss": {"type": "KLLoss"}, "weight": 3}


def use(world, **distill):
    world.student.pop("distill_loss", None)
    world.student["distill"] = distill
    world.write()


def test_a_student_learns_from_its_own_past_and_resumes_to_the_same_bits(world):
    world.student["model"]["dropout"] = 0.0
    use(world, teacher={"type": "ema", "decay": 0.9}, outputs=[KL], features=[{"student": "conv1", "loss": "HintLoss"}])
    text = world.run(DISTILL, teacher_config=None)
    assert "output 0 [2, 3, 16, 20] <- teacher output 0" in text and "[TEACHER]" not in text
    losses = [r["distill/KLLoss"] for r in world.records("train")]
    assert losses[0] < 1e-6 < max(losses)  # at first the teacher is the student
    world.run(DISTILL, teacher_config=None, iters=8, save_dir="cut", save_interval=4)
    (world.folder / "cut/iter_8").rename(world.folder / "gone")  # as if it had been killed before
    assert "resumed from cut/iter_4" in world.run(
        DISTILL, teacher_config=None, save_dir="cut", resume_model="auto", seed=None
    )
    for name in ("model.pdparams", "extras.pdparams", "model.pdopt"):
        assert same_bits(*(world.weights(f"{d}/iter_8/{name}") for d in ("out", "cut")))
    kept = world.weights("out/iter_8/extras.pdparams")
    student = world.weights("out/iter_8/model.pdparams")
    past = next(v for k, v in kept.items() if k.endswith("conv1.weight"))
    assert past.shape == student["conv1.weight"].shape and not np.array_equal(past, student["conv1.weight"])


def test_in_mutual_learning_both_learn_and_both_are_kept(world):
    world.teacher.update(
        {k: world.student[k] for k in ("batch_size", "iters", "train_dataset", "optimizer", "lr_scheduler", "loss")}
    )
    use(world, teacher="mutual", outputs=[{"loss": {"type": "DMLLoss"}}])
    text = world.run(DISTILL)
    record = world.records("train")[-1]
    assert {"CrossEntropyLoss", "teacher/CrossEntropyLoss", "distill/DMLLoss"} <= set(record)
    assert "the teacher, which learnt too, is in out/peer/model.pdparams" in text
    peer, extras = world.weights("out/peer/model.pdparams"), world.weights("out/iter_8/extras.pdparams")
    earlier = world.weights("out/iter_4/extras.pdparams")
    assert peer["conv1.weight"].shape[0] == 16
    key = next(k for k in extras if k.endswith("conv1.weight"))
    assert np.array_equal(extras[key], peer["conv1.weight"]) and not np.array_equal(earlier[key], extras[key])


def two_teachers(world, **other):
    (world.folder / "small.yml").write_text(
        yaml.safe_dump({"model": {"type": "ToyNet", "num_classes": 3, "width": 4, **other}})
    )
    return [{"config": "teacher.yml", "name": "big", "weight": 3}, {"config": "small.yml", "name": "small"}]


def test_several_teachers_are_averaged_and_each_gives_its_features(world):
    features = [{"student": "conv1", "teacher": {"big": "norm", "small": "conv1"}, "loss": "AttentionTransferLoss"}]
    use(world, teachers=two_teachers(world), outputs=[KL], features=features)
    text = world.run(DISTILL, teacher_config=None, iters=2)
    assert (
        "teacher feature norm [2, 16, 16, 20], weight 1" in text
        and "teacher feature conv1 [2, 4, 16, 20], weight 1" in text
    )
    record = world.records("train")[0]
    names = {f"distill/AttentionTransferLoss_conv1@{name}" for name in ("big", "small")}
    assert names | {"distill/KLLoss"} <= set(record) and all(record[n] > 0 for n in names)
    start = json.loads((world.folder / "out/provenance.jsonl").read_text())
    assert start["config"]["path"] == "student.yml"
    assert {t["name"]: t["path"] for t in start["teachers"]} == {"big": "teacher.yml", "small": "small.yml"}


def test_each_of_several_teachers_may_teach_by_itself_with_its_share_and_its_classes(world):
    teachers = two_teachers(world, num_classes=4)
    teachers[1]["class_map"] = {0: 0, 1: 2, 3: 2}
    use(world, teachers=teachers, outputs=[KL], combine="each")
    text = world.run(DISTILL, teacher_config=None, iters=2)
    assert "teacher output 0 [2, 4, 16, 20], 2 classes shared, weight 3" in text
    assert {"distill/KLLoss@big", "distill/KLLoss@small"} <= set(world.records("train")[0])
    teachers.pop(0)
    use(world, teachers=[*teachers, {"config": "teacher.yml"}], outputs=[KL])
    text = world.run(DISTILL, teacher_config=None, iters=2, code=2)
    assert "distill.teachers: teachers of different classes need `combine: each`" in text


def test_teachers_that_number_the_same_classes_in_other_ways_are_not_averaged(world):
    teachers = two_teachers(world)
    for teacher, numbers in zip(teachers, ((0, 1, 2), (2, 0, 1)), strict=True):
        teacher["class_map"] = dict(enumerate(numbers))
    use(world, teachers=teachers, outputs=[KL])
    text = world.run(DISTILL, teacher_config=None, iters=2, code=2)
    assert "distill.teachers: teachers of different classes need `combine: each`" in text


def test_a_teacher_of_other_classes_teaches_those_that_are_shared(world):
    world.teacher["model"]["num_classes"] = 5
    use(world, outputs=[KL])
    text = world.run(DISTILL, code=2)
    assert "model.num_classes: the teacher has 5 classes, the student 3; distill.class_map in" in text
    use(world, outputs=[KL, {"loss": {"type": "DKDLoss"}}], class_map={0: 0, 4: 1})
    assert "2 classes shared" in world.run(DISTILL, do_eval=True, iters=2)
    use(world, outputs=[KL], class_map={0: 0, 5: 1})
    assert "class_map: the teacher has no class 5; it has 0 to 4" in world.run(DISTILL, code=2)


def test_images_without_labels_are_learnt_from_the_teacher_alone(world):
    (world.folder / "more.txt").write_text("".join(f"val_{i}.png\n" for i in range(3)))
    use(world, outputs=[KL], unlabelled="more.txt")
    assert "11 training images" in world.run(DISTILL, batch_size=1, iters=11, log_iters=1)
    records = world.records("train")
    assert [r["CrossEntropyLoss"] for r in records].count(0) == 3 and all(r["distill/KLLoss"] > 0 for r in records)


def test_two_layers_a_side_for_a_loss_of_two(world):
    pair = {"student": ["conv1", "conv2"], "teacher": ["norm", "conv2"], "loss": {"type": "FSPLoss"}}
    use(world, features=[pair])
    text = world.run(DISTILL, iters=2)
    assert "feature conv1 [2, 8, 16, 20] and conv2 [2, 3, 16, 20] <- teacher feature norm" in text
    assert "connector: conv1x1 8 to 16 channels" in text
    assert all(r["distill/FSPLoss_conv1+conv2"] > 0 for r in world.records("train"))
    use(world, features=[{**pair, "loss": {"type": "HintLoss"}}])
    assert "HintLoss compares 1 feature of each side, but got 2" in world.run(DISTILL, code=2)
    use(world, features=[{"student": "conv1", "loss": {"type": "FSPLoss"}}])
    assert "FSPLoss compares 2 features of each side, but got 1" in world.run(DISTILL, code=2)


def test_a_connector_of_ones_own_is_registered_in_the_users_file(world):
    shipped = (ROOT / "slim/distill/distill_config.py").read_text()
    mine = """
from paddle import nn
from paddleseg_ext.distill.connector import register_projection

@register_projection
def depthwise(channels_in, channels_out, size=3):
    return nn.Sequential(nn.Conv2D(channels_in, channels_in, size, padding=size // 2, groups=channels_in), nn.Conv2D(channels_in, channels_out, 1))
"""
    pair = {"student": "conv1", "loss": "HintLoss", "connector": {"type": "depthwise", "size": 5}}
    use(world, features=[pair])
    world.write(mine__py=shipped + mine)
    text = world.run(DISTILL, distill_config="mine.py", iters=1)
    assert "connector: depthwise 8 to 16 channels" in text
    use(world, features=[{**pair, "connector": {"type": "depthwise", "sise": 5}}])
    assert "depthwise takes no argument 'sise'; closest: 'size'" in world.run(DISTILL, distill_config="mine.py", code=2)
    assert "no connector 'depthwise'; known: 'auto'" in world.run(DISTILL, code=2)


def test_the_documented_loss_of_ones_own_distils(world):
    page = (ROOT / "docs/losses.md").read_text()
    code = page[page.index("```python\n") + 10 :].split("```")[0]
    use(world, features=[{"student": "conv1", "loss": "CosineLoss", "weight": 2}])
    world.write(mine__py=code + (ROOT / "slim/distill/distill_config.py").read_text())
    world.run(DISTILL, distill_config="mine.py", iters=2)
    assert all(0 < r["distill/CosineLoss_conv1"] < 4 for r in world.records("train"))


def test_auto_distils_by_a_usual_recipe(world):
    world.student["distill"] = "auto"
    world.write()
    world.run(DISTILL, iters=2)
    assert any(name.startswith("distill/") for name in world.records("train")[0])


@pytest.mark.parametrize(
    ("distill", "flags", "message"),
    [
        ({"teacher": "ema"}, {}, "'ema' makes its own teacher; leave out --teacher_config teacher.yml"),
        (
            {"teachers": [{"config": "teacher.yml"}]},
            {},
            "has the teachers' files; leave out --teacher_config teacher.yml",
        ),
        (
            {"teacher": "ema"},
            {"teacher_config": None, "teacher_engine": "paddle"},
            "runs a teacher of type 'model', not 'ema'",
        ),
        ({"teacher": "mutual"}, {"teacher_engine": "paddle"}, "runs a teacher of type 'model', not 'mutual'"),
        ({"teacher": "ema"}, {"teacher_config": None, "teacher_opts": "a=1"}, "--teacher_opts changes values of a"),
        ({"outputs": [KL]}, {"teacher_config": None}, "--teacher_config is missing (or distill.teachers, or"),
        ({"teachers": [{"config": "none.yml"}]}, {"teacher_config": None}, "none.yml: no such file"),
        ({"teacher": "mutual", "outputs": [KL]}, {}, "teacher.yml: the key 'batch_size' is missing"),
    ],
)
def test_teachers_that_cannot_be_are_named(world, distill, flags, message):
    use(world, **distill)
    assert message in world.run(DISTILL, code=2, **flags)


@pytest.fixture
def engines(world, monkeypatch):
    """A world with a real model as teacher, and an empty cache."""
    model = {
        "type": "LPSNet",
        "depths": [1] * 5,
        "channels": [4, 8, 8, 8, 8],
        "scale_ratios": [1.0, 0.5],
        "num_classes": 3,
    }
    world.teacher = {"model": model}
    monkeypatch.setenv("XDG_CACHE_HOME", str(world.folder / "cache"))
    use(world, outputs=[KL], features=[{"student": "conv1", "teacher": "head:input", "loss": "HintLoss"}])
    world.student["val_dataset"]["transforms"] = [{"type": "Normalize"}]
    return world


def test_an_engine_stands_for_the_teacher_and_a_resumed_run_keeps_it(engines):
    text = engines.run(DISTILL, teacher_engine="paddle", iters=4)
    assert "[ENGINE] teacher: layer: " in text and "paddle fp32: " in text and "same class 100.00 %" in text
    used = json.loads((engines.folder / "out/engines.json").read_text())["engines"]["teacher"]
    engines.run(DISTILL, teacher_engine="model", iters=4, save_dir="layer")
    pairs = zip(engines.records("train"), engines.records("train", "layer"), strict=True)
    for engine, layer in pairs:
        assert engine["distill/KLLoss"] == pytest.approx(layer["distill/KLLoss"], rel=0.05)
    text = engines.run(DISTILL, resume_model="auto", seed=None)
    assert used in ("layer", "paddle bf16", "paddle fp32")
    assert used == "layer" or f"{used} is used" in text


def test_where_no_engine_will_do_the_layer_teaches(engines):
    engines.teacher = {"model": {"type": "ToyNet", "num_classes": 3}}  # of the tests, which no other process knows
    use(engines, outputs=[KL])
    text = engines.run(DISTILL, teacher_engine="paddle", iters=2)
    assert "paddle: " in text and "no model 'ToyNet'" in text and "layer is used" in text


def test_a_short_run_is_not_worth_an_engine(engines):
    assert "[ENGINE]" not in engines.run(DISTILL, iters=2)
    assert not list((engines.folder / "cache").glob("paddleseg_ext/engines/*"))
