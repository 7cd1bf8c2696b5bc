"""One contract for every loss of PaddleSeg: it works forward and backward and leaves the labels alone."""

import numpy as np
import paddle
import pytest

from paddleseg_ext.errors import ConfigError
from tests.compat.world import CLASSES, instances, labels, logits, loss

WEIGHT = [1.0, 2.0, 0.5, 1.0]


def _mask_logits() -> dict:
    one = {"pred_logits": logits(10, 48)[:, :, 0, : CLASSES + 1], "pred_masks": logits(10, 12)}
    return {**one, "aux_outputs": [dict(one)]}


def _points() -> list:
    return [logits()[:, :, :, 0], paddle.uniform([2, 48, 2], min=0.0, max=1.0)]


# name of the case: (loss, its arguments, what it gets from the model, classes of the labels)
CASES = {
    "CrossEntropyLoss": ({}, logits, CLASSES),
    "CrossEntropyLoss weight": ({"weight": WEIGHT}, logits, CLASSES),
    "CrossEntropyLoss top_k": ({"top_k_percent_pixels": 0.3}, logits, CLASSES),
    "CrossEntropyLoss top_k weight": ({"top_k_percent_pixels": 0.3, "weight": WEIGHT}, logits, CLASSES),
    "CrossEntropyLoss averaged over ignored": ({"avg_non_ignore": False, "weight": WEIGHT}, logits, CLASSES),
    "CrossEntropyLoss NHWC": ({"data_format": "NHWC"}, lambda: logits().transpose([0, 2, 3, 1]), CLASSES),
    "BCELoss": ({}, logits, CLASSES),
    "BCELoss edge_label": ({"edge_label": True, "weight": "dynamic", "pos_weight": 2.0}, lambda: logits(1), 2),
    "LovaszSoftmaxLoss": ({}, logits, CLASSES),
    "LovaszHingeLoss": ({}, lambda: logits(2), 2),
    "DualTaskLoss": ({}, logits, CLASSES),
    "EdgeAttentionLoss": ({"edge_threshold": 0.1}, lambda: (logits(), logits(1)), CLASSES),
    "BootstrappedCrossEntropyLoss": ({"min_K": 100, "loss_th": 0.3}, logits, CLASSES),
    "DiceLoss": ({"weight": WEIGHT}, logits, CLASSES),
    "OhemCrossEntropyLoss": ({"min_kept": 100}, logits, CLASSES),
    "OhemCrossEntropyLoss of fewer pixels than are kept": ({}, logits, CLASSES),
    "RelaxBoundaryLoss": ({}, logits, CLASSES),
    "OhemEdgeAttentionLoss": ({"edge_threshold": 0.1, "min_kept": 50}, lambda: (logits(), logits(1)), CLASSES),
    "L1Loss": ({}, lambda: logits()[:, 0], CLASSES),
    "MSELoss": ({}, lambda: logits()[:, 0], CLASSES),
    "FocalLoss": ({}, lambda: logits(2), 2),
    "MultiClassFocalLoss": ({"num_class": CLASSES}, logits, CLASSES),
    "RMILoss": ({"num_classes": CLASSES}, logits, CLASSES),
    "DetailAggregateLoss": ({}, lambda: logits(1, 6), CLASSES),
    "PointCrossEntropyLoss": ({}, _points, CLASSES),
    "PointCrossEntropyLoss weight": ({"weight": WEIGHT}, _points, CLASSES),
    "PixelContrastCrossEntropyLoss": (
        {"max_views": 10},
        lambda: {"seg": logits(size=12), "embed": logits(8, 12)},
        CLASSES,
    ),
    "PixelContrastCrossEntropyLoss without enough pixels": (
        {"max_views": 1000},
        lambda: {"seg": logits(size=12), "embed": logits(8, 12)},
        CLASSES,
    ),
    "SECrossEntropyLoss": ({}, lambda: logits(size=1), CLASSES),
    "SECrossEntropyLoss of a vector": ({}, lambda: logits(size=1)[:, :, 0, 0], CLASSES),
    "SemanticConnectivityLoss": ({}, logits, CLASSES),
}
TWO_PREDICTIONS = {"DistillCrossEntropyLoss", "KLLoss"}
OTHER = {"MixedLoss", "MaskFormerLoss"}


