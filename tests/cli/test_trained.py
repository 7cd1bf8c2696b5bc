"""What users do with a trained model: measure it, and predict images."""

import copy
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from tests.cli.conftest import ROOT, TRAIN, World

LAUNCH = [sys.executable, str(ROOT / "tests/cli/launch.py")]
VAL, PREDICT = (str(ROOT / f"paddleseg_ext/cli/{name}.py") for name in ("val", "predict"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One trained model for all of these tests, which only read it."""
    world = World(tmp_path_factory.mktemp("trained"))
    world.run(TRAIN, do_eval=True, iters=8, save_interval=8)

    def run(launcher, *args, code=0, **flags):
        words = [w for name, value in flags.items() for w in (f"--{name}", str(value))]
        common = ["--device", "cpu"]
        common += [] if "config" in flags else ["--config", "student.yml"]
        common += [] if "model_path" in flags else ["--model_path", "out/best_model"]
        done = subprocess.run(
            [*LAUNCH, launcher, *common, *words, *args], cwd=world.folder, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr.splitlines()[-1]

    world.use = run
    return world


def test_val_gives_the_figures_of_training_as_a_table_and_as_json(trained):
    text = trained.use(VAL, json="figures.json")
    figures = json.loads((trained.folder / "figures.json").read_text())
    (during,) = trained.records("eval")
    for name in ("mIoU", "accuracy", "kappa", "dice", "class_iou", "images"):
        assert figures[name] == during[name]
    assert f"mIoU      {figures['mIoU']:.4f}" in text
    for number, iou in enumerate(figures["class_iou"]):
        assert f"{number}         {iou:.4f}" in text.splitlines()


def test_val_over_several_processes_agrees_exactly(trained):
    trained.use(VAL, json="one.json")
    start = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", "logs"]
    command = [*start, LAUNCH[1], VAL, "--config", "student.yml", "--model_path", "out/best_model", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--json", "two.json"], cwd=trained.folder, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (json.loads((trained.folder / f"{name}.json").read_text()) for name in ("one", "two"))
    assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_flags_change_how_the_model_is_applied(trained):
    plain, window = trained.use(VAL), trained.use(VAL, "--is_slide", "--crop_size", "16", "16", "--stride", "8", "8")
    flipped = trained.use(VAL, "--aug_eval", "--flip_horizontal", "--scales", "0.5", "1")
    assert len({text.split("mIoU")[1] for text in (plain, window, flipped)}) == 3


def test_predict_writes_masks_overlays_and_probabilities_under_the_images_names(trained):
    photos = trained.folder / "photos/inner"
    photos.mkdir(parents=True)
    image = cv2.imread(str(trained.folder / "val_0.png"))
    cv2.imwrite(str(photos / "a.jpg"), image)
    cv2.imwrite(str(photos.parent / "b.PNG"), cv2.resize(image, (20, 16)))
    text = trained.use(PREDICT, "--probabilities", image_path="photos", save_dir="seen_photos")
    assert "2 images predicted, written to seen_photos" in text
    written = {
        str(p.relative_to(trained.folder / "seen_photos"))
        for p in (trained.folder / "seen_photos").rglob("*")
        if p.is_file()
    }
    kinds = {"pseudo_color_prediction": "png", "added_prediction": "png", "probabilities": "npy"}
    assert written == {f"{kind}/{name}.{end}" for kind, end in kinds.items() for name in ("inner/a", "b")}
    mask = Image.open(trained.folder / "seen_photos/pseudo_color_prediction/b.png")
    values = np.load(trained.folder / "seen_photos/probabilities/b.npy")
    assert mask.mode == "P" and mask.size == (20, 16) and values.shape == (3, 16, 20) and values.dtype == np.float16
    np.testing.assert_allclose(values.astype("float32").sum(0), 1, atol=3e-3)
    assert (np.asarray(mask) == values.argmax(0)).mean() > 0.99
    overlay = cv2.imread(str(trained.folder / "seen_photos/added_prediction/b.png"))
    assert overlay.shape == (16, 20, 3)


def test_predicted_masks_are_what_val_measures(trained):
    trained.use(VAL, json="figures.json")
    trained.use(PREDICT, image_path="val.txt", save_dir="seen")
    hits = total = 0
    for i in range(3):
        mask = np.asarray(Image.open(trained.folder / f"seen/pseudo_color_prediction/val_{i}.png"))
        label = np.asarray(Image.open(trained.folder / f"val_{i}_label.png"))
        hits, total = hits + (mask == label).sum(), total + label.size
    assert hits / total == pytest.approx(
        json.loads((trained.folder / "figures.json").read_text())["accuracy"], abs=1e-6
    )


def test_images_of_one_channel_are_predicted_as_they_are_measured(trained):
    dataset = {"img_channels": 1, "transforms": [{"type": "Normalize", "mean": [0.5], "std": [0.5]}]}
    student = copy.deepcopy(trained.student)
    student["model"] = {"type": "GreyNet", "num_classes": 3}
    for part in ("train_dataset", "val_dataset"):
        student[part] |= dataset
    (trained.folder / "grey.yml").write_text(yaml.safe_dump(student))
    trained.run(TRAIN, config="grey.yml", iters=1, save_dir="grey")
    same = {"config": "grey.yml", "model_path": "grey/iter_1"}
    trained.use(VAL, json="grey.json", **same)
    trained.use(PREDICT, image_path="val.txt", save_dir="seen_grey", **same)
    hits = [
        np.asarray(Image.open(trained.folder / f"seen_grey/pseudo_color_prediction/val_{i}.png"))
        == np.asarray(Image.open(trained.folder / f"val_{i}_label.png"))
        for i in range(3)
    ]
    accuracy = json.loads((trained.folder / "grey.json").read_text())["accuracy"]
    assert np.mean(hits) == pytest.approx(accuracy, abs=1e-6)


def test_a_corrupt_image_is_reported_and_the_others_are_predicted(trained):
    (trained.folder / "some").mkdir()
    (trained.folder / "some/bad.jpg").write_bytes(b"no image")
    cv2.imwrite(str(trained.folder / "some/good.jpg"), cv2.imread(str(trained.folder / "val_0.png")))
    message = trained.use(PREDICT, image_path="some", save_dir="seen", code=2)
    assert message == "error: 1 of 2 images could not be read, the first: some/bad.jpg"
    assert (trained.folder / "seen/pseudo_color_prediction/good.png").is_file()


@pytest.mark.parametrize(
    ("launcher", "flags", "message"),
    [
        (VAL, {"model_path": "nowhere"}, "error: nowhere: no such weights file"),
        (VAL, {"json": "no/x.json"}, "error: --json no/x.json: no such folder no"),
        (VAL, {"scales": "-1"}, "error: --scales are above 0, but got [-1.0]"),
        (
            VAL,
            {"words": "--is_slide --crop_size 8 8 --stride 9 8"},
            "error: --stride [9, 8] leaves gaps between windows of --crop_size [8, 8]",
        ),
        (PREDICT, {"image_path": "nowhere"}, "error: --image_path nowhere: no such file or folder"),
        (
            PREDICT,
            {"image_path": "same.txt"},
            "error: --image_path same.txt: val_0.png and sub/../val_0.png would both become val_0.png",
        ),
        (PREDICT, {"image_path": "out/pictures/.."}, "error: --image_path out/pictures/..: no images in it (.jpg"),
    ],
)
def test_what_is_wrong_is_named(trained, launcher, flags, message):
    (trained.folder / "same.txt").write_text("val_0.png\nsub/../val_0.png\n")
    if "pictures" in flags.get("image_path", ""):
        (trained.folder / "empty").mkdir()
        flags, message = {"image_path": "empty"}, "error: --image_path empty: no images in it (.jpg"
    words = flags.get("words", "").split()
    flags = {name: value for name, value in flags.items() if name != "words"}
    assert trained.use(launcher, *words, code=2, **flags).startswith(message)


def test_weights_of_another_model_are_refused_with_both_shapes(trained):
    message = trained.use(VAL, code=2, config=trained.changed(model__width=5))
    assert "of another shape: conv1.weight [8, 3, 3, 3] for [5, 3, 3, 3]" in message
