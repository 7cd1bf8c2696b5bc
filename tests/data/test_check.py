"""Bad data are found before training, and named."""

import os

import cv2
import numpy as np
import pytest
from paddleseg.datasets import Dataset
from PIL import ExifTags, Image

from paddleseg_ext.data.check import check_dataset
from paddleseg_ext.errors import DataError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    lines = []
    for i in range(5):
        Image.fromarray(rng.integers(0, 255, (8, 10, 3), np.uint8)).save(tmp_path / f"{i}.jpg")
        Image.fromarray(rng.integers(0, 3, (8, 10), np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.jpg {i}.png\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    return tmp_path


def check(folder, kind=Dataset, classes=3, ignore_index=255):
    data = kind(
        transforms=[],
        dataset_root=str(folder),
        num_classes=classes,
        mode="train",
        train_path=str(folder / "list.txt"),
        ignore_index=ignore_index,
    )
    check_dataset(data, "s.yml:4: train_dataset")


def message(folder, **options):
    with pytest.raises(DataError) as caught:
        check(folder, **options)
    return str(caught.value).replace(f"{folder}/", "")


def write_label(folder, values, name="3.png"):
    Image.fromarray(np.asarray(values, np.uint8)).save(folder / name)


def test_sound_data_pass(folder):
    check(folder)


def test_ignored_pixels_are_allowed(folder):
    write_label(folder, np.full((8, 10), 255))
    check(folder)


def test_missing_files_are_counted_and_the_first_named(folder):
    for name in ("0.jpg", "1.png", "2.jpg", "2.png"):
        (folder / name).unlink()
    assert message(folder) == "s.yml:4: train_dataset: 4 of 10 files are missing, the first: 0.jpg, 1.png, 2.jpg, ..."


def test_a_value_out_of_range_is_named_with_its_file(folder):
    label = np.zeros((8, 10))
    label[0, :2] = 3, 7
    write_label(folder, label)
    assert (
        message(folder)
        == "s.yml:4: train_dataset: 3.png: label value 3, 7; with 3 classes it is 0..2, or 255 to ignore"
    )


def test_a_label_of_another_size_is_named_with_both(folder):
    write_label(folder, np.zeros((10, 8)))
    assert "3.png: the label is 8x10 pixels, its image 3.jpg is 10x8" in message(folder)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_compared_as_the_image_is_read_in_training(folder, suffix, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (10, 8)).save(folder / f"turned.{suffix}", exif=exif)
    (folder / "list.txt").write_text(f"turned.{suffix} 3.png\n")
    height, width = cv2.imread(str(folder / f"turned.{suffix}")).shape[:2]
    write_label(folder, np.zeros((height, width)))
    check(folder)
    write_label(folder, np.zeros((width, height)))
    assert f"the label is {height}x{width} pixels, its image turned.{suffix} is {width}x{height}" in message(folder)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_an_image_with_broken_exif_is_sound(folder, suffix):
    Image.new("RGB", (10, 8)).save(folder / f"broken.{suffix}", exif=b"Exif\x00\x00neither II nor MM")
    (folder / "list.txt").write_text(f"broken.{suffix} 3.png\n")
    check(folder)


def test_a_label_in_colour_is_named(folder):
    write_label(folder, np.zeros((8, 10, 3)))
    assert "3.png: a label has one channel of class numbers, but this is an image in colour (RGB)" in message(folder)


def test_a_palette_label_counts_by_its_indices(folder):
    image = Image.fromarray(np.full((8, 10), 2, np.uint8), mode="P")
    image.putpalette(list(range(256)) * 3)
    image.save(folder / "3.png")
    check(folder)


@pytest.mark.parametrize(("name", "what"), [("2.jpg", "a readable image"), ("2.png", "a readable label")])
def test_a_file_that_cannot_be_decoded_is_named(folder, name, what):
    (folder / name).write_bytes(b"\x89PNG half")
    assert f"{name}: not {what}" in message(folder)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_an_image_that_is_cut_off_is_named(folder, suffix):
    noise = np.random.default_rng(0).integers(0, 255, [8, 10, 3], np.uint8)
    whole = cv2.imencode(suffix, noise)[1].tobytes()
    (folder / "2.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    assert "2.jpg: not a readable image (OSError: " in message(folder)


def test_labels_that_only_their_data_set_can_read_are_left_to_it(folder):
    class Packed(Dataset):
        def __getitem__(self, index):
            return {"label": np.load(self.file_list[index][1])["arr_0"]}

    lines = (folder / "list.txt").read_text().replace("2.png", "2.npz")
    (folder / "list.txt").write_text("".join(line + "\n" for line in lines.splitlines() if ".npz" in line))
    np.savez(folder / "2.npz", np.zeros([8, 10], "int64"))
    check(folder, Packed)
    np.savez(folder / "2.npz", np.full([8, 10], 9))
    assert "label value 9" in message(folder, kind=Packed)


def test_an_empty_list_is_an_error(folder):
    (folder / "list.txt").write_text("")
    assert message(folder) == "s.yml:4: train_dataset: the list of samples is empty"


def test_a_label_that_goes_bad_after_the_check_is_found_by_the_next(folder):
    check(folder)
    write_label(folder, np.full((8, 10), 9))
    assert "3.png: label value 9" in message(folder)


def test_a_sample_that_joins_the_list_after_the_check_is_looked_at(folder):
    check(folder)
    write_label(folder, np.full((8, 10), 9), "new.png")
    with (folder / "list.txt").open("a") as file:
        file.write("0.jpg new.png\n")
    assert "new.png: label value 9" in message(folder)


def test_what_passed_for_other_classes_is_checked_for_these(folder):
    write_label(folder, np.full((8, 10), 2))
    check(folder)
    assert "label value 2; with 2 classes it is 0..1" in message(folder, classes=2)
    write_label(folder, np.full((8, 10), 255))
    check(folder)
    assert "label value 255; with 3 classes it is 0..2, or 254 to ignore" in message(folder, ignore_index=254)


def test_a_set_that_failed_is_not_remembered_as_sound(folder):
    write_label(folder, np.full((8, 10), 9))
    assert message(folder) == message(folder)


def test_where_nothing_can_be_remembered_the_check_still_passes_and_fails(folder):
    (folder / "cache").write_text("in the way of the folder")
    check(folder)
    write_label(folder, np.full((8, 10), 9))
    assert "3.png: label value 9" in message(folder)


def test_what_passed_is_not_decoded_again(folder):
    check(folder)
    path = folder / "3.png"
    stat, size = os.stat(path), path.stat().st_size
    path.write_bytes(b"x" * size)  # of the same size and time, so that only decoding could tell
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    check(folder)
    os.utime(path)
    assert "3.png: not a readable label" in message(folder)


def test_a_data_set_that_changes_its_labels_is_judged_by_what_it_returns(folder):
    class Shifted(Dataset):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return {**sample, "label": sample["label"] - 1 if self.shift else sample["label"]}

    for i in range(5):
        write_label(folder, np.full((8, 10), 3), f"{i}.png")
    Shifted.shift = True
    check(folder, Shifted)
    Shifted.shift = False
    write_label(folder, np.full((8, 10), 3), "4.png")
    assert "label value 3" in message(folder, kind=Shifted)
