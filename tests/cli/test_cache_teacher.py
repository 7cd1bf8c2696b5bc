"""A teacher's outputs stored by one command and learnt from by another, where the teacher need not be any more."""

import json
import runpy
import signal
import sys

import cv2
import numpy as np
import paddle
import pytest

from paddleseg_ext.teachers.store import OutputStore
from tests.cli.conftest import DISTILL, LAUNCH, ROOT, same_bits
from tests.cli.launch import ToyNet

CACHE = str(ROOT / "paddleseg_ext/cli/cache_teacher.py")
KL = {"loss": {"type": "KLLoss"}, "weight": 3}
HINT = {"student": "conv1", "teacher": "norm", "loss": {"type": "HintLoss"}}
CROPPED = [
    {"type": "ResizeStepScaling", "min_scale_factor": 0.75, "max_scale_factor": 1.5},
    {"type": "RandomPaddingCrop", "crop_size": [32, 24]},
    {"type": "RandomHorizontalFlip"},
    {"type": "Normalize"},
]


def use(world, transforms=None, **distill):
    world.student.pop("distill_loss", None)
    world.student["distill"] = distill
    if transforms is not None:
        world.student["train_dataset"]["transforms"] = transforms
    world.write()


def save_weights(world, seed, **model):
    paddle.seed(seed)
    net = ToyNet(**{k: v for k, v in {**world.teacher["model"], **model}.items() if k not in ("type", "pretrained")})
    paddle.save(net.state_dict(), str(world.folder / "teacher.pdparams"))


@pytest.fixture
def taught(world):
    """A world with weights for the teacher, and a student that wants an output and a feature of it."""
    world.teacher["model"]["pretrained"] = "teacher.pdparams"
    save_weights(world, 3)
    use(world, outputs=[KL], features=[HINT])
    return world


@pytest.fixture
def here(taught, monkeypatch, capsys):
    """The same world, its commands run in this process, which saves their start."""

    def run(launcher, *args, code=0, env=None, **flags):
        monkeypatch.chdir(taught.folder)
        monkeypatch.setattr(sys, "argv", taught.command(launcher, *args, **flags))
        capsys.readouterr()
        stopped = None
        try:
            runpy.run_path(launcher, run_name="__main__")
        except SystemExit as error:
            stopped = error.code
        said = "".join(capsys.readouterr())
        assert (stopped or 0) == code, said
        return said

    monkeypatch.setattr(taught, "run", run)
    return taught


def cache(world, code=0, env=None, **flags):
    """Run cache_teacher in the world's folder."""
    of_training = dict.fromkeys(("seed", "log_iters", "save_interval", "save_dir"))
    return world.run(CACHE, code=code, env=env, **(of_training | {"cache_dir": "stored"} | flags))


def train(world, *args, **flags):
    return world.run(DISTILL, *args, **{"teacher_config": None, "teacher_cache": "stored"} | flags)


def losses(world, save_dir="out"):
    return [{k: v for k, v in r.items() if k.startswith("distill/")} for r in world.records("train", save_dir)]


def test_a_student_learns_from_stored_outputs_alone(taught):
    use(taught, CROPPED, outputs=[KL], features=[HINT])
    text = cache(taught)
    assert "8 of 8 images are to be stored in stored, " in text
    assert "output 0, 3 channels at stride 2; feature norm, 16 channels at stride 2" in text
    assert "augmented images: output 0: same class " in text and "augmented images: feature norm: cosine 0." in text
    found = json.loads((taught.folder / "stored/manifest.json").read_text())
    assert found["model"]["type"] == "ToyNet" and found["names"] == [f"train_{i}.png" for i in range(8)]
    (taught.folder / "teacher.pdparams").unlink()
    (taught.folder / "teacher.yml").unlink()
    text = train(taught, do_eval=True)
    assert "[CACHE] stored stands for the teacher, ToyNet: output 0, 3 channels at stride 2" in text
    assert "teacher output 0 [2, 3, 12, 16]" in text and "teacher feature norm [2, 16, 12, 16]" in text
    assert all(value > 0 for record in losses(taught) for value in record.values()) and len(losses(taught)[0]) == 2


def test_resumed_or_read_by_other_processes_it_ends_bit_for_bit_the_same(taught):
    use(taught, CROPPED, outputs=[KL], features=[HINT], teacher={"cache": "stored"})
    cache(taught, cache_dir=None)  # the student's file says where
    train(taught, teacher_cache=None, save_dir="whole")
    train(taught, teacher_cache=None, num_workers=2)
    (taught.folder / "out/iter_8").rename(taught.folder / "gone")
    assert "resumed from out/iter_4" in train(taught, teacher_cache=None, resume_model="auto", seed=None)
    for name in ("model.pdparams", "extras.pdparams", "model.pdopt"):
        a, b, c = (taught.weights(f"{folder}/{name}") for folder in ("whole/iter_8", "out/iter_8", "gone"))
        assert same_bits(a, b) and same_bits(a, c)


