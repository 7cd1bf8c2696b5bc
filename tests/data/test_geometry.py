"""Where the pixels of a transformed image come from."""

import random

import cv2
import numpy as np
import pytest
from paddleseg import transforms as T
from paddleseg.datasets import Dataset
from paddleseg.transforms import transforms as T2
from PIL import Image

from paddleseg_ext import registry
from paddleseg_ext.data.geometry import KEY, Axis, follow, untouched
from paddleseg_ext.errors import ConfigError

SIZE = 48, 64


@pytest.fixture(autouse=True)
def mended_paddleseg():
    registry.names("transform")


MOVES = {
    "flip": lambda: [T.RandomHorizontalFlip(1.0)],
    "upside down": lambda: [T.RandomVerticalFlip(1.0)],
    "maybe flip": lambda: [T.RandomHorizontalFlip(), T.RandomVerticalFlip(0.5)],
    "resize": lambda: [T.Resize([90, 70])],
    "resize, ratio kept": lambda: [T.Resize([90, 70], keep_ratio=True)],
    "smaller": lambda: [T.Resize([32, 24])],
    "long side": lambda: [T.ResizeByLong(100)],
    "short side": lambda: [T.ResizeByShort(96)],
    "limit": lambda: [T2.LimitLong(max_long=60)],
    "range": lambda: [T.ResizeRangeScaling(50, 120)],
    "steps": lambda: [T.ResizeStepScaling(0.5, 2.0, 0.25)],
    "crop": lambda: [T.RandomPaddingCrop([40, 30])],
    "crop beyond": lambda: [T.RandomPaddingCrop([80, 30])],
    "varied crop": lambda: [T.RandomPaddingCrop([40, 30], category_max_ratio=0.9)],
    "centre crop": lambda: [T2.RandomCenterCrop((0.6, 0.7))],
    "pad": lambda: [T.Padding([80, 70])],
    "pad to ratio": lambda: [T2.PaddingByAspectRatio(2.0)],
    "aspect": lambda: [T2.RandomScaleAspect(0.3, 0.5)],
    "usual": lambda: [
        T.ResizeStepScaling(0.5, 2.0, 0.25),
        T.RandomPaddingCrop([56, 56]),
        T.RandomHorizontalFlip(),
        T.RandomDistort(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0.0),
    ],
    "all at once": lambda: [
        T.RandomVerticalFlip(0.5),
        T.RandomPaddingCrop([60, 60]),
        T.ResizeStepScaling(0.75, 1.5, 0.25),
        T.RandomHorizontalFlip(),
        T2.RandomScaleAspect(0.5, 0.7),
        T.Padding([100, 100]),
        T.RandomVerticalFlip(0.5),
    ],
}


class Numbered:
    """Puts an image's own coordinates in its place: every pixel says where it was. Padding will be -1000."""

    keeps_pixels = True

    def __call__(self, data):
        y, x = np.meshgrid(*(np.arange(n, dtype="float32") for n in data["img"].shape[:2]), indexing="ij")
        data["img"] = np.stack([y, x, np.zeros_like(x)], -1)
        return data


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (*SIZE, 3), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(rng.integers(0, 3, SIZE, np.uint8)).save(tmp_path / "a_label.png")
    (tmp_path / "list.txt").write_text("a.png a_label.png\n")
    return tmp_path


def dataset(folder, transforms):
    return Dataset("train", str(folder), transforms, 3, train_path=str(folder / "list.txt"))


