"""FSPLoss: how a model goes from one layer to a later one."""

import numpy as np
import paddle
import pytest
from formulas import IGNORED

from paddleseg_ext.config import Component
from paddleseg_ext.losses.build import build_distill_loss

LOSS = build_distill_loss(Component("FSPLoss", {}, "test"), IGNORED, 3)


@pytest.fixture
def example():
    """Two features a side, the first at twice the size."""
    rng = np.random.default_rng(0)
    sides = [[rng.normal(0, 1, shape).astype("float32") for shape in ((2, 3, 4, 6), (2, 5, 2, 3))] for _ in range(2)]
    label = rng.integers(0, 3, (2, 4, 6))
    label[rng.random(label.shape) < 0.2] = IGNORED
    return *sides, label


def flow(first, second, label):
    """F1 F2^T over the valid cells of the smaller map, each the mean of its valid pixels of the larger."""
    total, count = np.zeros((first.shape[0], second.shape[0])), 0
    for i, j in np.ndindex(second.shape[1:]):
        if label[2 * i, 2 * j] == IGNORED:
            continue
        window = (slice(None), slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2))
        mean = first[window][:, label[window[1:]] != IGNORED].astype("float64").mean(1)
        total += np.outer(mean, second[:, i, j].astype("float64"))
        count += 1
    return total / count


def formula(student, teacher, label):
    flows = [[flow(side[0][n], side[1][n], label[n]) for n in range(len(label))] for side in (student, teacher)]
    return ((np.array(flows[0]) - np.array(flows[1])) ** 2).mean()


def tensors(side):
    made = [paddle.to_tensor(x) for x in side]
    for x in made:
        x.stop_gradient = False
    return made


def test_the_value_is_the_formula(example):
    student, teacher, label = example
    value = LOSS(tensors(student), tensors(teacher), paddle.to_tensor(label))
    assert value.shape == [] and value.dtype == paddle.float32
    np.testing.assert_allclose(float(value), formula(*example), rtol=1e-5)


def test_the_gradient_is_that_of_the_formula_and_the_teacher_gets_none(example):
    student, teacher, label = example
    ours, theirs = tensors(student), tensors(teacher)
    LOSS(ours, theirs, paddle.to_tensor(label)).backward()
    assert all(x.grad is None for x in theirs)
    for which in (0, 1):
        wanted, step = np.zeros(student[which].shape), 1e-6
        for index in np.ndindex(wanted.shape):
            for sign in (1, -1):
                moved = [x.astype("float64") for x in student]
                moved[which][index] += sign * step
                wanted[index] += sign * formula(moved, teacher, label) / (2 * step)
        assert np.abs(wanted).max() > 1e-4
        np.testing.assert_allclose(ours[which].grad.numpy(), wanted, atol=1e-6, rtol=1e-3)


def test_the_two_sides_may_have_different_resolutions(example):
    student, _, _ = example
    larger = [x.repeat(2, axis=2).repeat(2, axis=3) for x in student]
    assert abs(float(LOSS(tensors(student), tensors(larger)))) < 1e-10
    assert LOSS.fits([2, 3, 4, 6], [2, 3, 8, 12]) and not LOSS.fits([2, 3, 4, 6], [2, 4, 4, 6])


def test_ignored_pixels_change_nothing_bit_for_bit(example):
    student, teacher, label = example
    value = LOSS(tensors(student), tensors(teacher), paddle.to_tensor(label))
    dirty = [[x.copy() for x in side] for side in (student, teacher)]
    for first, second in dirty:
        first[np.broadcast_to((label == IGNORED)[:, None], first.shape)] = np.nan
        second[np.broadcast_to((label[:, ::2, ::2] == IGNORED)[:, None], second.shape)] = np.inf
    other = LOSS(*map(tensors, dirty), paddle.to_tensor(label))
    assert value.numpy().tobytes() == other.numpy().tobytes()


def test_a_batch_without_valid_pixels_gives_zero(example):
    student, teacher, label = example
    assert float(LOSS(tensors(student), tensors(teacher), paddle.full_like(paddle.to_tensor(label), IGNORED))) == 0
