"""AttnFDLoss: features refined by CBAM."""

import numpy as np
import paddle
import pytest
from formulas import IGNORED

from paddleseg_ext.config import Component
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.losses.build import build_distill_loss

SHAPE = (3, 4, 5, 6)


def make(**arguments):
    paddle.seed(0)
    loss = build_distill_loss(Component("AttnFDLoss", {"reduction": 2, **arguments}, "test"), IGNORED, 3)
    loss.prepare(SHAPE, SHAPE)
    return loss


@pytest.fixture
def example():
    rng = np.random.default_rng(0)
    student, teacher = (rng.normal(0, 1, SHAPE).astype("float32") for _ in range(2))
    label = rng.integers(0, 3, (SHAPE[0], *SHAPE[2:]))
    label[rng.random(label.shape) < 0.2] = IGNORED
    return student, teacher, label


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def refined(attention, x, valid):
    """CBAM of one image [C, H, W] in float64, by its definition."""
    first, _, second = attention.channel
    w1, b1, w2, b2 = (p.numpy().astype("float64") for p in (first.weight, first.bias, second.weight, second.bias))

    def mlp(v):
        return w2[:, :, 0, 0] @ np.maximum(w1[:, :, 0, 0] @ v + b1, 0) + b2

    x = np.where(valid, x, 0).astype("float64")
    inside = x[:, valid]
    x = x * sigmoid(mlp(inside.mean(1)) + mlp(inside.max(1)))[:, None, None]
    seen = np.pad(np.stack([x.mean(0), x.max(0)]), ((0, 0), (3, 3), (3, 3)))
    weight = attention.spatial.weight.numpy().astype("float64")[0]
    spatial = np.zeros(x.shape[1:])
    for i, j in np.ndindex(spatial.shape):
        spatial[i, j] = (seen[:, i : i + 7, j : j + 7] * weight).sum()
    return x * sigmoid(spatial)


def formula(loss, student, teacher, label):
    total = 0.0
    for s, t, y in zip(student, teacher, label, strict=True):
        a, b = refined(loss.student_attention, s, y != IGNORED), refined(loss.teacher_attention, t, y != IGNORED)
        a, b = (np.where(y != IGNORED, x, 0) for x in (a, b))
        total += ((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2).sum()
    return total / len(student)


def run(loss, student, teacher, label):
    s, t = paddle.to_tensor(student), paddle.to_tensor(teacher)
    s.stop_gradient = t.stop_gradient = False
    value = loss(s, t, paddle.to_tensor(label))
    value.backward()
    return value, s.grad.numpy(), t.grad


def test_the_value_is_the_formula(example):
    loss = make()
    value, *_ = run(loss, *example)
    assert value.shape == [] and value.dtype == paddle.float32
    np.testing.assert_allclose(float(value), formula(loss, *example), rtol=1e-5)


def test_the_gradient_is_that_of_the_formula(example):
    student, teacher, label = (x[:1, ..., :2, :3] for x in example)
    loss = make()
    _, gradient, _ = run(loss, student, teacher, label)
    wanted, step = np.zeros(student.shape), 1e-6
    for index in np.ndindex(student.shape):
        for sign in (1, -1):
            moved = student.astype("float64")
            moved[index] += sign * step
            wanted[index] += sign * formula(loss, moved, teacher, label) / (2 * step)
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(gradient, wanted, atol=1e-5, rtol=1e-3)


def test_the_students_attention_learns_and_the_teachers_stays(example):
    loss = make()
    *_, teachers = run(loss, *example)
    assert teachers is None
    assert all(np.abs(p.grad.numpy()).max() > 0 for p in loss.student_attention.parameters())
    assert all(p.stop_gradient and p.grad is None for p in loss.teacher_attention.parameters())
    assert any(key.startswith("teacher_attention") for key in loss.state_dict())  # it must be the same after resuming


def test_a_scale_of_the_whole_feature_counts_only_through_the_attention_and_nothing_exceeds_four(example):
    student, teacher, label = example
    value, gradient, _ = run(make(), 1e4 * student, -1e4 * teacher, label)
    assert 0 < float(value) <= 4 and np.isfinite(gradient).all()


@pytest.mark.parametrize("garbage", [1e4, np.inf, np.nan])
def test_ignored_pixels_change_nothing_bit_for_bit(example, garbage):
    student, teacher, label = example
    ignored = np.broadcast_to((label == IGNORED)[:, None], student.shape)
    value, gradient, _ = run(make(), *example)
    dirty = [np.where(ignored, np.float32(garbage), x) for x in (student, teacher)]
    other_value, other_gradient, _ = run(make(), *dirty, label)
    assert value.numpy().tobytes() == other_value.numpy().tobytes()
    assert gradient.tobytes() == other_gradient.tobytes() and not gradient[ignored].any()


def test_a_batch_without_valid_pixels_gives_zero(example):
    student, teacher, label = example
    value, gradient, _ = run(make(), student, teacher, np.full_like(label, IGNORED))
    assert float(value) == 0 and not gradient.any()


def test_low_precision_inputs_are_computed_in_float32(example):
    student, teacher, label = example
    s, t = (paddle.to_tensor(x).astype("bfloat16") for x in (student, teacher))
    with paddle.amp.auto_cast(level="O1", dtype="bfloat16"):
        value = make()(s, t, paddle.to_tensor(label))
    wanted = make()(s.astype("float32"), t.astype("float32"), paddle.to_tensor(label))
    assert value.dtype == paddle.float32 and float(value) == float(wanted)


def test_a_reduction_that_cannot_be_is_named():
    with pytest.raises(ConfigError, match="AttnFDLoss: reduction is at least 1, but got 0"):
        make(reduction=0)