def test_without_augmentation_it_is_learning_from_the_teacher_itself(here):
    use(here, [{"type": "Normalize"}], outputs=[KL, {**KL, "resolution": "label"}], features=[HINT])
    text = cache(here)
    assert "same class 100.00%" in text and "cosine 1.0000" in text
    train(here, do_eval=True, teacher_config="teacher.yml", save_dir="stored_run")
    here.run(DISTILL, teacher_engine="model", save_dir="live")
    for stored, live in zip(losses(here, "stored_run"), losses(here, "live"), strict=True):
        assert stored.keys() == live.keys() and stored == pytest.approx(live, rel=0.02)


def test_killed_while_storing_it_goes_on_and_ends_with_the_same(taught):
    cache(taught, cache_dir="whole")
    cache(
        taught, code=-signal.SIGKILL, env={"DIE_IN_SYNC": "6"}
    )  # the manifest, two shards of two files, half of the third
    done = {path.name: path.stat().st_mtime_ns for path in (taught.folder / "stored").glob("0*")}
    assert len(done) == 4 and list((taught.folder / "stored").glob(".*.partial"))
    assert "error: stored: 6 of 8 images are still to be stored; run cache_teacher again" in train(taught, code=2)
    assert "6 of 8 images are to be stored" in cache(taught)
    after = {path.name: path.stat().st_mtime_ns for path in (taught.folder / "stored").glob("0*")}
    assert (
        len(after) == 16 and done.items() <= after.items() and not list((taught.folder / "stored").glob(".*.partial"))
    )
    whole, again = (OutputStore(taught.folder / name) for name in ("whole", "stored"))
    for name in whole.manifest.names:
        a, b = whole.read(name), again.read(name)
        assert all(np.array_equal(a.maps[key][0], b.maps[key][0]) for key in ("0", "norm"))
    assert "0 of 8 images are to be stored" in cache(taught)


def test_another_teachers_or_other_datas_outputs_are_refused(here):
    cache(here)
    given = {"teacher_config": "teacher.yml"}
    assert "error" not in train(here, iters=1, **given)
    save_weights(here, 4)
    assert "stored holds the outputs of other weights than teacher.yml has: SHA-256 " in train(here, code=2, **given)
    assert "stored holds a teacher with other weights; give another folder" in cache(here, code=2)
    save_weights(here, 3)
    assert "holds the outputs of another model than teacher.yml has" in train(
        here, "--teacher_opts", "model.dropout=0.1", code=2, **given
    )
    image = cv2.imread(str(here.folder / "train_3.png"))
    cv2.imwrite(str(here.folder / "train_3.png"), image)  # the same again, at another time
    train(here, iters=1)
    image[0, 0] ^= 255
    cv2.imwrite(str(here.folder / "train_3.png"), image)
    changed = "train_3.png has changed since the teacher's outputs were stored in stored"
    assert changed in train(here, code=2) and changed in cache(here, code=2)
    (here.folder / "train.txt").write_text("val_0.png val_0_label.png\n" * 8)
    assert "stored: nothing of val_0.png is stored there; its 8 images are others" in train(here, code=2)


def test_a_part_of_the_images_in_another_order_and_place_may_be_trained_on(here):
    cache(here)
    lines = (here.folder / "train.txt").read_text().splitlines(keepends=True)
    (here.folder / "train.txt").write_text("".join([*lines[6:2:-1], lines[6]]))
    inside = here.folder / "moved"
    inside.mkdir()
    for path in (*here.folder.glob("*.png"), *here.folder.glob("*.txt")):
        path.rename(inside / path.name)
    for part in ("train", "val"):
        here.student[f"{part}_dataset"] |= {"dataset_root": "moved", f"{part}_path": f"moved/{part}.txt"}
    here.write()
    train(here, iters=2)


def test_transforms_that_cannot_be_followed_are_refused_in_both_commands(here):
    message = "train_dataset.transforms[1]: RandomRotation cannot be followed"
    cache(here)
    turned = [{"type": "RandomHorizontalFlip"}, {"type": "RandomRotation"}, {"type": "Normalize"}]
    use(here, turned, outputs=[KL], features=[HINT])
    assert message in train(here, code=2)
    assert message in cache(here, code=2, cache_dir="other") and not (here.folder / "other").exists()


def test_images_without_labels_other_classes_and_few_classes_are_stored_too(here):
    (here.folder / "more.txt").write_text("".join(f"val_{i}.png\n" for i in range(3)))
    here.teacher["model"]["num_classes"] = 5
    save_weights(here, 3)
    use(here, CROPPED, outputs=[KL], unlabelled="more.txt", class_map={0: 0, 4: 1})
    assert "11 of 11 images" in cache(here, top_k=2)
    assert OutputStore(here.folder / "stored").read("val_1.png").maps["0"][0].shape == (3, 16, 20)
    text = train(here, batch_size=1, iters=11, log_iters=1)
    assert "11 training images" in text and "2 classes shared" in text
    records = here.records("train")
    assert [r["CrossEntropyLoss"] for r in records].count(0) == 3 and all(r["distill/KLLoss"] > 0 for r in records)
    use(here, CROPPED, outputs=[KL])
    assert "stored: the teacher has 5 classes, the student 3; distill.class_map in" in train(here, code=2)


