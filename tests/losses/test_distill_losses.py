"""One contract for every distillation loss, and each one's formula written out in NumPy float64."""

import re
import time
from pathlib import Path

import numpy as np
import paddle
import pytest
from formulas import CASES, IGNORED, channelwise, softmax
from paddleseg.cvlibs import manager

from paddleseg_ext import registry
from paddleseg_ext.config import Component
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.losses.base import Loss
from paddleseg_ext.losses.build import build_distill_loss
from paddleseg_ext.losses.functional import log_softmax, valid_mask
from paddleseg_ext.types import UNLABELLED

NEEDS_LABELS = ("DKDLoss", "BPKDLoss", "IFVDLoss")
USES_LABELS = [name for name in CASES if "tutorial" not in name]
CLASSES = 3
PAGE = Path(__file__).resolve().parents[2] / "docs/losses.md"


def make(name):
    arguments, formula = CASES[name]
    return build_distill_loss(Component(name.split()[0], arguments, "test"), IGNORED, CLASSES), formula


def example(seed=0, shape=(3, CLASSES, 4, 6), ignored=0.2):
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
    elsewhere = {"MGDLoss", "AttnFDLoss", "FSPLoss", "CIRKDLoss"}  # in files of their own
    assert ours == {name.split()[0] for name in CASES} | elsewhere


@pytest.mark.parametrize("name", CASES)
def test_the_value_is_the_formula(name):
    loss, formula = make(name)
    student, teacher, label = example()
    value, *_ = run(loss, student, teacher, label)
    assert value.shape == [] and value.dtype == paddle.float32
    wanted = formula(student.astype("float64"), teacher.astype("float64"), label)
    assert wanted > 0.01
    np.testing.assert_allclose(value.numpy(), wanted, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_the_formula_by_finite_differences(name):
    loss, formula = make(name)
    student, teacher, label = example(shape=(3, CLASSES, 2, 4))
    _, gradient, _ = run(loss, student, teacher, label)
    wanted, step, s, t = np.zeros_like(gradient, "float64"), 1e-5, student.astype("float64"), teacher.astype("float64")
    for index in np.ndindex(student.shape):
        for sign in (1, -1):
            moved = s.copy()
            moved[index] += sign * step
            wanted[index] += sign * formula(moved, t, label) / (2 * step)
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(gradient, wanted, atol=1e-6, rtol=1e-4)


def test_mutual_learning_teaches_the_teacher_too():
    student, teacher, label = example()
    loss, formula = make("DMLLoss")
    _, _, gradient = run(loss, student, teacher, label)
    _, wanted, _ = run(loss, teacher, student, label)  # it is symmetric
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(gradient.numpy(), wanted, atol=1e-7)


@pytest.mark.parametrize("name", [n for n in CASES if n != "DMLLoss"])
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
    with pytest.raises(ValueError, match=r"a label of shape \[N, H, W\] is expected, but got \[3, 1, 4, 6\]"):
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


@pytest.mark.parametrize("name", [n for n in CASES if n.split()[0] not in NEEDS_LABELS])
def test_labels_may_be_left_out_where_every_pixel_counts(name):
    loss, formula = make(name)
    student, teacher, label = example(ignored=0)
    value, *_ = run(loss, student, teacher, None)
    np.testing.assert_allclose(
        value.numpy(), formula(*(x.astype("float64") for x in (student, teacher)), label), rtol=2e-5
    )


def changed(student, teacher, label, name):
    """The example with its student changed in a way that the loss promises not to see."""
    rng = np.random.default_rng(5)
    per_pixel, per_channel = (
        rng.normal(0, 3, (len(student), 1, *student.shape[2:])),
        rng.normal(0, 3, (*student.shape[:2], 1, 1)),
    )
    if name in ("KLLoss", "PixelwiseKLLoss", "DKDLoss", "DISTLoss", "DMLLoss"):
        return student + per_pixel
    if name == "PixelwiseKLLoss standardized":
        return student * np.exp(per_pixel) + per_pixel
    if name == "SegChannelwiseLoss":
        return student + per_channel
    if name == "NormalizedFeatureLoss":
        return student * np.exp(np.abs(per_channel)) + per_channel
    if name in ("SegPairWiseLoss", "IFVDLoss", "AttentionTransferLoss", "RKDLoss"):
        return student * 7
    return None


@pytest.mark.parametrize("name", [n for n in CASES if changed(*example(), n) is not None])
def test_what_a_loss_promises_not_to_see_changes_nothing(name):
    loss, _ = make(name)
    student, teacher, label = example()
    value, *_ = run(loss, student, teacher, label)
    other, *_ = run(loss, changed(student, teacher, label, name).astype("float32"), teacher, label)
    np.testing.assert_allclose(other.numpy(), value.numpy(), rtol=2e-4)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "shape", [(3, 1, 4, 4), (3, CLASSES, 1, 1), (3, CLASSES, 1, 5), (1, CLASSES, 4, 4), (1, 1, 1, 1)]
)
def test_sides_of_one_stay_finite(name, shape):
    if name == "RKDLoss" and shape[0] < 3:
        pytest.skip("compares at least 3 images")
    loss, _ = make(name)
    student, teacher, label = example(shape=shape, ignored=0)
    label = np.zeros_like(label)
    for a, b in ((student, teacher), (student, student), (0 * student, 0 * student)):
        value, gradient, _ = run(loss, a, b, label)
        assert np.isfinite(float(value)) and np.isfinite(gradient).all()
        assert a is not b or abs(float(value)) < 1e-5


