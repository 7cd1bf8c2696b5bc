"""Evaluation: the figures, the options of test_config, and how it is shared out."""

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.io import Dataset
from paddleseg.utils import metrics

from paddleseg_ext import compat
from paddleseg_ext.config import TestConfig
from paddleseg_ext.engine import env
from paddleseg_ext.engine.evaluate import evaluate, predict, predict_probabilities, spread
from paddleseg_ext.errors import DataError


class Maps(Dataset):
    """Five images of 12x16 whose first three channels are scores, labels of 24x32 with ignored pixels."""

    num_classes, ignore_index = 3, 255

    def __init__(self, worst_label=2):
        super().__init__()
        rng = np.random.default_rng(0)
        self.images = rng.normal(size=[5, 3, 12, 16]).astype("float32")
        self.labels = rng.integers(0, worst_label + 1, [5, 24, 32]).astype("uint8")
        self.labels[:, :3] = 255
        self.file_list = [[f"image_{i}.png", f"label_{i}.png"] for i in range(5)]

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return {"img": self.images[index], "label": self.labels[index][None], "trans_info": [("resize", (24, 32))]}


class Identity(nn.Layer):
    """Its input is its logits; remembers the sizes that it saw."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, x):
        assert not self.training
        self.sizes.append(tuple(x.shape[2:]))
        return [x]


def expected(dataset, indices):
    scores = paddle.nn.functional.interpolate(
        paddle.to_tensor(dataset.images[indices]), [24, 32], mode="bilinear"
    ).numpy()
    prediction, label = scores.argmax(1), dataset.labels[indices]
    valid = label != 255
    iou, accuracy = [], (prediction == label)[valid].mean()
    for c in range(3):
        p, y = (prediction == c) & valid, label == c
        iou.append((p & y).sum() / (p | y).sum())
    return iou, accuracy


def test_figures_equal_the_definition_and_leave_ignored_pixels_out():
    dataset = Maps()
    found = evaluate(Identity(), dataset, TestConfig())
    iou, accuracy = expected(dataset, list(range(5)))
    assert found.class_iou == pytest.approx(iou, rel=1e-12)
    assert found.miou == pytest.approx(np.mean(iou), rel=1e-12)
    assert found.accuracy == pytest.approx(accuracy, rel=1e-12)
    assert found.images == 5 and 0 < found.dice < 1 and -1 < found.kappa < 1


def test_figures_equal_paddlesegs_own_metrics():
    compat.apply()
    dataset, model = Maps(), Identity()
    model.eval()
    total = np.zeros([3, 3], np.int64)
    for i in range(5):
        prediction = predict(model, dataset[i], TestConfig())
        areas = metrics.calculate_area(paddle.to_tensor(prediction[None]), paddle.to_tensor(dataset.labels[i][None]), 3)
        total += np.stack([a.numpy() for a in areas])
    tensors = [paddle.to_tensor(t) for t in total]
    found = evaluate(model, dataset, TestConfig())
    assert found.miou == pytest.approx(metrics.mean_iou(*tensors)[1])
    assert found.kappa == pytest.approx(metrics.kappa(*tensors))
    assert found.dice == pytest.approx(metrics.dice(*tensors)[1])


def test_chance_is_the_miou_of_always_the_commonest_class():
    dataset = Maps()
    dataset.labels[:, 3:, :20] = 1
    dataset.images[:] = 0
    dataset.images[:, 1] = 1
    found = evaluate(Identity(), dataset, TestConfig())
    assert found.miou == pytest.approx(found.chance, rel=1e-9)


def test_the_model_is_back_in_train_mode_afterwards_also_after_an_error():
    model = Identity()
    model.train()
    evaluate(model, Maps(), TestConfig())
    assert model.training
    with pytest.raises(DataError, match="label_0.png: a label is not within 0..2"):
        evaluate(model, Maps(worst_label=9), TestConfig())
    assert model.training


@pytest.mark.parametrize("augmented", [False, True])
def test_probabilities_are_such_and_their_largest_is_what_is_predicted(augmented):
    dataset, model = Maps(), Identity()
    model.eval()
    config = TestConfig(aug_eval=augmented, scales=(0.5, 1.0), flip_horizontal=True)
    for sample in (dataset[0], {**dataset[1], "img": dataset.images[1] - 5}):
        values = predict_probabilities(model, sample, config)
        np.testing.assert_allclose(values.sum(0), 1, rtol=1e-5)
        assert values.min() >= 0 and (values.argmax(0) == predict(model, sample, config)).all()


@pytest.mark.parametrize("slide", [False, True])
def test_outputs_in_bfloat16_are_numbers_and_not_bits(slide):
    class Half(Identity):
        def forward(self, x):
            return [x.astype("bfloat16")]

    config = TestConfig(is_slide=slide, crop_size=(8, 8), stride=(4, 4))
    half, whole, sample = Half(), Identity(), Maps()[0]
    half.eval(), whole.eval()
    assert (predict(half, sample, config) == predict(whole, sample, config)).mean() > 0.95


def test_a_subset_is_spread_evenly():
    assert spread(10, 4) == [0, 2, 5, 7] and spread(3, 5) == [0, 1, 2] and spread(3, None) == [0, 1, 2]
    dataset = Maps()
    found = evaluate(Identity(), dataset, TestConfig(), limit=2)
    assert found.class_iou == pytest.approx(expected(dataset, spread(5, 2))[0]) and found.images == 2


@pytest.mark.parametrize(
    ("test_config", "sizes"),
    [
        (TestConfig(is_slide=True, crop_size=(8, 12), stride=(8, 12)), {(12, 8)}),
        (TestConfig(aug_eval=True, scales=(0.5, 1.0), flip_horizontal=True), {(6, 8), (12, 16)}),
        (TestConfig(aug_eval=True, scales=(2.0,), flip_vertical=True), {(24, 32)}),
    ],
)
def test_sliding_window_scales_and_flips_reach_the_model_and_leave_an_identity_nearly_as_it_was(test_config, sizes):
    model, dataset = Identity(), Maps()
    found = evaluate(model, dataset, test_config)
    assert set(model.sizes) == sizes
    assert found.images == 5
    if test_config.is_slide:  # windows of an identity put together are the identity
        assert found.class_iou == pytest.approx(expected(dataset, list(range(5)))[0], rel=1e-12)


@pytest.mark.parametrize("workers", [0, 3])
def test_threads_that_read_ahead_change_nothing(workers):
    assert evaluate(Identity(), Maps(), TestConfig(), num_workers=workers).miou == pytest.approx(
        evaluate(Identity(), Maps(), TestConfig()).miou, abs=0
    )


def test_shares_of_several_ranks_add_up_to_the_whole(monkeypatch):
    dataset, whole, seen = Maps(), evaluate(Identity(), Maps(), TestConfig()), []

    def run_as(rank, add):
        monkeypatch.setattr(env, "world_size", lambda: 2)
        monkeypatch.setattr(env, "rank", lambda: rank)
        monkeypatch.setattr(env, "sum_over_ranks", add)
        return evaluate(Identity(), dataset, TestConfig())

    run_as(0, lambda counts: seen.append(counts) or counts)
    found = run_as(1, lambda counts: counts + seen[0])
    assert found.class_iou == whole.class_iou and found.images == whole.images
