"""What a user can get wrong ends in one clear line and exit code 2, before any training.

Run in this process, with the launchers' own code, to keep dozens of cases quick; a few go through a real process.
"""

import contextlib
import io
import runpy
import sys

import cv2
import numpy as np
import pytest

from tests.cli.conftest import DISTILL, ROOT, TRAIN


@pytest.fixture
def fails(world, monkeypatch, capfd):
    """Runs a command that must fail; returns its one line."""
    monkeypatch.syspath_prepend(str(ROOT / "tests/cli"))
    import launch  # noqa: F401  registers ToyNet

    def run(launcher, *args, **flags):
        monkeypatch.chdir(world.folder)
        monkeypatch.setenv("XDG_CACHE_HOME", str(world.folder / "cache"))
        monkeypatch.setattr(sys, "argv", world.command(launcher, *args, **flags))
        with pytest.raises(SystemExit) as ended, contextlib.redirect_stdout(io.StringIO()) as out:
            runpy.run_path(launcher, run_name="__main__")
        error = capfd.readouterr().err
        assert ended.value.code == 2, (error, out.getvalue())
        lines = [line for line in error.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and "Traceback" not in error and "[TRAIN]" not in out.getvalue()
        return lines[0]

    return run


def test_missing_file_names_its_neighbours(fails):
    assert "studnet.yml: no such file; closest: " in fails(TRAIN, config="studnet.yml")


def test_malformed_yaml_names_the_line(world, fails):
    world.write(broken__yml="batch_size: 2\nmodel: {type: ToyNet\niters: 3\n")
    assert "broken.yml:3: not valid YAML" in fails(TRAIN, config="broken.yml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batchsize": 3}, ": batchsize: unknown key 'batchsize'; closest: 'batch_size'"),
        ({"batch_size": 0}, "batch_size: a whole number of at least 1 is expected, but got 0"),
        ({"model__type": "ToyNets"}, "model: no model 'ToyNets'; closest: 'ToyNet'"),
        ({"model__widht": 3}, "model: ToyNet takes no argument 'widht'; closest: 'width'"),
        ({"loss__types": [{"type": "CrossEntropyLos"}]}, "loss.types[0]: no loss 'CrossEntropyLos'; closest: 'CrossEntropyLoss'"),
        ({"optimizer__type": "SDG"}, "optimizer: no optimizer 'SDG'; closest: 'SGD'"),
        ({"lr_scheduler__type": "PolyDecay"}, "lr_scheduler: no schedule 'PolyDecay'; closest: 'PolynomialDecay'"),
        ({"lr_scheduler__warmup_iters": 2, "lr_scheduler__warmup_start_lr": 0.05}, "lr_scheduler: a warm-up rises from warmup_start_lr to learning_rate in warmup_iters iterations, but these are 0.05, 0.05 and 2"),
        ({"lr_scheduler": {"type": "PiecewiseDecay", "boundaries": [2], "values": [0.1, 0.01], "warmup_iters": 2, "warmup_start_lr": 0}}, "lr_scheduler: a warm-up ends at the schedule's learning_rate, which PiecewiseDecay has not"),
        ({"lr_scheduler": {"type": "ReduceOnPlateau", "learning_rate": 0.1, "warmup_iters": 2, "warmup_start_lr": 0}}, "lr_scheduler: Paddle's warm-up hands ReduceOnPlateau no losses"),
        ({"train_dataset__type": "DataSet"}, "train_dataset: no data set 'DataSet'; closest: 'Dataset'"),
        ({"train_dataset__transforms": [{"type": "Normalise"}]}, "transforms[0]: no backbone or transform or loss 'Normalise'; closest: 'Normalize'"),
        ({"model__num_classes": 4}, "model.num_classes: 4, but the data set has 3 classes"),
        ({"model__outputs": 2}, "the model has 2 outputs in training and needs as many losses, but there are 1"),
        ({"loss__coef": [1, 2, 3], "loss__types": [{"type": "CrossEntropyLoss"}] * 2}, "loss: 2 types need as many coef, or one, but there are 3"),
        ({"model__pretrained": "nowhere.pdparams"}, "nowhere.pdparams: no such weights file"),
        ({"train_dataset__train_path": "nowhere.txt"}, "train_dataset: Dataset cannot be built: `train_path` is not found: nowhere.txt"),
    ],
)  # fmt: skip
def test_a_wrong_value_names_file_key_and_what_would_be_right(world, fails, change, message):
    line = fails(TRAIN, config=world.changed(**change))
    assert message in line


def test_a_flag_that_overwrites_nothing_is_named(fails):
    assert "--opts: no key 'modle' in student.yml; closest: 'model'" in fails(TRAIN, "--opts", "modle.width=3")
    assert "ToyNet takes no argument 'widht'; closest: 'width'" in fails(TRAIN, "--opts", "model.widht=3")


def test_weights_that_do_not_fit_name_tensors_both_shapes_and_the_count(world, fails):
    world.run(TRAIN, save_dir="narrow", iters=1)
    world.teacher["model"].update(pretrained="narrow/iter_1", norm=False)
    world.write()
    line = fails(DISTILL)
    assert "1 of 4 tensors of ToyNet matched" in line
    assert "conv1.weight [8, 3, 3, 3] for [16, 3, 3, 3]" in line


def test_weights_of_another_model_are_refused(world, fails):
    import paddle

    paddle.save(paddle.nn.Linear(2, 2).state_dict(), str(world.folder / "linear.pdparams"))
    world.teacher["model"]["pretrained"] = "linear.pdparams"
    world.write()
    assert "0 of 8 tensors of ToyNet matched" in fails(DISTILL) and "belong to another model" in fails(DISTILL)


