"""One contract for every distillation loss, and each one's formula written out in NumPy float64."""

import time

import numpy as np
import paddle
import pytest

from paddleseg_ext import registry
from paddleseg_ext.config import Component
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.losses.base import Loss
from paddleseg_ext.losses.build import build_distill_loss
from paddleseg_ext.losses.functional import log_softmax, valid_mask

IGNORED = 255


def softmax(x, axis):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def kl(student, teacher, axis):
    p, q = softmax(teacher, axis), softmax(student, axis)
    return (p * (np.log(p) - np.log(q))).sum(axis)


def kl_loss(student, teacher, label, temperature=1.0):
    per_pixel = kl(student / temperature, teacher / temperature, axis=1)
    return temperature**2 * per_pixel[label != IGNORED].mean() / student.shape[1]


def channelwise(student, teacher, label, temperature=4.0):
    images, channels = student.shape[:2]
    total = 0.0
    for i in range(images):
        valid = label[i] != IGNORED
        for c in range(channels):
            total += kl(student[i, c][valid] / temperature, teacher[i, c][valid] / temperature, axis=0)
    return temperature**2 * total / (images * channels)


def tutorial_channelwise(student, teacher, label, temperature=1.0):
    p, q = softmax(teacher / temperature, -1), softmax(student / temperature, -1)
    return (p * (np.log(p) - np.log(q))).mean()


CASES = {
    "KLLoss": ({}, kl_loss),
    "KLLoss at t=4": ({"temperature": 4.0}, lambda s, t, y: kl_loss(s, t, y, 4.0)),
    "SegChannelwiseLoss": ({}, channelwise),
    "SegChannelwiseLoss at t=1": ({"temperature": 1.0}, lambda s, t, y: channelwise(s, t, y, 1.0)),
    "SegChannelwiseLoss of the tutorial": ({"compat": "paddleslim"}, tutorial_channelwise),
}
USES_LABELS = [name for name in CASES if "tutorial" not in name]


def make(name):
    arguments, formula = CASES[name]
    return build_distill_loss(Component(name.split()[0], arguments, "test"), IGNORED), formula


def example(seed=0, shape=(2, 3, 5, 6), ignored=0.2):
    rng = np.random.default_rng(seed)
    student, teacher = (rng.normal(0, 2, shape).astype("float32") for _ in range(2))
    label = rng.integers(0, shape[1], (shape[0], *shape[2:]))
    label[rng.random(label.shape) < ignored] = IGNORED
    return student, teacher, label


def run(loss, student, teacher, label):
    """Value and gradients of the student and of the teacher."""
    s, t = paddle.to_tensor(student), paddle.to_tensor(teacher)
    s.stop_gradient = t.stop_gradient = False
    value = loss(s, t, None if label is None else paddle.to_tensor(label))
    value.backward()
    return value, s.grad.numpy(), t.grad


