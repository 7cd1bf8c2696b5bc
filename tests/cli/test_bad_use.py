"""What a user can get wrong with a trained model ends in one clear line and exit code 2; what was written stays whole."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from paddleseg_ext.cli.predict import main as predict
from paddleseg_ext.cli.val import main as val

MODEL = ("--config", "student.yml", "--model_path", "alone/best_model", "--device", "cpu")


@pytest.fixture
def listed(runs):
    """Writes a list of one val sample, image and label given; returns the words that make it the val set."""

    def write(name, image, label):
        for suffix, content in (("", image), ("_label", label)):
            if isinstance(content, bytes):
                (runs.folder / f"{name}{suffix}.png").write_bytes(content)
            else:
                cv2.imwrite(str(runs.folder / f"{name}{suffix}.png"), content)
        (runs.folder / f"{name}.txt").write_text(f"{name}.png {name}_label.png\n")
        return ("--opts", f"val_dataset.val_path='{name}.txt'")

    return write


IMAGE, LABEL = np.full([32, 40, 3], 90, np.uint8), np.zeros([32, 40], np.uint8)


@pytest.mark.parametrize(
    ("name", "image", "label", "message"),
    [
        ("unreadable", b"no image", LABEL, "unreadable.png"),
        ("unread_label", IMAGE, b"no image", "unread_label_label.png"),
        ("unknown_class", IMAGE, LABEL + 7, "unknown_class_label.png: label value 7; with 3 classes it is 0..2"),
    ],
)
def test_val_names_the_file_and_leaves_the_figures_of_before(called, runs, listed, name, image, label, message):
    (runs.folder / "figures.json").write_text("{}")
    line = called(val, runs, *MODEL, *listed(name, image, label), "--json", "figures.json", code=2)
    assert message in line and "val_dataset" in line
    assert (runs.folder / "figures.json").read_text() == "{}"


def test_val_of_an_empty_list(called, runs):
    (runs.folder / "nothing.txt").write_text("")
    line = called(val, runs, *MODEL, "--opts", "val_dataset.val_path='nothing.txt'", code=2)
    assert line.endswith("val_dataset: the list of samples is empty")


def test_a_label_that_is_a_palette_png_with_a_class_that_the_set_does_not_have(called, runs, listed):
    words = listed("palette", IMAGE, LABEL)
    picture = Image.fromarray(LABEL + 4, mode="P")
    picture.putpalette([value // 3 for value in range(768)])
    picture.save(runs.folder / "palette_label.png")
    assert "palette_label.png: label value 4; with 3 classes it is 0..2" in called(val, runs, *MODEL, *words, code=2)


def test_predict_paints_with_the_colours_given(called, runs):
    colours = ["--custom_color", *map(str, (10, 20, 30, 40, 50, 60, 70, 80, 90))]
    called(predict, runs, *MODEL, "--image_path", "val_0.png", "--save_dir", "painted", *colours)
    mask = Image.open(runs.folder / "painted/pseudo_color_prediction/val_0.png")
    assert mask.getpalette()[:9] == [10, 20, 30, 40, 50, 60, 70, 80, 90]


@pytest.mark.parametrize(
    ("colours", "message"),
    [
        ((1, 2, 3, 4, 5, 6), "error: --custom_color has 2 colours, but the model has 3 classes: class 2 has none"),
        ((1, 2, 3, 4), "error: --custom_color takes three numbers from 0 to 255 for each class, but got [1, 2, 3, 4]"),
        ((1, 2, 300), "error: --custom_color takes three numbers from 0 to 255 for each class, but got [1, 2, 300]"),
    ],
)
def test_a_palette_that_does_not_know_every_class(called, runs, colours, message):
    words = ["--image_path", "val_0.png", "--save_dir", "never", "--custom_color", *map(str, colours)]
    assert called(predict, runs, *MODEL, *words, code=2) == message
    assert not (runs.folder / "never").exists()


def test_a_list_of_images_that_is_no_text(called, runs):
    (runs.folder / "photo.txt").write_bytes(b"\xff\xd8\xff\xe0")
    line = called(predict, runs, *MODEL, "--image_path", "photo.txt", code=2)
    assert line == "error: --image_path photo.txt: a list of images is expected, but this is no text"


def test_predicting_nothing_but_broken_images_says_how_many(called, runs):
    (runs.folder / "broken").mkdir()
    (runs.folder / "broken/a.png").write_bytes(b"")
    line = called(predict, runs, *MODEL, "--image_path", "broken", "--save_dir", "seen", code=2)
    assert line == "error: 1 of 1 images could not be read, the first: broken/a.png"


@pytest.mark.parametrize("main", [val, predict])
def test_weights_that_do_not_fit_name_tensors_and_shapes(called, runs, main):
    words = ["--image_path", "val_0.png", "--save_dir", "never"] if main is predict else []
    line = called(main, runs, *MODEL[:2], "--model_path", "teacher/best_model", *MODEL[4:], *words, code=2)
    assert "teacher/best_model: 0 of 4 tensors of ToyNet matched" in line or "conv1.weight [16, 3, 3, 3]" in line
    assert not (runs.folder / "never").exists()


def test_figures_are_written_whole(called, runs):
    called(val, runs, *MODEL, "--json", "whole.json")
    assert {"mIoU", "accuracy", "kappa", "dice", "class_iou"} <= set(
        json.loads((runs.folder / "whole.json").read_text())
    )
