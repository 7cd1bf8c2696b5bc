"""The drawn images of the quick start."""

import contextlib
import multiprocessing
from pathlib import Path

import cv2
import numpy as np

from paddleseg_ext.data.fundus import FundusDataset, draw_fundus, write_fundus


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
    val = FundusDataset(str(root), [], "val", train=30, val=20)
    assert (len(train), len(val)) == (3, 2)
    sample = val[0]
    assert sample["img"].shape == (3, 24, 32) and sample["label"].shape[-2:] == (24, 32)


def _write(root):
    write_fundus(root, 4, 2, (32, 32))


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


def test_a_drawing_that_is_cut_short_leaves_no_half_data_set(tmp_path, monkeypatch):
    root, calls = tmp_path / "fundus", []

    def dies(path, image):
        calls.append(path)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return True

    with monkeypatch.context() as patch:
        patch.setattr(cv2, "imwrite", dies)
        with contextlib.suppress(KeyboardInterrupt):
            write_fundus(str(root), 4, 2, (32, 32))
    assert not root.exists()
    write_fundus(str(root), 4, 2, (32, 32))
    assert len(contents(root)) == 14
