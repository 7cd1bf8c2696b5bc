"""What is measured of models: size, time, classes."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.report.measure import Judged, activity, certainty, iou, latencies, size_of


class Net(nn.Layer):
    """A convolution at half size in two groups, a transposed one back up, and a linear layer on the side."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2D(4, 6, 3, stride=2, padding=1, groups=2)
        self.up = nn.Conv2DTranspose(6, 3, 2, stride=2)
        self.side = nn.Linear(6, 5)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        h = self.down(x)
        self.side(h.mean([2, 3]))
        return [self.up(h)]


def test_multiply_adds_are_those_of_every_kernel():
    model = Net()
    size = size_of(model, [1, 4, 8, 10])
    down, up, side = (4 * 5) * 6 * (2 * 9), (4 * 5) * 6 * (3 * 4), 6 * 5
    assert size.multiply_adds == down + up + side
    assert size.parameters == (6 * 2 * 9 + 6) + (6 * 3 * 4 + 3) + (6 * 5 + 5)
    assert not any(layer._forward_post_hooks for layer in model.sublayers())


def test_models_are_timed_in_turn_and_slow_ones_not_for_ever():
    models = {"a": Net(), "b": Net()}
    found = latencies(models, [1, 4, 8, 10], seconds=0)
    assert {m.calls for m in models.values()} == {11}  # one to warm up, and the fewest rounds
    for taken in found.values():
        assert taken.rounds == 10 and 0 < taken.median <= taken.p95


def test_iou_is_that_of_the_sets_of_pixels():
    rng = np.random.default_rng(0)
    label, given = rng.integers(0, 3, 500), rng.integers(0, 3, 500)
    counts = np.zeros([4, 4], np.int64)
    np.add.at(counts, (label, given), 1)
    wanted = [((label == c) & (given == c)).sum() / ((label == c) | (given == c)).sum() for c in range(3)]
    np.testing.assert_allclose(iou(counts)[:3], wanted)
    assert np.isnan(iou(counts)[3])
    judged = Judged(np.stack([counts, np.diag([7, 0, 2, 0])]))
    np.testing.assert_allclose(judged.image_miou, [np.mean(wanted), 1])
    assert judged.miou == pytest.approx(np.nan_to_num(iou(counts + np.diag([7, 0, 2, 0]))).mean())


def test_what_a_layer_sees_is_one_map_from_0_to_1():
    model, image = Net(), np.random.default_rng(0).random((4, 8, 10), np.float32)
    (values,) = activity(model, ["down"], image).values()
    with paddle.no_grad():
        wanted = model.down(paddle.to_tensor(image[None])).abs().mean(1)[0].numpy()
    np.testing.assert_allclose(values, (wanted - wanted.min()) / np.ptp(wanted), rtol=1e-4, atol=1e-6)
    assert certainty(model, 0, image).shape == (8, 10) and certainty(model, 1, image) is None
    with pytest.raises(ConfigError, match="no layer 'dwon'"):
        activity(model, ["dwon"], image)
