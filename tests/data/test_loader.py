"""Batches: what is in them, in which order, and what randomness depends on."""

import random

import cv2
import numpy as np
import pytest
from paddle.io import Dataset
from paddleseg.datasets import Dataset as PaddleSegDataset

from paddleseg_ext.data.loader import TrainLoader
from paddleseg_ext.data.sampler import ResumableSampler
from paddleseg_ext.errors import DataError


class Noisy(Dataset):
    """Ten samples whose pixels are drawn from both global generators, as PaddleSeg's transforms draw."""

    num_classes, ignore_index = 2, 255

    def __init__(self, size=4):
        super().__init__()
        self.size = size
        self.file_list = [[f"image_{i}.png", f"label_{i}.png"] for i in range(10)]

    def __len__(self):
        return 10

    def __getitem__(self, index):
        height = self.size + (index if self.size == 0 else 0)
        noise = np.random.rand(3, height, 4) + random.random()
        label = np.full([height, 4], index % 2, np.uint8)
        return {"img": noise.astype("float32"), "label": label, "trans_info": [("resize", (4, 4))], "edge": label}


def sampler(**changes):
    settings = {"length": 10, "batch_size": 2, "seed": 7, "start": 0, "stop": 12} | changes
    return ResumableSampler(**settings)


def images_by_file(loader):
    return [{f: batch.images[i].numpy() for i, f in enumerate(batch.files)} for batch in loader]


def test_each_epoch_holds_every_sample_once_in_another_order():
    keys = [key for batch in sampler(stop=10) for key in batch]
    first, second = keys[:10], keys[10:]
    assert sorted(i for _, i in first) == sorted(i for _, i in second) == list(range(10))
    assert [i for _, i in first] != [i for _, i in second]
    assert {e for e, _ in first} == {0} and {e for e, _ in second} == {1}


def test_resuming_in_the_middle_of_an_epoch_continues_the_same_order():
    assert list(sampler(start=7)) == list(sampler())[7:]


def test_ranks_share_out_the_batch_of_one_process():
    whole = list(sampler(batch_size=4))
    parts = [list(sampler(rank=r, ranks=2)) for r in (0, 1)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_a_data_set_smaller_than_a_batch_is_an_error_and_not_an_endless_wait():
    with pytest.raises(DataError, match="10 samples, fewer than one batch: batch_size 6 x 2 processes"):
        sampler(batch_size=6, ranks=2)


@pytest.mark.parametrize("other", [{"num_workers": 2}, {"start": 5}])
def test_augmentation_depends_on_neither_workers_nor_where_training_started(other):
    start, workers = other.get("start", 0), other.get("num_workers", 0)
    plain = images_by_file(TrainLoader(Noisy(), sampler()))[start:]
    changed = images_by_file(TrainLoader(Noisy(), sampler(start=start), workers))
    for a, b in zip(plain, changed, strict=True):
        assert list(a) == list(b)
        assert all(np.array_equal(a[f], b[f]) for f in a)


def test_augmentation_differs_between_epochs_and_between_seeds():
    plain = images_by_file(TrainLoader(Noisy(), sampler(stop=10)))
    by_epoch = [{f: x for batch in plain[e : e + 5] for f, x in batch.items()} for e in (0, 5)]
    assert not np.array_equal(by_epoch[0]["image_0.png"], by_epoch[1]["image_0.png"])
    reseeded = {
        f: x for batch in images_by_file(TrainLoader(Noisy(), sampler(seed=8, stop=5))) for f, x in batch.items()
    }
    assert not np.array_equal(by_epoch[0]["image_0.png"], reseeded["image_0.png"])


def test_reading_data_leaves_the_global_generators_as_they_were():
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    next(iter(TrainLoader(Noisy(), sampler())))
    assert (random.random(), np.random.rand()) == expected


def test_a_batch_has_int64_labels_its_files_and_the_data_sets_other_arrays():
    batch = next(iter(TrainLoader(Noisy(), sampler())))
    assert str(batch.images.dtype) == "paddle.float32" and batch.images.shape == [2, 3, 4, 4]
    assert str(batch.labels.dtype) == "paddle.int64" and batch.labels.shape == [2, 4, 4]
    assert len(batch.files) == 2 and all(f.startswith("image_") for f in batch.files)
    assert batch.extra["edge"].shape == [2, 4, 4] and "trans_info" not in batch.extra


@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_different_sizes_in_a_batch_are_named(workers):
    with pytest.raises(
        DataError, match=r"differ in size after the transforms; add a Resize or a crop: image_\d.png \(\d+, 4\)"
    ):
        next(iter(TrainLoader(Noisy(size=0), sampler(), workers)))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_named(tmp_path, workers):
    for i in range(4):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.zeros([8, 8, 3], np.uint8))
    cv2.imwrite(str(tmp_path / "label.png"), np.zeros([8, 8], np.uint8))
    (tmp_path / "list.txt").write_text("".join(f"{i}.png label.png\n" for i in range(4)))
    options = {"dataset_root": str(tmp_path), "num_classes": 2, "train_path": str(tmp_path / "list.txt")}
    dataset = PaddleSegDataset(mode="train", transforms=[], **options)
    (tmp_path / "2.png").write_bytes(b"gone bad since it was checked")
    with pytest.raises(DataError, match="2.png: the image cannot be read"):
        list(TrainLoader(dataset, sampler(length=4, stop=2), workers))


def test_a_fault_in_a_data_set_keeps_its_own_error():
    class Faulty(Noisy):
        def __getitem__(self, index):
            raise ZeroDivisionError

    faulty = Faulty()
    faulty.file_list = None
    with pytest.raises(ZeroDivisionError):
        next(iter(TrainLoader(faulty, sampler())))