@pytest.mark.parametrize("name", ["AttentionTransferLoss", "SegPairWiseLoss", "IFVDLoss", "RKDLoss"])
def test_losses_of_relations_take_any_channels(name):
    loss, formula = make(name)
    student, _, label = example()
    _, teacher, _ = example(shape=(3, 7, 4, 6))
    value, *_ = run(loss, student, teacher, label)
    wanted = formula(student.astype("float64"), teacher.astype("float64"), label)
    np.testing.assert_allclose(value.numpy(), wanted, rtol=1e-5)
    assert loss.fits(student.shape, teacher.shape)


def test_losses_by_position_need_equal_shapes():
    for name in ("HintLoss", "SegChannelwiseLoss", "NormalizedFeatureLoss"):
        assert not make(name)[0].fits([2, 3, 4, 4], [2, 5, 4, 4])
    assert not make("IFVDLoss")[0].fits([2, 3, 4, 4], [2, 3, 8, 4])
    assert make("RKDLoss")[0].fits([3, 3, 4, 4], [3, 5, 8, 8]) and not make("RKDLoss")[0].fits([3, 4], [4, 4])


@pytest.mark.parametrize("name", ["DKDLoss", "BPKDLoss", "IFVDLoss"])
def test_losses_by_class_say_that_they_need_labels(name):
    student, teacher, _ = example()
    with pytest.raises(ValueError, match=f"{name} compares by class and needs labels"):
        run(make(name)[0], student, teacher, None)


@pytest.mark.parametrize("name", USES_LABELS)
def test_unlabelled_pixels_count_but_for_losses_by_class(name):
    loss, _ = make(name)
    student, teacher, label = example(ignored=0)
    label[1:] = UNLABELLED
    value, gradient, _ = run(loss, student, teacher, label)
    assert np.isfinite(float(value)) and gradient[0].any()
    assert gradient[1].any() == (name.split()[0] not in NEEDS_LABELS)
    if name.split()[0] in NEEDS_LABELS:
        alone, *_ = run(loss, student, teacher, np.where(label == UNLABELLED, IGNORED, label))
        assert value.numpy().tobytes() == alone.numpy().tobytes()


