"""PaddleSeg's transforms and data sets with the current NumPy and OpenCV."""

import random

import cv2
import numpy as np
import pytest

from tests.compat.world import component

ARGUMENTS: dict[str, list[dict]] = {
    "ResizeByLong": [{"long_size": 80}, {"long_size": 32}],
    "ResizeByShort": [{"short_size": 80}, {"short_size": [20, 30]}, {"short_size": 80, "max_size": 60}],
    "LimitLong": [{"max_long": 32}, {"min_long": 100}],
    "Padding": [{"target_size": (96, 80)}],
    "Resize": [
        *({"target_size": (32, 40), "interp": i} for i in ("NEAREST", "LINEAR", "CUBIC", "AREA", "LANCZOS4", "RANDOM")),
        {"target_size": (100, 40), "keep_ratio": True, "size_divisor": 32},
    ],
    "RandomPaddingCrop": [{}, {"crop_size": (32, 32), "category_max_ratio": 0.5}],
    "RandomHorizontalFlip": [{"prob": 1.0}],
    "RandomVerticalFlip": [{"prob": 1.0}],
    "RandomBlur": [{"prob": 1.0, "blur_type": kind} for kind in ("gaussian", "median", "blur", "random")],
    "RandomNoise": [{"prob": 1.0}],
    "RandomDistort": [
        {f"{what}_prob": 1 for what in ("brightness", "contrast", "saturation", "hue", "sharpness")},
    ],
    "Normalize": [{}, {"mean": [0.5], "std": [0.5]}],
    "ResizeStepScaling": [{}, {"scale_step_size": 0}],
    "RandomRotation": [{}, {"max_rotation": 0}],
    "RandomAffine": [{}, {"translation_offset": 5}],
    "ScalePadding": [{}, {"target_size": (40, 56)}],
}
NAMES = [
    *("LimitLong", "Normalize", "Padding", "PaddingByAspectRatio", "RandomAffine", "RandomBlur", "RandomCenterCrop"),
    *("RandomDistort", "RandomHorizontalFlip", "RandomNoise", "RandomPaddingCrop", "RandomRotation"),
    *("RandomScaleAspect", "RandomVerticalFlip", "Resize", "ResizeByLong", "ResizeByShort", "ResizeRangeScaling"),
    *("ResizeStepScaling", "ScalePadding"),
]
ELSEWHERE = {"Compose", "GenerateInstanceTargets"}


def _sample(channels: int) -> dict:
    generator = np.random.default_rng(0)
    shape = (48, 64, channels) if channels > 1 else (48, 64)
    label = np.kron(generator.integers(0, 3, (6, 8)), np.ones((8, 8), int)).astype("uint8")
    label[:3] = 255
    image = generator.integers(0, 255, shape).astype("float32")
    return {"img": image, "label": label, "gt_fields": ["label"], "trans_info": []}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_transform_keeps_image_and_label_together_and_invents_no_class(name, channels):
    for params in ARGUMENTS.get(name, [{}]):
        random.seed(0)
        np.random.seed(0)
        data = component("TRANSFORMS", name)(**params)(_sample(channels))
        assert data["img"].shape[:2] == data["label"].shape
        assert data["img"].ndim == (2 if channels == 1 else 3)
        assert set(np.unique(data["label"])) <= {0, 1, 2, 255}


@pytest.mark.parametrize("ratio", [0.1, 0.9])
def test_crops_by_category_are_the_same_of_image_and_label(ratio):
    label = np.kron(np.random.default_rng(0).integers(0, 3, (6, 8)), np.ones((8, 8), int)).astype("uint8")
    data = {"img": np.stack([label + 10.0] * 3, -1), "label": label, "gt_fields": ["label"]}
    data = component("TRANSFORMS", "RandomPaddingCrop")(crop_size=(32, 32), category_max_ratio=ratio)(data)
    assert data["label"].shape == (32, 32)
    np.testing.assert_array_equal(data["img"][..., 0], data["label"] + 10.0)


def test_every_transform_of_paddleseg_is_tested():
    from paddleseg.cvlibs import manager

    theirs = {n for n, c in manager.TRANSFORMS.components_dict.items() if c.__module__.startswith("paddleseg.")}
    assert theirs <= set(NAMES) | ELSEWHERE


def test_scale_padding_works_without_labels():
    sample = {"img": _sample(3)["img"], "trans_info": []}
    assert component("TRANSFORMS", "ScalePadding")(target_size=(40, 40))(sample)["img"].shape == (40, 40, 3)


@pytest.fixture
def folder(tmp_path):
    sample = _sample(3)
    for name, array in (("image.png", sample["img"].astype("uint8")), ("label.png", sample["label"])):
        cv2.imwrite(str(tmp_path / name), array)
    for mode in ("train", "val"):
        (tmp_path / f"{mode}.txt").write_text("image.png label.png\n")
        (tmp_path / f"{mode}_list.txt").write_text("image.png label.png\n")
    return tmp_path


@pytest.mark.parametrize("mode", ["train", "val"])
def test_dataset_reads_its_list(folder, mode):
    transforms = [component("TRANSFORMS", "Resize")(target_size=(32, 24)), component("TRANSFORMS", "Normalize")()]
    paths = {f"{mode}_path": str(folder / f"{mode}.txt")}
    dataset = component("DATASETS", "Dataset")(
        mode=mode, dataset_root=str(folder), transforms=transforms, num_classes=3, edge=mode == "train", **paths
    )
    sample = dataset[0]
    assert len(dataset) == 1 and sample["img"].shape == (3, 24, 32) and sample["img"].dtype == np.float32
    assert sample["label"].shape == ((24, 32) if mode == "train" else (1, 48, 64))
    if mode == "train":
        assert set(np.unique(sample["edge"])) == {0, 1}


def test_optic_disc_reads_a_folder_that_is_there(folder):
    dataset = component("DATASETS", "OpticDiscSeg")(dataset_root=str(folder), transforms=[], mode="train")
    assert dataset[0]["img"].shape == (3, 48, 64)