def test_teacher_and_student_with_different_classes(world, fails):
    world.teacher["model"]["num_classes"] = 19
    world.write()
    assert "model.num_classes: the teacher has 19 classes, the student 3" in fails(DISTILL)


def test_missing_files_of_the_data_are_counted_and_named(world, fails):
    (world.folder / "train_1.png").unlink()
    (world.folder / "train_2_label.png").unlink()
    line = fails(TRAIN)
    assert "train_dataset" in line and "2 of 16 files are missing" in line
    assert "train_1.png" in line and "train_2_label.png" in line


def label(world, name, array):
    cv2.imwrite(str(world.folder / name), array)


def test_a_label_out_of_range_names_file_and_value(world, fails):
    label(world, "train_3_label.png", np.full([32, 40], 7, np.uint8))
    line = fails(TRAIN)
    assert "train_3_label.png" in line and "7" in line and "0..2" in line and "255" in line


def test_an_image_and_its_label_of_different_size(world, fails):
    label(world, "train_3_label.png", np.zeros([32, 41], np.uint8))
    line = fails(TRAIN)
    assert "train_3_label.png" in line and "41" in line and "40" in line


def test_a_label_in_colour(world, fails):
    label(world, "train_3_label.png", np.zeros([32, 40, 3], np.uint8))
    assert "train_3_label.png" in fails(TRAIN)


ADAPTORS = """
from paddleseg_ext.distill import AdaptorBase
def prepare_distill_adaptor():
    class StudentAdaptor(AdaptorBase):
        def mapping_layers(self):
            return {"hidden_0": "%s"}
    class TeacherAdaptor(AdaptorBase):
        def mapping_layers(self):
            return {"hidden_0": "conv1"}
    return StudentAdaptor, TeacherAdaptor
def prepare_distill_config():
    return [{"feature_type": "hidden", "s_feature_idx": 0, "t_feature_idx": %d, "loss_function": "%s"}]
"""


@pytest.mark.parametrize(
    ("layer", "index", "loss", "message"),
    [
        ("conv3", 0, "SegChannelwiseLoss", "StudentAdaptor: 'hidden_0': ToyNet has no layer 'conv3'; closest: 'conv2', 'conv1'"),
        ("conv1", 1, "SegChannelwiseLoss", "prepare_distill_config[0]: TeacherAdaptor.mapping_layers gives no 'hidden_1'; it gives 'hidden_0'"),
        ("conv1", 0, "SegChannelLoss", "prepare_distill_config[0]: no loss 'SegChannelLoss'; closest: 'SegChannelwiseLoss'"),
        ("conv1", 0, "CrossEntropyLoss", "CrossEntropyLoss compares with labels and cannot distil; these can: "),
        ("conv1", 0, "SegChannelwiseLoss", "student 'hidden_0' is [2, 8, 16, 20] and teacher 'hidden_0' is [2, 16, 16, 20]; shapes must be equal"),
    ],
)  # fmt: skip
def test_a_feature_pair_that_cannot_work(world, fails, layer, index, loss, message):
    world.write(pairs__py=ADAPTORS % (layer, index, loss))
    assert message in fails(DISTILL, distill_config="pairs.py")


def test_an_output_that_does_not_exist(world, fails):
    pairs = [{"student": 0, "teacher": 1, "loss": {"type": "KLLoss"}}]
    line = fails(DISTILL, student_config=world.changed(distill={"outputs": pairs}))
    assert "distill.outputs[0]: the teacher has no output 1; it has 1, counted from 0" in line


def test_a_loss_that_needs_more_images_than_a_batch_has(world, fails):
    pair = {"student": "conv1", "loss": {"type": "RKDLoss"}}
    line = fails(DISTILL, student_config=world.changed(distill={"features": [pair]}))
    assert "distill.features[0]: RKDLoss compares at least 3 images, but batch_size is 2" in line


def test_nothing_to_distil(world, fails):
    assert "nothing to distil" in fails(DISTILL, student_config=world.changed(distill_loss=None))


def test_a_save_dir_that_cannot_be_written_to(world, fails):
    (world.folder / "file").write_text("")
    assert "--save_dir file: cannot be written to" in fails(TRAIN, save_dir="file")


def test_fp16_on_a_cpu(fails):
    assert "--precision fp16 needs a GPU; a CPU trains in fp32" in fails(TRAIN, precision="fp16")


def test_a_seed_below_zero(world):
    assert "argument --seed: at least 0 is expected, but got -1" in world.run(TRAIN, seed=-1, code=2)


def test_a_batch_larger_than_the_data(fails):
    assert "the training set has 8 samples, fewer than one batch: batch_size 9" in fails(TRAIN, batch_size=9)


def test_weights_that_would_run_code_are_refused_in_a_real_process(world):
    evil = b"cos\nsystem\n(S'touch pwned'\ntR."
    (world.folder / "evil.pdparams").write_bytes(evil)
    text = world.run(TRAIN, "--opts", "model.pretrained='evil.pdparams'", code=2)
    assert "evil.pdparams: refused, it asks to run 'os.system'" in text
    assert not (world.folder / "pwned").exists()


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(world):
    text = world.run(TRAIN, code=2, iters=200, learning_rate=1e20, save_interval=1)
    assert "a loss is not finite: CrossEntropyLoss " in text and "batch: " in text and "Traceback" not in text
    last = max((world.folder / "out").glob("iter_*"), key=lambda p: int(p.name.split("_")[1]))
    world.weights(f"out/{last.name}/model.pdparams")


def test_faults_of_our_own_keep_their_traceback(world):
    world.write(fault__py="raise SystemError('boom')")
    text = world.run(DISTILL, distill_config="fault.py", code=2)
    assert "fault.py: does not run: SystemError: boom" in text