def test_the_loss_that_the_docs_write_keeps_the_contract():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    written = {}
    try:
        exec(code, written)
        loss = build_distill_loss(Component("CosineLoss", {}, "test"), IGNORED, CLASSES)
    finally:
        manager.LOSSES.components_dict.pop("CosineLoss", None)
    student, teacher, label = example()
    value, gradient, of_teacher = run(loss, student, teacher, label)
    s, t = (np.moveaxis(x.astype("float64"), 1, -1)[label != IGNORED] for x in (student, teacher))
    wanted = 1 - ((s * t).sum(1) / np.linalg.norm(s, axis=1) / np.linalg.norm(t, axis=1)).mean()
    np.testing.assert_allclose(value.numpy(), wanted, rtol=1e-5)
    assert value.dtype == paddle.float32 and of_teacher is None
    ignored = np.broadcast_to((label == IGNORED)[:, None], student.shape)
    other, other_gradient, _ = run(loss, *(np.where(ignored, np.float32(np.inf), x) for x in (student, teacher)), label)
    assert value.numpy().tobytes() == other.numpy().tobytes() and gradient.tobytes() == other_gradient.tobytes()
    nothing, gradient, _ = run(loss, student, teacher, np.full_like(label, IGNORED))
    assert float(nothing) == 0 and not gradient.any()
    assert loss(*(paddle.to_tensor(x).astype("float16") for x in (student, teacher))).dtype == paddle.float32


@pytest.mark.parametrize("ignored", [0, 0.2])
def test_a_constant_channel_of_the_student_has_a_bounded_gradient_of_normalised_features(ignored):
    student, teacher, label = example(shape=(2, 8, 16, 16), ignored=ignored)
    student[:, 0] = 0.3
    _, gradient, _ = run(make("NormalizedFeatureLoss")[0], student, teacher, label)
    # 2 (z_S - z_T) / sqrt(epsilon) over C and all valid pixels, with z_S = 0 and z_T of mean square 1.
    bound = 2 / np.sqrt(1e-5) / 8 / np.sqrt((label != IGNORED).sum())
    assert 0 < np.linalg.norm(gradient[:, 0]) < 1.01 * bound


def test_relations_of_images_need_three_of_them():
    student, teacher, label = example(shape=(2, CLASSES, 4, 4))
    with pytest.raises(ValueError, match="RKDLoss compares at least 3 images, but the batch has 2"):
        run(make("RKDLoss")[0], student, teacher, label)


def test_kl_loss_agrees_with_paddlesegs():
    from paddleseg.models.losses import kl_loss as module

    student, teacher, label = example()
    theirs = module.KLLoss(ignore_index=IGNORED, temperature=2)
    ours = build_distill_loss(Component("KLLoss", {"temperature": 2}, ""), IGNORED, CLASSES)
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
    tutorial, _ = make("SegChannelwiseLoss tutorial")
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
        ("HintLoss", {"norm": "l3"}, "HintLoss: norm is 'mse', 'l1' or 'smooth_l1', but got 'l3'"),
        ("BPKDLoss", {"radius": 0}, "BPKDLoss: radius must be above 0, but got 0"),
        (
            "SegPairWiseLoss",
            {"compat": "mmrazor"},
            "SegPairWiseLoss: compat is null or 'paddleslim', but got 'mmrazor'",
        ),
        ("SegPairWiseLoss", {"grid": [0, 2]}, "SegPairWiseLoss: grid must be above 0, but got 0"),
        ("KLLoss", {"temprature": 2}, "temprature.*closest: 'temperature'"),
        ("KLLoss", {"ignore_index": 0}, "0, but the data set ignores 255"),
        ("CrossEntropyLoss", {}, "CrossEntropyLoss compares with labels and cannot distil; these can: "),
    ],
)
def test_arguments_that_cannot_be_are_named(name, arguments, message):
    with pytest.raises(ConfigError, match=message):
        build_distill_loss(Component(name, arguments, "s.yml:7: distill_loss.types[0]"), IGNORED, CLASSES)


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