def test_images_of_many_sizes_are_stored_each_at_its_own(here):
    for index, size in enumerate([(40, 32), (60, 44), (33, 51)]):
        for ending, how in (("", cv2.INTER_LINEAR), ("_label", cv2.INTER_NEAREST)):
            path = str(here.folder / f"train_{index}{ending}.png")
            cv2.imwrite(path, cv2.resize(cv2.imread(path, cv2.IMREAD_UNCHANGED), size, interpolation=how))
    use(here, CROPPED, outputs=[KL])
    text = cache(here, num_workers=2)
    positions = 6 * 16 * 20 + 22 * 30 + 26 * 17
    assert f"stored in stored, {positions * 3 * 2 / 1000:.3g} kB" in text
    written = sum(path.stat().st_size for path in (here.folder / "stored").glob("*.bin"))
    assert written == positions * 3 * 2
    train(here, iters=2)


def test_each_of_two_processes_reads_what_it_needs(taught):
    # Without dropout, whose draws differ by rank.
    taught.student["model"]["dropout"] = 0.0
    use(taught, [{"type": "RandomHorizontalFlip"}, {"type": "Normalize"}], outputs=[KL], features=[HINT])
    cache(taught)
    train(taught, batch_size=4, iters=4, save_dir="one")
    start = [LAUNCH[0], "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", "log", LAUNCH[1]]
    train(taught, batch_size=2, iters=4, save_dir="two", start=start)
    one, two = (losses(taught, folder)[0] for folder in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-3)


@pytest.mark.parametrize(
    ("distill", "flags", "message"),
    [
        ({}, {"cache_dir": None}, "--cache_dir is missing (or distill.teacher.cache in student.yml)"),
        ({}, {"teacher_config": None}, "--teacher_config is missing: the file of the teacher whose outputs are stored"),
        ({}, {"cache_dir": "."}, ". holds other files; give a new folder"),
        ({}, {"top_k": 0}, "argument --top_k: at least 1 is expected, but got 0"),
        (
            {"teacher": "ema"},
            {},
            "student.yml: distill.teacher: ema: stored outputs (stored) are those of one trained teacher",
        ),
        (
            {"teachers": [{"config": "teacher.yml"}]},
            {},
            "student.yml: distill.teachers: stored outputs (stored) are those",
        ),
        ({"features": [{**HINT, "teacher": "norn"}]}, {}, "ToyNet has no layer 'norn'; closest: 'norm'"),
        (
            {"features": [{**HINT, "teacher": "flatt()", "loss": "AttentionTransferLoss"}]},
            {},
            "ToyNet has no method 'flatt'",
        ),
    ],
)
def test_what_cannot_be_stored_is_said_in_one_line(here, distill, flags, message):
    use(here, **({"outputs": [KL]} | distill))
    assert message in cache(here, code=2, **flags)
    assert not (here.folder / "stored").exists()


def test_what_cannot_be_trained_from_is_said_in_one_line(here):
    cache(here)
    for distill, flags, message in (
        ({}, {"teacher_engine": "auto"}, "--teacher_engine auto: nothing is left to run, stored has the outputs"),
        (
            {"teacher": "mutual"},
            {},
            "distill.teacher: mutual: stored outputs (stored) are those of one trained teacher",
        ),
        ({"features": [{**HINT, "teacher": "conv2"}]}, {}, "stored holds no feature 'conv2' of the teacher"),
        ({"outputs": [{**KL, "teacher": 1}]}, {}, "stored holds no output 1 of the teacher"),
    ):
        use(here, **({"outputs": [KL]} | distill))
        assert message in train(here, code=2, **flags)


def test_a_wrapped_teacher_cannot_ask_a_store_about_other_images(taught):
    use(taught, CROPPED, outputs=[KL])
    cache(taught)
    shipped = (ROOT / "slim/distill/distill_config.py").read_text()
    wrapped = "def prepare_teacher(teacher):\n    return lambda batch: teacher(%s)\n"
    other = "from dataclasses import replace\n" + wrapped % "replace(batch, images=batch.images.flip(3))"
    taught.write(same__py=shipped + wrapped % "batch", other__py=shipped + other)
    train(taught, distill_config="same.py", iters=2)
    text = train(taught, distill_config="other.py", code=2)
    assert "other.py: prepare_teacher asks about other images than the batch's, of which nothing is stored" in text


def test_a_teacher_that_gives_no_map_is_not_stored(here):
    """A tensor without height and width, by the user's adaptor."""
    here.teacher["model"]["width"] = 8
    save_weights(here, 3)
    mine = (ROOT / "slim/distill/distill_config.py").read_text()
    mine = mine.replace(
        '# mapping_layers["hidden_1"] = self.model.reshape_out', 'mapping_layers["hidden_0"] = self.model.flat'
    )
    pair = '[{"s_feature_idx": 0, "t_feature_idx": 0, "loss_function": "HintLoss", "weight": 2}]'
    here.write(mine__py=mine.replace("return []", f"return {pair}"))
    text = cache(here, code=2, distill_config="mine.py")
    assert "'hidden_0' is [8, 320] for an image of [32, 40]: no map" in text
