"""Images without labels."""

import numpy as np
import pytest
from paddleseg.datasets import Dataset
from paddleseg.transforms import Normalize, RandomHorizontalFlip, RandomPaddingCrop
from PIL import Image

from paddleseg_ext.data.unlabelled import WithUnlabelled
from paddleseg_ext.errors import ConfigError, DataError
from paddleseg_ext.types import UNLABELLED


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (8, 10, 3), np.uint8)).save(tmp_path / f"{i}.png")
        Image.fromarray(rng.integers(0, 3, (8, 10), np.uint8)).save(tmp_path / f"{i}_label.png")
    (tmp_path / "train.txt").write_text("0.png 0_label.png\n")
    (tmp_path / "more.txt").write_text("1.png\n\n2.png 2_label.png\n")
    return tmp_path


def dataset(folder, listed="more.txt", **options):
    transforms = [RandomPaddingCrop(crop_size=[12, 9]), RandomHorizontalFlip(prob=1.0), Normalize()]
    base = Dataset(
        transforms=transforms,
        dataset_root=str(folder),
        num_classes=3,
        mode="train",
        train_path=str(folder / "train.txt"),
        **options,
    )
    return base, WithUnlabelled(base, str(folder / listed), str(folder), "s.yml: distill.unlabelled")


def test_they_come_after_the_labelled_ones_and_are_transformed_alike(folder):
    base, both = dataset(folder)
    assert len(both) == 3 and [pair[1] for pair in both.file_list[1:]] == [None, None]
    np.random.seed(0)
    wanted = base[0]
    np.random.seed(0)
    assert np.array_equal(both[0]["label"], wanted["label"])
    sample = both[1]
    assert sample["img"].shape == (3, 9, 12) and sample["img"].dtype == np.float32
    image = np.asarray(Image.open(folder / "1.png"))[:, ::-1].astype("float32") / 255
    np.testing.assert_allclose(sample["img"][:, :8, 2:].transpose(1, 2, 0), (image - 0.5) / 0.5, atol=1e-6)


@pytest.mark.parametrize("ignore_index", [255, 254])
def test_their_pixels_are_marked_and_what_pads_them_is_ignored(folder, ignore_index):
    _, both = dataset(folder, ignore_index=ignore_index)
    label = both[2]["label"]
    assert set(np.unique(label)) == {UNLABELLED, 255} and (label == UNLABELLED).sum() == 8 * 10


def test_missing_images_and_empty_lists_are_named(folder):
    with pytest.raises(DataError, match="s.yml: distill.unlabelled: .*none.txt cannot be read"):
        dataset(folder, "none.txt")
    (folder / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="empty.txt lists no image"):
        dataset(folder, "empty.txt")
    (folder / "wrong.txt").write_text("7.png\n")
    with pytest.raises(DataError, match="s.yml: distill.unlabelled: 1 of 1 files are missing, the first: .*7.png"):
        dataset(folder, "wrong.txt")


def test_data_sets_that_make_edges_are_refused(folder):
    with pytest.raises(ConfigError, match="works with data sets of images and label files, without `edge`"):
        dataset(folder, edge=True)
