"""A teacher with other classes than the student's."""

import numpy as np
import paddle
import pytest

from paddleseg_ext.distill.class_map import ClassMap
from paddleseg_ext.errors import ConfigError

# Five teacher classes to four student classes: 1 and 3 mean the student's 2, the teacher's 4 and the student's 0 have no partner.
MAPPING = {0: 3, 1: 2, 3: 2, 2: 1}


@pytest.fixture
def classes():
    return ClassMap(MAPPING, 5, 4, 255, "s.yml: distill.class_map")


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_probabilities_of_teacher_classes_that_mean_the_same_add_up(classes):
    x = np.random.default_rng(0).normal(0, 3, (2, 5, 3, 4)).astype("float32")
    p = softmax(x.astype("float64"))
    wanted = np.stack([p[:, 2], p[:, 1] + p[:, 3], p[:, 0]], axis=1)
    wanted /= wanted.sum(1, keepdims=True)
    mapped = classes.teacher(paddle.to_tensor(x))
    np.testing.assert_allclose(softmax(mapped.numpy().astype("float64")), wanted, rtol=1e-5)


def test_extreme_scores_stay_exact(classes):
    x = np.full((1, 5, 1, 1), -1e4, "float32")
    x[0, 3] = 1e4
    mapped = classes.teacher(paddle.to_tensor(x)).numpy()
    assert np.isfinite(mapped).all() and mapped[0, 1, 0, 0] == 1e4


def test_the_student_keeps_the_shared_classes_in_their_order(classes):
    x = paddle.arange(4).astype("float32").reshape([1, 4, 1, 1])
    assert classes.student(x).flatten().tolist() == [1, 2, 3] and len(classes) == 3


def test_labels_of_classes_that_are_not_shared_are_ignored_and_others_renumbered(classes):
    labels = paddle.to_tensor([[[0, 1, 2, 3, 255, -1]]])
    assert classes.labels(labels).flatten().tolist() == [255, 0, 1, 2, 255, -1]


def test_one_to_one_needs_no_sum():
    classes = ClassMap({1: 0, 0: 1}, 2, 2, 255, "")
    x = paddle.to_tensor([[[[5.0]], [[7.0]]]])
    assert classes.teacher(x).flatten().tolist() == [7, 5]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [({5: 0}, "the teacher has no class 5; it has 0 to 4"), ({0: 4}, "the student has no class 4; it has 0 to 3")],
)
def test_classes_that_do_not_exist_are_named(mapping, message):
    with pytest.raises(ConfigError, match=f"s.yml: distill.class_map: {message}"):
        ClassMap(mapping, 5, 4, 255, "s.yml: distill.class_map")