def _check(value: paddle.Tensor) -> None:
    assert value.shape == [] and value.dtype == paddle.float32
    value.backward()
    assert np.isfinite(float(value))


@pytest.mark.parametrize("case", CASES)
def test_loss_is_a_finite_scalar_with_gradient_and_keeps_labels(case):
    params, make_prediction, classes = CASES[case]
    prediction, label = make_prediction(), labels(classes)
    before = label.numpy()
    paddle.seed(0)
    _check(loss(case.split(" ")[0], **params)(prediction, label))
    np.testing.assert_array_equal(label.numpy(), before)


def test_every_loss_of_paddleseg_is_tested():
    from paddleseg.cvlibs import manager

    theirs = {n for n, c in manager.LOSSES.components_dict.items() if c.__module__.startswith("paddleseg.")}
    assert len(theirs) >= 24  # KLLoss may be replaced by this project's
    assert theirs <= {case.split(" ")[0] for case in CASES} | TWO_PREDICTIONS | OTHER


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "DiceLoss", "MultiClassFocalLoss", "OhemCrossEntropyLoss"])
@pytest.mark.parametrize("ignored", [-1, 0, 100])
def test_ignored_pixels_do_not_count_whatever_their_value(name, ignored):
    params = {"MultiClassFocalLoss": {"num_class": CLASSES}}.get(name, {})
    values = []
    for value in (ignored, 255):
        label = labels(ignored=255).numpy()
        label[(label == ignored) | (label == 255)] = value
        values.append(float(loss(name, ignore_index=value, **params)(logits(), paddle.to_tensor(label))))
    assert values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
def test_distill_cross_entropy_works_in_both_layouts(data_format):
    student, teacher = logits(), logits(seed=1)
    expected = float(loss("DistillCrossEntropyLoss")(student, teacher, labels()))
    if data_format == "NHWC":
        student, teacher = student.transpose([0, 2, 3, 1]), teacher.transpose([0, 2, 3, 1])
    value = loss("DistillCrossEntropyLoss", data_format=data_format)(student, teacher, labels())
    assert float(value) == pytest.approx(expected, rel=1e-6)
    _check(value)


def test_mixed_loss_is_its_parts_on_the_same_labels():
    parts = [loss("DiceLoss"), loss("CrossEntropyLoss")]
    mixed = loss("MixedLoss", losses=parts, coef=[0.5, 2.0])(logits(), labels())
    alone = [float(part(logits(), labels())) for part in parts]
    assert [float(value) for value in mixed] == pytest.approx([0.5 * alone[0], 2.0 * alone[1]])
    for value in mixed:
        assert value.shape == []
    sum(mixed).backward()


@pytest.mark.parametrize("ignored_images", [[], [0], [0, 1]])
def test_maskformer_loss_is_a_scalar_whatever_is_ignored(ignored_images):
    label = labels().numpy()
    label[ignored_images] = 255
    _check(loss("MaskFormerLoss", num_classes=CLASSES)(_mask_logits(), instances(label)))


@pytest.mark.parametrize("params", [{"calculate_weights": True}, {"border": 2}, {"border": 0}])
def test_relax_boundary_options_that_cannot_work_are_refused_in_one_line(params):
    with pytest.raises(ConfigError) as error:
        loss("RelaxBoundaryLoss", **params)
    assert next(iter(params)) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "OhemCrossEntropyLoss", "LovaszSoftmaxLoss", "DiceLoss"])
def test_loss_works_under_bf16_autocast(name):
    weight = paddle.eye(CLASSES).reshape([CLASSES, CLASSES, 1, 1])
    with paddle.amp.auto_cast(dtype="bfloat16", level="O1"):  # a CPU stays at float32 here, a GPU does not
        value = loss(name)(paddle.nn.functional.conv2d(logits(), weight), labels())
    assert float(value) == pytest.approx(float(loss(name)(logits(), labels())), rel=1e-2)
    _check(value)
