"""Logits before the final resize, found by looking."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_ext.distill.own_resolution import Source, own_logits, replaced
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
    assert own_logits(model, batch) == {0: Source("heads.0"), 1: Source("heads.1")}
    model.eval()
    assert own_logits(model, batch) == {0: Source("heads.0")}


def test_outputs_that_are_wanted_as_they_are_stay_out(batch):
    assert own_logits(Segmenter(), batch, {0}) == {1: Source("heads.1")}


def test_what_is_not_resized_is_left_out(batch):
    assert own_logits(Segmenter(resized=False), batch) == {}


def test_a_map_with_aligned_corners_is_taken_at_the_centres_of_its_parts_of_the_image(batch):
    """As it is it would lie beside that of a teacher that resizes otherwise."""
    model = Segmenter(align_corners=True)
    own = own_logits(model, batch)
    assert own == {0: Source("heads.0", align_corners=True), 1: Source("heads.1", align_corners=True)}
    small, (height, width) = paddle.rand([2, 5, 4, 6]), batch.images.shape[2:]
    output = paddle.nn.functional.interpolate(small, [height, width], mode="bilinear", align_corners=True)
    (given,) = replaced([output], {"heads.0": small}, own)
    down, across = ((paddle.arange(n) + 0.5) * size / n - 0.5 for n, size in ((4, height), (6, width)))
    y, x = paddle.meshgrid(2 * down / (height - 1) - 1, 2 * across / (width - 1) - 1)
    grid = paddle.stack([x, y], axis=-1).expand([2, 4, 6, 2])
    expected = nn.functional.grid_sample(small, grid, align_corners=True)
    np.testing.assert_allclose(given.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)
    assert float((given - small).abs().max()) > 0.1


def test_models_that_resize_differently_are_compared_at_the_same_places():
    """A picture that both see the same way is the same at the network's resolution, within the positions' distance."""
    height, width = 64, 96
    maps = []
    for aligned in (False, True):
        down, across = (
            np.arange(n) * (size - 1) / (n - 1) if aligned else (np.arange(n) + 0.5) * size / n - 0.5
            for n, size in ((8, height), (12, width))
        )
        small = paddle.to_tensor((down[:, None] + 3 * across[None]).astype("float32")[None, None])
        source = Source("x", aligned)
        maps += replaced([source.enlarged(small, [height, width])], {"x": small}, {0: source})
    np.testing.assert_allclose(maps[0].numpy(), maps[1].numpy(), rtol=1e-4)


def test_aligned_corners_to_another_size_than_the_images_are_left_as_they_are(batch):
    class Half(Segmenter):
        def forward(self, x):
            return super().forward(x[:, :, ::2, ::2])

    assert own_logits(Half(align_corners=True), batch) == {}
    assert own_logits(Half(), batch) == {0: Source("heads.0"), 1: Source("heads.1")}


def test_gradients_pass_through_the_centred_map_in_float32():
    small = paddle.rand([1, 2, 4, 4])
    small.stop_gradient = False
    with paddle.amp.auto_cast(dtype="bfloat16"):
        (given,) = replaced([paddle.zeros([1, 2, 32, 32])], {"x": small}, {0: Source("x", align_corners=True)})
        assert given.dtype == paddle.float32
    given.sum().backward()
    assert abs(float(small.grad.sum()) - 32) < 1e-4 and float(small.grad.abs().min()) > 0


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
    a, b, small = paddle.zeros([1]), paddle.zeros([1, 1, 4, 4]), paddle.zeros([1, 1, 2, 2])
    given = replaced([a, b], {"x": small}, {1: Source("x")})
    assert given[0] is a and given[1] is small
