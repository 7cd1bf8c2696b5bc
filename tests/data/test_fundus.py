"""The drawn images of the quick start."""

import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from paddleseg_ext.data.fundus import FundusDataset, draw_fundus, write_fundus
from paddleseg_ext.errors import ConfigError


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def test_equal_arguments_give_equal_files_and_another_seed_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_fundus(str(tmp_path / name), 2, 1, (32, 32), seed)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert len(a) == 8 and a == b and a != c


def test_an_image_shows_a_round_field_with_a_disc_brighter_than_its_surroundings():
    shares, contrasts = [], []
    for seed in range(12):
        image, label = draw_fundus(np.random.default_rng(seed), (96, 96))
        assert image.shape == (96, 96, 3) and image.dtype == np.uint8 and label.shape == (96, 96)
        assert set(np.unique(label)) == {0, 1}
        assert not image[0].any() and not image[:, -1].any()
        ring = cv2.dilate(label, np.ones((9, 9))) - label
        shares.append(label.mean())
        contrasts.append(image[label == 1].mean() - image[ring == 1].mean())
    assert 0.01 < np.mean(shares) < 0.06
    assert np.mean(contrasts) > 10


def test_the_data_set_draws_what_is_missing_and_leaves_what_is_there(tmp_path):
    root = tmp_path / "fundus"
    train = FundusDataset(str(root), [], "train", train=3, val=2, image_size=(32, 24))
    val = FundusDataset(str(root), [], "val")
    assert (len(train), len(val)) == (3, 2)
    sample = val[0]
    assert sample["img"].shape == (3, 24, 32) and sample["label"].shape[-2:] == (24, 32)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"val": 4}, "has 2 val images, but val is 4; remove the folder"),
        ({"train": 4}, "has 3 train images, but train is 4"),
        ({"image_size": [24, 32]}, r"has images of 32x24, but image_size is \[24, 32\]"),
    ],
)
def test_what_is_there_and_not_what_is_asked_for_is_said(tmp_path, asked, message):
    FundusDataset(str(tmp_path / "fundus"), [], "train", train=3, val=2, image_size=(32, 24))
    with pytest.raises(ConfigError, match=message):
        FundusDataset(str(tmp_path / "fundus"), [], "val", **asked)


def _write(root):
    write_fundus(root, 4, 2, (32, 32))


def _write_for_long(root):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits it ignored
    write_fundus(root, 100_000, 2, (32, 32))


def test_several_processes_may_draw_at_once(tmp_path):
    root = str(tmp_path / "fundus")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write, args=(root,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0, 0]
    assert len(contents(root)) == 2 * 6 + 2
    assert [p.name for p in tmp_path.iterdir()] == ["fundus"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_drawing_that_is_killed_leaves_no_half_data_set(tmp_path, number):
    root = tmp_path / "fundus"
    process = multiprocessing.get_context("spawn").Process(target=_write_for_long, args=(str(root),))
    process.start()
    until = time.monotonic() + 60
    while len(list(tmp_path.glob(".fundus.*/images/*"))) < 3 and time.monotonic() < until:
        time.sleep(0.02)
    begun = list(tmp_path.iterdir())
    os.kill(process.pid, number)
    process.join(30)
    ended = process.exitcode
    process.kill()
    assert len(begun) == 1 and ended not in (0, None)
    assert not root.exists()
    if number == signal.SIGINT:  # a killed process cannot tidy up
        assert list(tmp_path.iterdir()) == []
    _write(str(root))
    assert len(contents(root)) == 2 * 6 + 2


def test_a_disk_that_is_full_is_an_error_and_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # the images are larger, the labels are not
    try:
        with pytest.raises(OSError, match="File too large"):
            _write(str(tmp_path / "fundus"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_every_listed_file_is_a_picture_of_the_size_asked_for(tmp_path):
    write_fundus(str(tmp_path / "fundus"), 3, 2, (40, 24))
    for name, count in (("train", 3), ("val", 2)):
        lines = (tmp_path / f"fundus/{name}_list.txt").read_text().splitlines()
        assert len(set(lines)) == count
        for line in lines:
            image, label = (cv2.imread(str(tmp_path / "fundus" / f), cv2.IMREAD_UNCHANGED) for f in line.split())
            assert image.shape == (24, 40, 3) and label.shape == (24, 40) and set(np.unique(label)) == {0, 1}
