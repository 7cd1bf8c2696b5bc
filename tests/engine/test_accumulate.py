"""Batches worked through in parts: the same update as by the whole."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_ext.engine.trainer import Trainer
from paddleseg_ext.types import Batch, StepOutput


class Step(nn.Layer):
    def __init__(self):
        super().__init__()
        paddle.seed(3)
        self.net = nn.Sequential(nn.Conv2D(3, 4, 3), nn.ReLU(), nn.Conv2D(4, 5, 1))
        self.sizes = []

    def forward(self, batch):
        self.sizes.append(batch.images.shape[0])
        logits = self.net(batch.images)
        labels = batch.labels.unsqueeze(-1)
        loss = nn.functional.cross_entropy(logits.transpose([0, 2, 3, 1]), labels, ignore_index=255)
        return StepOutput([logits.detach()], {"first": loss, "second": 0.1 * logits.square().mean()})


def batches(count, images=4):
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = paddle.to_tensor(rng.normal(size=[images, 3, 6, 6]).astype("float32"))
        labels = paddle.to_tensor(rng.integers(0, 5, [images, 4, 4]))
        yield Batch(pixels, labels, tuple(f"{i}_{n}" for n in range(images)), {"edge": labels}, i)


def trained(accumulate, start=0, step=None, optimizer=None, iters=4, ignored=()):
    step = step or Step()
    optimizer = optimizer or paddle.optimizer.Momentum(0.1, parameters=step.parameters())
    loader = list(batches(iters))[start:]
    for batch in loader:
        for image in ignored:
            batch.labels[image, 1:] = 255
    progress = Trainer(accumulate=accumulate).run(step, loader, optimizer, [], iters, start)
    return step, progress, optimizer


def test_an_update_by_parts_is_that_of_the_whole_batch():
    whole, first, _ = trained(1)
    for parts in (2, 4):
        step, progress, _ = trained(parts)
        assert step.sizes == [4 // parts] * (4 * parts)
        for ours, theirs in zip(step.parameters(), whole.parameters(), strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-6)
        for name, loss in first.output.losses.items():  # the log shows the whole batch's
            assert float(progress.output.losses[name]) == pytest.approx(float(loss), rel=1e-4)


def test_parts_count_alike_however_many_valid_pixels_they_have():
    """So that by parts an update is that of the whole where all have equally many, as docs/training.md says."""
    for ignored, same in (((0, 2), True), ((0, 1), False)):
        whole, parts = (trained(n, iters=1, ignored=ignored)[1].output.losses["first"] for n in (1, 2))
        assert (float(whole) == pytest.approx(float(parts), rel=1e-4)) == same


def test_a_run_that_is_cut_goes_on_to_the_same_bits():
    whole, *_ = trained(2)
    step, _, optimizer = trained(2, iters=2)
    trained(2, start=2, step=step, optimizer=optimizer)
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(step.parameters(), whole.parameters(), strict=True))


def test_a_batch_is_divided_in_order_with_all_that_belongs_to_it():
    (batch,) = batches(1)
    first, second = batch.parts(2)
    assert second.files == ("0_2", "0_3") and first.iteration == second.iteration == batch.iteration
    for name in ("images", "labels"):
        halves = [getattr(part, name).numpy() for part in (first, second)]
        assert np.array_equal(np.concatenate(halves), getattr(batch, name).numpy())
    assert np.array_equal(second.extra["edge"].numpy(), batch.extra["edge"].numpy()[2:])
    with pytest.raises(ValueError, match="4 images cannot be divided into 3 equal parts"):
        batch.parts(3)
