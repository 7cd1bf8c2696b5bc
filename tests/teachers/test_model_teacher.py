"""A Paddle layer as the teacher: frozen in every way."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_ext.distill.adaptor import AdaptorBase
from paddleseg_ext.distill.own_resolution import Source
from paddleseg_ext.distill.recorder import Recorder, no_features
from paddleseg_ext.models.weights import digest
from paddleseg_ext.teachers import ModelTeacher
from paddleseg_ext.types import Batch


class Model(nn.Layer):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2D(3, 6, 3, padding=1), nn.BatchNorm2D(6), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Conv2D(6, 4, 1)

    def forward(self, x):
        return [self.head(self.body(x))]


@pytest.fixture
def model():
    paddle.seed(0)
    return Model()


@pytest.fixture
def batch():
    paddle.seed(1)
    return Batch(paddle.rand([2, 3, 8, 8]), paddle.zeros([2, 8, 8], "int64"))


def test_dropout_and_batch_norm_are_those_of_evaluation(model, batch):
    model.train()
    teacher = ModelTeacher(model, no_features(model))
    first, second = (teacher(batch).logits[0].numpy() for _ in range(2))
    assert np.array_equal(first, second)
    x = model.body[0](batch.images)
    scale = model.body[1]
    x = (x - scale._mean.reshape([1, -1, 1, 1])) / (scale._variance.reshape([1, -1, 1, 1]) + 1e-5).sqrt()
    wanted = model.head(nn.functional.relu(x)).numpy()
    np.testing.assert_allclose(first, wanted, atol=1e-5)


def test_there_is_no_autograd_graph_and_no_gradient(model, batch):
    batch.images.stop_gradient = False
    outputs = ModelTeacher(model, no_features(model))(batch)
    assert outputs.logits[0].stop_gradient and outputs.logits[0].is_leaf
    assert all(p.stop_gradient for p in model.parameters())


def test_features_come_detached_with_the_outputs(model, batch):
    class Adaptor(AdaptorBase):
        def mapping_layers(self):
            return {"hidden_0": "body.0"}

    with Recorder(Adaptor(model)) as recorder:
        outputs = ModelTeacher(model, recorder)(batch)
    assert list(outputs.features) == ["hidden_0"] and outputs.features["hidden_0"].stop_gradient
    assert np.array_equal(outputs.features["hidden_0"].numpy(), model.body[0](batch.images).numpy())


def test_the_weights_stay_through_many_batches(model, batch):
    teacher = ModelTeacher(model, no_features(model))
    before = digest(model)
    for _ in range(3):
        teacher(batch)
    assert digest(model) == before


def test_outputs_are_given_at_the_networks_own_resolution_where_it_is_known(batch):
    class Enlarged(Model):
        def forward(self, x):
            return [nn.functional.interpolate(super().forward(x)[0], scale_factor=2, mode="bilinear")]

    model = Enlarged()
    with Recorder(AdaptorBase(model), ["head"]) as recorder:
        (logits,) = ModelTeacher(model, recorder, {0: Source("head")})(batch).logits
    assert logits.shape == [2, 4, 8, 8]
    whole = nn.functional.interpolate(logits, scale_factor=2, mode="bilinear")
    np.testing.assert_allclose(whole.numpy(), model(batch.images)[0].numpy(), atol=1e-6)


@pytest.mark.parametrize("name", ["head.weight", "body.1._mean"])
def test_a_digest_notices_the_smallest_change_of_a_weight_or_a_statistic(model, name):
    before = digest(model)
    tensor = model.state_dict()[name]
    value = tensor.numpy().copy()
    value.flat[0] = np.nextafter(value.flat[0], np.float32(1))
    tensor.set_value(value)
    assert digest(model) != before
