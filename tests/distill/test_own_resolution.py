"""Logits before the final resize, found by looking."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_ext.distill.own_resolution import own_logits, replaced
from paddleseg_ext.types import Batch


class Segmenter(nn.Layer):
    def __init__(self, align_corners=False, resized=True):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2D(3, 6, 3, stride=4, padding=1), nn.BatchNorm2D(6), nn.ReLU(), nn.Dropout(0.5)
        )
        self.heads = nn.LayerList([nn.Conv2D(6, 5, 1), nn.Conv2D(6, 5, 1)])
        self.align_corners, self.resized = align_corners, resized

    def forward(self, x):
        logits = [head(self.body(x)) for head in self.heads[: 2 if self.training else 1]]
        if not self.resized:
            return logits
        return [
            nn.functional.interpolate(y, x.shape[2:], mode="bilinear", align_corners=self.align_corners) for y in logits
        ]


@pytest.fixture
def batch():
    paddle.seed(0)
    return Batch(paddle.rand([2, 3, 16, 24]), paddle.zeros([2, 16, 24], "int64"))


def test_each_output_is_traced_to_the_layer_before_its_resize(batch):
    model = Segmenter()
    assert own_logits(model, batch) == {0: "heads.0", 1: "heads.1"}
    model.eval()
    assert own_logits(model, batch) == {0: "heads.0"}


def test_outputs_that_are_wanted_as_they_are_stay_out(batch):
    assert own_logits(Segmenter(), batch, {0}) == {1: "heads.1"}


def test_what_is_not_resized_is_left_out(batch):
    assert own_logits(Segmenter(resized=False), batch) == {}


def test_a_resize_with_aligned_corners_is_left_as_it_is(batch):
    """Its maps lie beside those of a teacher that resizes otherwise."""
    assert own_logits(Segmenter(align_corners=True), batch) == {}


def test_what_is_changed_after_the_resize_is_left_out(batch):
    class Changed(Segmenter):
        def forward(self, x):
            return [2 * y for y in super().forward(x)]

    assert own_logits(Changed(), batch) == {}


def test_looking_leaves_statistics_mode_and_hooks_as_they_were(batch):
    model = Segmenter()
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    own_logits(model, batch)
    assert model.training and not any(layer._forward_post_hooks for layer in model.sublayers())
    assert all(np.array_equal(value.numpy(), before[name]) for name, value in model.state_dict().items())


def test_outputs_are_replaced_where_they_are_known():
    assert replaced(["a", "b"], {"x": "small"}, {1: "x"}) == ["a", "small"]