def test_every_registered_distillation_loss_is_held_to_the_contract():
    ours = {
        n for n in registry.names("loss") if issubclass(registry.component_class(Component(n, {}, ""), "loss"), Loss)
    }
    assert ours == {name.split()[0] for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_the_value_is_the_formula(name):
    loss, formula = make(name)
    student, teacher, label = example()
    value, *_ = run(loss, student, teacher, label)
    assert value.shape == [] and value.dtype == paddle.float32
    wanted = formula(student.astype("float64"), teacher.astype("float64"), label)
    assert wanted > 0.01
    np.testing.assert_allclose(value.numpy(), wanted, rtol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_the_formula_by_finite_differences(name):
    loss, formula = make(name)
    student, teacher, label = example(shape=(2, 3, 3, 4))
    _, gradient, _ = run(loss, student, teacher, label)
    wanted, step, s, t = np.zeros_like(gradient, "float64"), 1e-5, student.astype("float64"), teacher.astype("float64")
    for index in np.ndindex(student.shape):
        for sign in (1, -1):
            moved = s.copy()
            moved[index] += sign * step
            wanted[index] += sign * formula(moved, t, label) / (2 * step)
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(gradient, wanted, atol=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_teacher_gets_no_gradient_and_neither_input_is_written_to(name):
    loss, _ = make(name)
    student, teacher, label = example()
    s, t, y = map(paddle.to_tensor, (student, teacher, label))
    s.stop_gradient = t.stop_gradient = False
    loss(s, t, y).backward()
    assert t.grad is None and s.grad is not None
    for tensor, array in ((s, student), (t, teacher), (y, label)):
        assert np.array_equal(tensor.numpy(), array)


@pytest.mark.parametrize("name", CASES)
def test_a_student_equal_to_its_teacher_costs_nothing(name):
    loss, _ = make(name)
    student, _, label = example()
    value, gradient, _ = run(loss, student, student, label)
    assert abs(float(value)) < 1e-6 and np.abs(gradient).max() < 1e-6


@pytest.mark.parametrize("name", USES_LABELS)
@pytest.mark.parametrize("garbage", [1e4, np.inf, np.nan])
def test_ignored_pixels_change_nothing_bit_for_bit(name, garbage):
    loss, _ = make(name)
    student, teacher, label = example()
    value, gradient, _ = run(loss, student, teacher, label)
    ignored = np.broadcast_to((label == IGNORED)[:, None], student.shape)
    other_student, other_teacher = (np.where(ignored, np.float32(garbage), x) for x in (student, teacher))
    other_value, other_gradient, _ = run(loss, other_student, other_teacher, label)
    assert value.numpy().tobytes() == other_value.numpy().tobytes()
    assert gradient.tobytes() == other_gradient.tobytes()
    assert not gradient[ignored].any()


@pytest.mark.parametrize("name", USES_LABELS)
def test_a_batch_without_valid_pixels_gives_exactly_zero_and_no_gradient(name):
    loss, _ = make(name)
    student, teacher, label = example()
    value, gradient, _ = run(loss, student, teacher, np.full_like(label, IGNORED))
    assert float(value) == 0 and not gradient.any()


@pytest.mark.parametrize("name", USES_LABELS)
def test_one_image_without_valid_pixels_leaves_the_others_as_they_are(name):
    loss, formula = make(name)
    student, teacher, label = example()
    label[0] = IGNORED
    value, gradient, _ = run(loss, student, teacher, label)
    assert np.isfinite(float(value)) and float(value) > 0 and not gradient[0].any() and gradient[1].any()


@pytest.mark.parametrize("name", USES_LABELS)
def test_a_label_with_a_channel_axis_is_an_error_and_is_not_broadcast(name):
    loss, _ = make(name)
    student, teacher, label = example()
    with pytest.raises(ValueError, match=r"a label of shape \[N, H, W\] is expected, but got \[2, 1, 5, 6\]"):
        run(loss, student, teacher, label[:, None])


@pytest.mark.parametrize("name", USES_LABELS)
def test_labels_of_another_resolution_are_taken_by_nearest_neighbour(name):
    loss, _ = make(name)
    student, teacher, label = example()
    value, *_ = run(loss, student, teacher, label)
    large = label.repeat(8, axis=1).repeat(8, axis=2)
    value_of_large, *_ = run(loss, student, teacher, large)
    assert value.numpy().tobytes() == value_of_large.numpy().tobytes()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_inputs_are_computed_in_float32(name, dtype):
    loss, _ = make(name)
    student, teacher, label = example()
    rounded = [paddle.to_tensor(x).astype(dtype) for x in (student, teacher)]
    value = loss(*rounded, paddle.to_tensor(label))
    assert value.dtype == paddle.float32
    wanted, *_ = run(loss, *(x.astype("float32").numpy() for x in rounded), label)
    assert value.numpy().tobytes() == wanted.numpy().tobytes()


@pytest.mark.parametrize("name", CASES)
def test_large_logits_stay_finite(name):
    loss, _ = make(name)
    student, teacher, label = example()
    value, gradient, _ = run(loss, 1e4 * student, -1e4 * teacher, label)
    assert np.isfinite(float(value)) and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", CASES)
def test_labels_may_be_left_out_where_every_pixel_counts(name):
    loss, formula = make(name)
    student, teacher, label = example(ignored=0)
    value, *_ = run(loss, student, teacher, None)
    np.testing.assert_allclose(
        value.numpy(), formula(*(x.astype("float64") for x in (student, teacher)), label), rtol=2e-5
    )


def test_kl_loss_agrees_with_paddlesegs():
    from paddleseg.models.losses import kl_loss as module

    student, teacher, label = example()
    theirs = module.KLLoss(ignore_index=IGNORED, temperature=2)
    ours = build_distill_loss(Component("KLLoss", {"temperature": 2}, ""), IGNORED)
    value, gradient, _ = run(ours, student, teacher, label)
    s = paddle.to_tensor(student)
    s.stop_gradient = False
    # PaddleSeg's takes a label [N, H, W] too and masks with it.
    wanted = theirs(s, paddle.to_tensor(teacher), paddle.to_tensor(label))
    wanted.backward()
    np.testing.assert_allclose(value.numpy(), wanted.numpy(), rtol=1e-5)
    np.testing.assert_allclose(gradient, s.grad.numpy(), atol=1e-7)


def test_channelwise_distillation_looks_over_rows_too():
    """The tutorial's definition sees each row by itself, so that a teacher who differs by a whole row teaches nothing."""
    rng = np.random.default_rng(0)
    student = rng.normal(0, 1, (1, 2, 4, 4)).astype("float32")
    teacher = student + np.array([0, 3, 0, -2], "float32")[None, None, :, None]
    paper, _ = make("SegChannelwiseLoss")
    tutorial, _ = make("SegChannelwiseLoss of the tutorial")
    assert float(run(paper, student, teacher, None)[0]) > 0.1
    assert float(run(tutorial, student, teacher, None)[0]) < 1e-6


@pytest.mark.parametrize("shape", [(3, 7), (3, 5, 4)])
def test_channelwise_distillation_takes_features_of_any_rank(shape):
    rng = np.random.default_rng(0)
    student, teacher = (rng.normal(0, 1, shape).astype("float32") for _ in range(2))
    loss, _ = make("SegChannelwiseLoss")
    rows = shape[:1] if len(shape) == 2 else shape[:2]
    as_map = (x.reshape(rows[0], rows[1] if len(rows) > 1 else 1, 1, -1) for x in (student, teacher))
    label = np.zeros((shape[0], 9, 9), "int64")
    wanted = channelwise(*(x.astype("float64") for x in as_map), np.zeros((shape[0], 1, shape[-1]), "int64"))
    np.testing.assert_allclose(run(loss, student, teacher, label)[0].numpy(), wanted, rtol=2e-5)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("KLLoss", {"temperature": 0}, "KLLoss: temperature must be above 0, but got 0"),
        ("SegChannelwiseLoss", {"temperature": -1}, "SegChannelwiseLoss: temperature must be above 0, but got -1"),
        ("SegChannelwiseLoss", {"compat": "mmrazor"}, "compat is null or 'paddleslim', but got 'mmrazor'"),
        ("KLLoss", {"temprature": 2}, "temprature.*closest: 'temperature'"),
        ("KLLoss", {"ignore_index": 0}, "0, but the data set ignores 255"),
        ("CrossEntropyLoss", {}, "CrossEntropyLoss compares with labels and cannot distil; these can: "),
    ],
)
def test_arguments_that_cannot_be_are_named(name, arguments, message):
    with pytest.raises(ConfigError, match=message):
        build_distill_loss(Component(name, arguments, "s.yml:7: distill_loss.types[0]"), IGNORED)


def test_valid_mask_picks_the_nearest_label():
    label = np.arange(1 * 4 * 6).reshape(1, 4, 6)
    label[0, 2, 4] = IGNORED
    mask = valid_mask(paddle.to_tensor(label), (2, 3), IGNORED).numpy()
    assert mask.tolist() == [[[[True, True, True], [True, True, False]]]]


@pytest.mark.parametrize("axis", [1, -1, 2])
def test_log_softmax_keeps_what_is_far_below_the_largest(axis):
    x = np.random.default_rng(0).normal(0, 100, (2, 5, 7)).astype("float32")
    wanted = np.log(softmax(x.astype("float64"), axis))
    assert wanted.min() < -200
    np.testing.assert_allclose(log_softmax(paddle.to_tensor(x), axis).numpy(), wanted, atol=1e-4)


def test_channelwise_distillation_grows_linearly_with_the_pixels():
    """16 times the pixels take 16 times as long; what is quadratic takes 256 times."""
    loss, _ = make("SegChannelwiseLoss")

    def seconds(side):
        x = paddle.randn([1, 2, side, side])
        x.stop_gradient = False
        best = np.inf
        for _ in range(5):
            started = time.perf_counter()
            loss(x, paddle.randn(x.shape)).backward()
            x.grad.numpy()
            best = min(best, time.perf_counter() - started)
        return best

    assert seconds(512) < 100 * seconds(128)
