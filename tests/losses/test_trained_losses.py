"""Losses that have weights of their own, which train with the student."""

import numpy as np
import paddle
import pytest
from formulas import IGNORED

from paddleseg_ext.config import Component
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.losses.build import build_distill_loss


def make(**arguments):
    paddle.seed(0)
    loss = build_distill_loss(Component("MGDLoss", arguments, "test"), IGNORED, 3)
    loss.prepare([2, 3, 4, 6], [2, 3, 4, 6])
    return loss


@pytest.fixture
def example():
    rng = np.random.default_rng(0)
    student, teacher = (rng.normal(0, 1, (2, 3, 4, 6)).astype("float32") for _ in range(2))
    label = rng.integers(0, 3, (2, 4, 6))
    label[rng.random(label.shape) < 0.2] = IGNORED
    return student, teacher, label


def convolved(x, weight, bias):
    """3x3 with padding 1, by its definition."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(x), len(weight), *x.shape[2:]))
    for i, j in np.ndindex(3, 3):
        window = padded[:, :, i : i + x.shape[2], j : j + x.shape[3]]
        out += np.einsum("nchw,oc->nohw", window, weight[:, :, i, j])
    return out + bias[None, :, None, None]


def formula(loss, student, teacher, label):
    """The mean over valid pixels and channels of what nothing hidden generates."""
    first, _, second = loss.generation
    x = np.where((label != IGNORED)[:, None], student, 0).astype("float64")
    x = np.maximum(convolved(x, *(p.numpy().astype("float64") for p in (first.weight, first.bias))), 0)
    x = convolved(x, *(p.numpy().astype("float64") for p in (second.weight, second.bias)))
    return np.moveaxis((x - teacher) ** 2, 1, -1)[label != IGNORED].mean()


def tensors(*arrays):
    made = [paddle.to_tensor(x) for x in arrays]
    for x in made[:2]:
        x.stop_gradient = False
    return made


def test_with_nothing_hidden_the_value_is_the_formula(example):
    loss = make(mask_ratio=0)
    np.testing.assert_allclose(float(loss(*tensors(*example))), formula(loss, *example), rtol=1e-5)


def test_the_sum_form_is_the_mean_times_valid_pixels_and_channels_over_images(example):
    mean, total = (float(make(mask_ratio=0, compat=c)(*tensors(*example))) for c in (None, "mmrazor"))
    assert total == pytest.approx(mean * (example[2] != IGNORED).sum() * 3 / 2, rel=1e-5)


def test_student_and_generation_learn_and_the_teacher_does_not(example):
    loss = make()
    student, teacher, label = tensors(*example)
    loss(student, teacher, label).backward()
    assert np.abs(student.grad.numpy()).max() > 0 and teacher.grad is None
    assert all(np.abs(p.grad.numpy()).max() > 0 for p in loss.parameters())


def test_the_hidden_share_is_as_asked_and_what_is_hidden_gets_no_gradient():
    loss = make(mask_ratio=0.75)
    loss.prepare([1, 3, 64, 64], [1, 3, 64, 64])
    x = paddle.rand([1, 3, 64, 64])
    x.stop_gradient = False
    loss(x, paddle.rand([1, 3, 64, 64])).backward()
    touched = (x.grad.numpy() != 0).any(1)
    assert touched.mean() == pytest.approx(0.25, abs=0.03)


def test_the_hidden_pixels_follow_the_seed_alone(example):
    loss, values = make(), []
    for seed in (1, 1, 2):
        paddle.seed(seed)
        values.append(float(loss(*tensors(*example))))
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("garbage", [1e4, np.inf, np.nan])
def test_ignored_pixels_change_nothing_bit_for_bit(example, garbage):
    student, teacher, label = example
    ignored = np.broadcast_to((label == IGNORED)[:, None], student.shape)
    results = []
    for s, t in ((student, teacher), [np.where(ignored, np.float32(garbage), x) for x in (student, teacher)]):
        loss = make()
        paddle.seed(3)
        s, t, y = tensors(s, t, label)
        value = loss(s, t, y)
        value.backward()
        results.append(
            (value.numpy().tobytes(), s.grad.numpy().tobytes(), loss.generation[0].weight.grad.numpy().tobytes())
        )
    assert results[0] == results[1]


def test_a_batch_without_valid_pixels_gives_zero(example):
    student, teacher, label = example
    assert float(make()(*tensors(student, teacher, np.full_like(label, IGNORED)))) == 0


def test_it_learns_to_generate_the_teachers_feature(example):
    student, teacher, _ = example
    loss = make(mask_ratio=0.25)
    optimizer = paddle.optimizer.Adam(0.01, parameters=loss.parameters())
    history = []
    for _ in range(150):
        value = loss(paddle.to_tensor(student), paddle.to_tensor(0.5 * student), None)
        value.backward()
        optimizer.step()
        optimizer.clear_grad()
        history.append(float(value))
    assert np.mean(history[-10:]) < 0.6 * history[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_ratio": 1}, "MGDLoss: mask_ratio is at least 0 and below 1, but got 1"),
        ({"compat": "x"}, "MGDLoss: compat is null or 'mmrazor', but got 'x'"),
    ],
)
def test_arguments_that_cannot_be_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        make(**arguments)
