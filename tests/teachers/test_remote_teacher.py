"""A served teacher in a training step: what was asked ahead, what is asked at once, and what is not asked at all."""

import numpy as np
import paddle
import pytest

from paddleseg_ext.data.loader import TrainLoader
from paddleseg_ext.data.sampler import ResumableSampler
from paddleseg_ext.service.endpoints import FixedEndpoints
from paddleseg_ext.service.spec import ModelSpec, TensorSpec
from paddleseg_ext.teachers.remote import PREFIX, RemoteTeacher, ServedLayer, Service
from paddleseg_ext.types import Batch

SPEC = ModelSpec(
    *("seg", "1"),
    (TensorSpec("x", "FP32", (-1, 3, -1, -1)),),
    (TensorSpec("logits", "FP16", (-1, 2, -1, -1)), TensorSpec("layer4", "FP16", (-1, 1, -1, -1))),
)


def said(x):
    small = x[:, :, ::4, ::4]
    return {"logits": small[:, :2].astype("float16"), "layer4": small[:, 2:].astype("float16")}


class Connection:
    """A teacher in memory that notes what it is asked for."""

    def __init__(self, asked):
        self.asked = asked

    async def describe(self, seconds):
        return SPEC

    async def infer(self, inputs, outputs, seconds):
        self.asked.append(tuple(outputs))
        return {name: said(inputs["x"])[name] for name in outputs}

    async def close(self):
        pass


@pytest.fixture
def asked():
    return []


@pytest.fixture
def teacher(asked):
    endpoints = FixedEndpoints(["127.0.0.1:1"])
    service = Service(SPEC, "x", lambda rates: endpoints, lambda _: Connection(asked), 10.0)
    return RemoteTeacher(service, ["logits"], {"hidden_0": "layer4"})


class Images(paddle.io.Dataset):
    file_list = [[f"{i}.png"] for i in range(12)]

    def __len__(self):
        return 12

    def __getitem__(self, index):
        image = np.random.default_rng(index).random((3, 16, 8), np.float32)
        return {"img": image, "label": np.full((16, 8), index)}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_batch_of_training_comes_with_its_own_answers(teacher, asked, num_workers):
    sampler = ResumableSampler(12, 2, 3, 0, 20)
    plain = list(TrainLoader(Images(), sampler))
    ahead = TrainLoader(Images(), sampler, num_workers, teacher.ahead())
    for number, (batch, wanted) in enumerate(zip(ahead, plain, strict=True)):
        assert batch.iteration == number and batch.files == wanted.files
        outputs = teacher(batch)
        expected = said(wanted.images.numpy())
        np.testing.assert_array_equal(outputs.logits[0].numpy(), expected["logits"].astype("float32"))
        np.testing.assert_array_equal(outputs.features["hidden_0"].numpy(), expected["layer4"].astype("float32"))
    assert asked == [("logits", "layer4")] * 20


def test_a_batch_that_nobody_asked_about_is_asked_about_at_once(teacher, asked):
    images = paddle.rand([2, 3, 8, 8])
    outputs = teacher(Batch(images, paddle.zeros([2, 8, 8], "int64")))
    np.testing.assert_array_equal(outputs.logits[0].numpy(), said(images.numpy())["logits"].astype("float32"))
    assert outputs.logits[0].dtype == paddle.float32 and outputs.logits[0].stop_gradient
    assert asked == [("logits", "layer4")]


def test_only_what_is_used_is_asked_for(teacher, asked):
    [batch] = TrainLoader(Images(), ResumableSampler(12, 2, 3, 0, 1), 0, teacher.only(0, ["hidden_0"]).ahead())
    assert PREFIX + "layer4" in batch.extra and PREFIX + "logits" not in batch.extra
    assert asked == [("layer4",)]


def test_a_served_layer_gives_logits_of_the_images_size(teacher, asked):
    [logits] = ServedLayer(teacher)(paddle.rand([1, 3, 16, 8]))
    assert logits.shape == [1, 2, 16, 8] and asked == [("logits",)]
