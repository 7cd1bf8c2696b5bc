"""train.py and distill_train.py from the command line to the files that they leave."""

import json
import re

import numpy as np
import paddle
import pytest
import yaml

from tests.cli.conftest import DISTILL, ROOT, TRAIN


def test_train_leaves_checkpoints_best_model_metrics_pictures_and_curves(world):
    text = world.run(TRAIN, do_eval=True, use_vdl=True, keep_checkpoint_max=1)
    out = world.folder / "out"
    assert "[TRAIN] epoch: 2, iter: 8/8" in text and "[EVAL] iter: 8" in text
    assert sorted(p.name for p in out.glob("iter_*")) == ["iter_8"]
    assert (out / "pictures/iter_4.png").stat().st_size > 1000 and list(out.glob("vdlrecords.*.log"))
    assert set(paddle.load(str(out / "best_model/model.pdparams"))) == {
        *("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"),
    }
    train, evaluations = world.records("train"), world.records("eval")
    assert [r["iter"] for r in train] == list(range(1, 9)) and [r["iter"] for r in evaluations] == [4, 8]
    assert train[-1]["CrossEntropyLoss"] < train[0]["CrossEntropyLoss"]
    assert train[0]["lr"] == 0.05 and {"ips", "batch_cost", "reader_cost"} <= set(train[0])
    assert len(evaluations[0]["class_iou"]) == 3 and {"mIoU", "accuracy", "kappa", "dice"} <= set(evaluations[0])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(world):
    for save_dir, seed in (("a", 1), ("b", 1), ("c", 2)):
        world.run(TRAIN, save_dir=save_dir, seed=seed, iters=3)
    a, b, c = (world.weights(f"{d}/iter_3/model.pdparams") for d in "abc")
    assert all(np.array_equal(a[k], b[k]) for k in a) and not np.array_equal(a["conv1.weight"], c["conv1.weight"])


