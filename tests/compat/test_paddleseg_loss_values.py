"""The mended losses say what their formulas say, computed here in NumPy."""

import numpy as np
import paddle
import pytest

from tests.compat.world import CLASSES, labels, logits, loss

WEIGHT = np.array([1.0, 2.0, 0.5, 3.0], dtype="float32")


def _cross_entropy() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-log p of the label per pixel, the labels with 0 for ignored ones, and which pixels count."""
    label = labels().numpy()
    valid = label != 255
    label = np.where(valid, label, 0)
    z = logits().numpy().astype("float64")
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    return -np.take_along_axis(log_p, label[:, None], 1)[:, 0], label, valid


def test_cross_entropy_is_the_mean_over_pixels_that_count():
    values, _, valid = _cross_entropy()
    assert float(loss("CrossEntropyLoss")(logits(), labels())) == pytest.approx(values[valid].mean(), rel=1e-5)


def test_cross_entropy_with_weights_is_the_weighted_mean():
    values, label, valid = _cross_entropy()
    weights = WEIGHT[label] * valid
    expected = (values * weights).sum() / weights.sum()
    assert float(loss("CrossEntropyLoss", weight=WEIGHT)(logits(), labels())) == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_averaged_over_ignored_pixels_counts_them_as_zero():
    values, _, valid = _cross_entropy()
    value = loss("CrossEntropyLoss", avg_non_ignore=False)(logits(), labels())
    assert float(value) == pytest.approx((values * valid).mean(), rel=1e-5)


def test_cross_entropy_top_k_is_the_mean_of_the_hardest():
    values, _, valid = _cross_entropy()
    hardest = np.sort((values * valid).ravel())[::-1][: int(0.25 * values.size)]
    value = loss("CrossEntropyLoss", top_k_percent_pixels=0.25)(logits(), labels())
    assert float(value) == pytest.approx(hardest.mean(), rel=1e-5)


def test_point_cross_entropy_with_weights_is_the_weighted_mean_over_points():
    label = labels().numpy()
    rows, columns = np.random.default_rng(3).integers(0, 48, (2, 2, 30))
    points = paddle.to_tensor(((np.stack([columns, rows], -1) + 0.5) / 48).astype("float32"))
    z = logits()[:, :, 0, :30]
    at = np.stack([label[i, rows[i], columns[i]] for i in range(2)])
    valid = at != 255
    at = np.where(valid, at, 0)
    log_p = z.numpy() - np.log(np.exp(z.numpy()).sum(1, keepdims=True))
    values = -np.take_along_axis(log_p, at[:, None], 1)[:, 0]
    weights = WEIGHT[at] * valid
    value = loss("PointCrossEntropyLoss", weight=WEIGHT)([z, points], labels())
    assert float(value) == pytest.approx((values * weights).sum() / weights.sum(), rel=1e-5)


@pytest.mark.parametrize(("name", "distance"), [("L1Loss", np.abs), ("MSELoss", np.square)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_distances_leave_ignored_pixels_out(name, distance, reduction):
    prediction, label = logits()[:, 0], labels()
    valid = label.numpy() != 255
    values = distance(prediction.numpy() - label.numpy()) * valid
    expected = {"mean": values[valid].mean(), "sum": values.sum(), "none": values}[reduction]
    np.testing.assert_allclose(loss(name, reduction=reduction)(prediction, label).numpy(), expected, rtol=1e-5)


def test_dice_is_one_minus_the_overlap_per_class_and_image():
    label = labels().numpy()
    mask = (label != 255).reshape(2, -1)
    p = np.exp(logits().numpy())
    p /= p.sum(1, keepdims=True)
    classes = []
    for c in range(CLASSES):
        pc, yc = p[:, c].reshape(2, -1) * mask, (label == c).reshape(2, -1) * mask
        classes.append((1 - (2 * (pc * yc).sum(1) + 1) / ((pc + yc).sum(1) + 1)).mean())
    assert float(loss("DiceLoss")(logits(), labels())) == pytest.approx(np.mean(classes), rel=1e-5)


@pytest.mark.parametrize(("thresh", "min_kept"), [(0.7, 100), (0.05, 100), (0.3, 100)])
def test_ohem_keeps_pixels_below_the_threshold_and_at_least_the_hardest(thresh, min_kept):
    values, _, valid = _cross_entropy()
    p = np.exp(-values[valid])
    threshold = max(np.sort(p)[min_kept - 1], thresh)
    expected = values[valid][p < threshold].mean()
    value = loss("OhemCrossEntropyLoss", thresh=thresh, min_kept=min_kept)(logits(), labels())
    assert float(value) == pytest.approx(expected, rel=2e-3)  # it divides by the share of kept pixels plus 1e-5


def test_ohem_leaves_its_own_settings_as_they_were():
    criterion = loss("OhemCrossEntropyLoss", min_kept=100)
    assert float(criterion(logits(), labels())) == float(criterion(logits(), labels()))
    assert criterion.min_kept == 100


def test_rmi_does_not_depend_on_predictions_for_ignored_pixels():
    criterion = loss("RMILoss", num_classes=CLASSES)
    changed = logits().detach()
    changed[:, :, :5] += 7.0
    assert float(criterion(changed, labels())) == pytest.approx(float(criterion(logits(), labels())), rel=1e-6)


def test_dual_task_loss_is_small_where_the_prediction_is_the_label():
    label = labels()
    right = 50.0 * paddle.nn.functional.one_hot(paddle.where(label == 255, 0, label), CLASSES).transpose([0, 3, 1, 2])
    criterion = loss("DualTaskLoss")
    paddle.seed(0)
    assert float(criterion(right, label)) < 0.2 * float(criterion(logits(), label))