def drawn(data, seed):
    random.seed(seed)
    np.random.seed(seed)
    return data[0]


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("seed", range(4))
def test_every_pixel_was_where_the_geometry_says(folder, name, seed, monkeypatch):
    moves = MOVES[name]()
    for move in moves:
        if hasattr(move, "im_padding_value"):
            move.im_padding_value = -1000
    # PaddleSeg's RandomDistort rounds to whole values, so the test leaves its draws and not its output in.
    monkeypatch.setattr(T.RandomDistort, "__call__", lambda self, data: data)
    data = dataset(folder, [Numbered(), *moves])
    follow(data, "transforms")
    sample = drawn(data, seed)
    y, x, padding = sample["img"]
    axes = [Axis(*axis) for axis in sample[KEY]]
    assert y.shape == tuple(axis.size for axis in axes)
    centres = [np.arange(axis.size) + 0.5 for axis in axes]
    # Resizing mixes the pixels beside an edge, be it the image's or that of padding: there an image cannot say where it was.
    inside = [(c > a.low + 3) & (c < a.high - 3) for c, a in zip(centres, axes, strict=True)]
    outside = [(c < a.low - 3) | (c > a.high + 3) for c, a in zip(centres, axes, strict=True)]
    assert (padding[np.ix_(*inside)] == 0).all()
    assert (padding[outside[0]] == -1000).all() and (padding[:, outside[1]] == -1000).all()
    for axis, line in enumerate((y[:, inside[1]][:, 0], x[inside[0]][0])):
        told = axes[axis].before(centres[axis]) - 0.5
        deep = inside[axis] & (told > 2) & (told < SIZE[axis] - 3)
        assert deep.sum() > 5
        np.testing.assert_allclose(line[deep], told[deep], atol=2e-3)


@pytest.mark.parametrize("name", MOVES)
def test_following_changes_neither_images_nor_labels_nor_draws(folder, name):
    plain, followed = dataset(folder, MOVES[name]()), dataset(folder, MOVES[name]())
    follow(followed, "transforms")
    follow(followed, "transforms")  # again: nothing more
    a, b = drawn(plain, 3), drawn(followed, 3)
    assert set(b) - set(a) == {KEY} and a["gt_fields"] == b["gt_fields"]
    assert np.array_equal(a["img"], b["img"]) and np.array_equal(a["label"], b["label"])
    drawn(plain, 5)
    after = random.random(), np.random.random()
    drawn(followed, 5)
    assert after == (random.random(), np.random.random())


def test_an_untransformed_image_is_untouched(folder):
    data = dataset(folder, [])
    follow(data, "transforms")
    assert [Axis(*axis) for axis in data[0][KEY]] == [untouched(n) for n in SIZE]


def test_before_and_after_are_inverse_and_end_at_the_image():
    axis = untouched(40).then(
        Axis(-0.5, 30.0, 0.0, 50.0, 60.0)
    )  # mirrored, 20 pixels of it, twice as large, padded by 10
    spots = np.array([0.0, 10.5, 50.0])
    np.testing.assert_allclose(axis.before(spots), [30.0, 24.75, 5.0])
    np.testing.assert_allclose(axis.after(axis.before(spots)), spots)
    assert axis.before(np.array([59.0])) == axis.before(np.array([50.0])) and axis.after(np.array([40.0])) == 0


class Mine:
    def __call__(self, data):
        return data


@pytest.mark.parametrize("op", [T.RandomRotation(), T.RandomAffine(), T.ScalePadding(), Mine()])
def test_what_cannot_be_followed_is_refused_by_name(folder, op):
    data = dataset(folder, [T.Normalize(), op])
    with pytest.raises(ConfigError, match=rf"^s\.yml: transforms\[1\]: {type(op).__name__} cannot be followed"):
        follow(data, "s.yml: transforms")
    assert data.transforms.transforms[1] is op and KEY not in drawn(data, 0)


def test_ones_own_transform_may_say_that_it_moves_nothing(folder):
    data = dataset(folder, [Numbered(), T.RandomHorizontalFlip(1.0)])
    follow(data, "transforms")
    assert Axis(*data[0][KEY][1]).scale == -1


def test_a_grey_image_is_followed_too(folder):
    cv2.imwrite(str(folder / "a.png"), np.zeros(SIZE, np.uint8))
    data = Dataset(
        "train", str(folder), [T.RandomPaddingCrop([80, 30])], 3, train_path=str(folder / "list.txt"), img_channels=1
    )
    follow(data, "transforms")
    assert drawn(data, 0)[KEY][1].tolist() == [1, 0, 0, 64, 80]