def test_distillation_shows_the_teacher_each_pair_and_each_loss(world):
    world.run(TRAIN, config="teacher_run.yml", **teacher_run(world))
    text = world.run(DISTILL, "--teacher_opts", "model.pretrained=teacher/best_model", do_eval=True)
    assert "weights teacher/best_model: 8 of 8 tensors of ToyNet matched" in text
    assert "distil distill/KLLoss: output 0 [2, 3, 16, 20] <- teacher output 0 [2, 3, 16, 20], weight 3" in text
    assert "[TEACHER] mIoU 0." in text and text.index("[TEACHER]") < text.index("[TRAIN]")
    assert "near chance" not in text and "no weights" not in text
    record = world.records("train")[0]
    assert record["loss"] == record["CrossEntropyLoss"] + record["distill/KLLoss"] and record["distill/KLLoss"] > 0
    student = world.weights("out/iter_8/model.pdparams")
    assert set(student) == {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"}
    assert student["conv1.weight"].shape[0] == 8


def teacher_run(world):
    """Train the teacher a little; returns flags and writes teacher_run.yml."""
    world.student, student = {**world.student, "model": world.teacher["model"]}, world.student
    (world.folder / "teacher_run.yml").write_text((world.folder / world.changed(iters=60)).read_text())
    world.student = student
    return {"save_dir": "teacher", "do_eval": True, "save_interval": 60, "log_iters": 60}


def test_a_teacher_without_weights_is_warned_of_twice(world):
    text = world.run(DISTILL, do_eval=True, iters=1, teacher_eval_images=2, seed=4)
    assert "the teacher has no weights: teacher.yml has no model.pretrained" in text
    assert "[TEACHER]" in text and "(2 images" in text
    assert "near chance" in text


def test_outputs_and_features_are_distilled_at_once_as_the_tutorial_writes_it(world):
    world.teacher["model"].update(width=8)
    world.write(
        distill__py="""
from paddleslim.dygraph.dist import AdaptorBase

def prepare_distill_adaptor():
    class StudentAdaptor(AdaptorBase):
        def mapping_layers(self):
            mapping_layers = {}
            mapping_layers['hidden_0'] = 'conv1'
            if self.add_tensor:
                mapping_layers["hidden_1"] = self.model.flat
            return mapping_layers

    class TeatherAdaptor(AdaptorBase):
        def mapping_layers(self):
            mapping_layers = {}
            mapping_layers['hidden_0'] = 'conv1'
            if self.add_tensor:
                mapping_layers["hidden_1"] = self.model.flat
            return mapping_layers

    return StudentAdaptor, TeatherAdaptor

def prepare_distill_config():
    config = {'feature_type': 'hidden', 'loss_function': 'SegChannelwiseLoss', 'weight': 1.0}
    return [{**config, 's_feature_idx': i, 't_feature_idx': i} for i in (0, 1)]
"""
    )
    command = {"teacher_config": None, "teather_config": "teacher.yml", "distill_config": "distill.py"}
    text = world.run(DISTILL, iters=2, **command)
    assert "feature hidden_0 [2, 8, 16, 20] <- teacher feature hidden_0 [2, 8, 16, 20], weight 1" in text
    assert "feature hidden_1 [2, 8, 320] <- teacher feature hidden_1 [2, 8, 320], weight 1" in text
    losses = {
        "CrossEntropyLoss",
        "distill/KLLoss",
        "distill/SegChannelwiseLoss_hidden_0",
        "distill/SegChannelwiseLoss_hidden_1",
    }
    assert all(0 < world.records("train")[-1][name] < 100 for name in losses)


def test_a_student_with_more_outputs_than_its_teacher_distils_the_first(world):
    config = world.changed(model__outputs=3, loss__coef=[1, 0.4, 0.4])
    text = world.run(DISTILL, student_config=config, iters=1)
    assert "distil distill/KLLoss: output 0" in text and "output 1" not in text
    names = {"CrossEntropyLoss_0", "CrossEntropyLoss_1", "CrossEntropyLoss_2", "distill/KLLoss"}
    assert names <= set(world.records("train")[0])


def test_several_losses_on_one_output_and_pairs_of_other_outputs(world):
    world.student["distill_loss"] = {
        "types": [{"type": "KLLoss"}, {"type": "SegChannelwiseLoss"}, {"type": "KLLoss", "temperature": 4}],
        "coef": [3, 1, 1],
    }
    world.write()
    world.run(DISTILL, iters=1)
    names = {"distill/KLLoss_0", "distill/SegChannelwiseLoss", "distill/KLLoss_1"}
    assert names <= set(world.records("train")[0])
    pairs = [{"student": 1, "teacher": 0, "loss": {"type": "KLLoss"}, "weight": 2}]
    config = world.changed(model__outputs=2, loss__coef=[1, 0.4], distill={"outputs": pairs})
    assert "output 1 [2, 3, 16, 20] <- teacher output 0" in world.run(DISTILL, student_config=config, iters=1)


def test_bf16_training_runs_and_saves_float32_weights(world):
    world.run(DISTILL, precision="bf16", do_eval=True, iters=4)
    assert {str(v.dtype) for v in world.weights("out/iter_4/model.pdparams").values()} == {"float32"}
    assert all(np.isfinite(r["loss"]) for r in world.records("train"))


def test_test_config_reaches_the_evaluation(world):
    plain = world.changed()
    world.run(TRAIN, config=plain, do_eval=True, iters=4)
    options = {"is_slide": True, "crop_size": [16, 16], "stride": [16, 16]}
    world.run(TRAIN, config=world.changed(test_config=options), do_eval=True, iters=4, save_dir="slide")
    assert world.records("eval")[0]["mIoU"] != world.records("eval", "slide")[0]["mIoU"]
    assert world.records("train")[3]["loss"] == world.records("train", "slide")[3]["loss"]


def test_features_of_any_shape_are_distilled_by_two_names_in_yaml(world):
    world.student["distill"] = {
        "features": [
            {"student": "conv1", "loss": {"type": "SegChannelwiseLoss", "temperature": 4}, "weight": 5},
            {
                **{"student": "conv2:input", "teacher": "norm", "loss": {"type": "NormalizedFeatureLoss"}},
                **{"connector": "mlp", "schedule": {"start": 4, "end": 8, "decay": "linear"}},
            },
        ]
    }
    world.write()
    text = world.run(DISTILL, save_interval=8)
    assert (
        "feature conv1 [2, 8, 16, 20] <- teacher feature conv1 [2, 16, 16, 20], connector: conv1x1 8 to 16 channels, weight 5"
        in text
    )
    assert "connector: mlp 8 to 16 channels, weight 1, iterations 4 to 8, linear decay" in text
    losses = [r["distill/NormalizedFeatureLoss_conv2:input"] for r in world.records("train")]
    assert losses[:4] == [0] * 4 and all(value > 0 for value in losses[4:])
    assert not [name for name in world.weights("out/iter_8/model.pdparams") if "projection" in name]
    assert len(world.weights("out/iter_8/extras.pdparams")) == 5 + 4


def test_resuming_without_the_connectors_that_are_needed_is_an_error(world):
    world.run(DISTILL, iters=4)
    world.student["distill"] = {"features": [{"student": "conv1", "loss": {"type": "HintLoss"}}]}
    world.write()
    text = world.run(DISTILL, code=2, resume_model="out/iter_4")
    assert (
        "error: --resume_model out/iter_4: it has no extras.pdparams, but what distils now has weights or a state of its own"
        in text
    )


def test_each_start_of_a_run_is_written_down(world):
    world.run(TRAIN, iters=4)
    world.run(DISTILL, iters=4, save_dir="distilled")
    world.run(DISTILL, iters=8, save_dir="distilled", resume_model="auto", seed=None)
    (alone,) = map(json.loads, (world.folder / "out/provenance.jsonl").read_text().splitlines())
    first, second = map(json.loads, (world.folder / "distilled/provenance.jsonl").read_text().splitlines())
    assert alone["seed"] == first["seed"] == second["seed"] == 5 and alone["git"] is None
    assert alone["versions"]["paddle"] == paddle.__version__ and "--iters" in alone["command"]
    assert alone["folder"] == str(world.folder) and alone["config"]["path"] == "student.yml"
    assert first["config"]["resolved"]["distill_loss"] and second["config"]["resolved"]["iters"] == 8
    assert alone["teachers"] == [] and [t["path"] for t in first["teachers"]] == ["teacher.yml"]
    assert first["teachers"][0]["resolved"]["model"]["width"] == 16
    assert first["resumed_from"] is None and second["resumed_from"] == "distilled/iter_4"


def test_how_much_each_loss_weighs_is_shown_and_a_useless_one_warned_of(world):
    world.student["distill_loss"]["coef"] = [1.0e-6]
    world.write()
    text = world.run(DISTILL, iters=4)
    shown = next(line for line in text.splitlines() if "[BALANCE]" in line)
    assert "CrossEntropyLoss 100.0 % of the loss, 100.0 % of the gradient; distill/KLLoss 0.0 % of the loss" in shown
    assert "[WARNING] distill/KLLoss has 0.000 % of the gradient and teaches next to nothing; raise its weight" in text


def test_a_loss_a_connector_and_a_teacher_written_as_the_docs_show_it(world):
    shipped = (ROOT / "slim/distill/distill_config.py").read_text()
    pages = [(ROOT / f"docs/{name}.md").read_text() for name in ("losses", "extending")]
    loss, connector, teacher = (code for page in pages for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    world.write(mine__py="\n\n".join((shipped, loss, connector, teacher)))
    (asked,) = re.findall(r"```yaml\n(.*?)```", pages[1], re.DOTALL)
    world.student.update(yaml.safe_load(asked))
    world.student["distill"]["features"].append({"student": "conv2", "loss": "CosineLoss"})
    world.write()
    text = world.run(DISTILL, distill_config="mine.py", iters=2, teacher_engine="model")
    assert "gated 8 to 16 channels" in text
    first = world.records("train")[0]
    assert first["distill/HintLoss_conv1"] > 0 and first["distill/CosineLoss_conv2"] > 0
    # The mirrored teacher is another than the plain one, from the first iteration on.
    world.write(plain__py="\n\n".join((shipped, loss, connector)))
    world.run(DISTILL, distill_config="plain.py", iters=1, teacher_engine="model", save_dir="plain")
    plain = world.records("train", "plain")[0]
    assert plain["distill/HintLoss_conv1"] == pytest.approx(first["distill/HintLoss_conv1"], rel=1e-5)
    assert plain["distill/KLLoss"] != pytest.approx(first["distill/KLLoss"], rel=1e-4)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def prepare_teacher(teacher): return None", "prepare_teacher returns a function of a Batch that gives TeacherOutputs"),
        ("prepare_teacher = 3", "prepare_teacher is a function of a teacher, but got 3"),
    ],
)  # fmt: skip
def test_a_teacher_of_ones_own_that_is_none_is_an_error(world, code, message):
    world.write(mine__py=(ROOT / "slim/distill/distill_config.py").read_text() + "\n" + code)
    assert f"error: mine.py: {message}" in world.run(DISTILL, distill_config="mine.py", code=2)
