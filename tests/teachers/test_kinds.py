"""Teachers that follow, learn, or are several."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_ext.distill.recorder import no_features
from paddleseg_ext.teachers import EmaTeacher, ModelTeacher, PeerTeacher, SeveralTeachers
from paddleseg_ext.types import UNLABELLED, Batch, TeacherOutputs


class Model(nn.Layer):
    def __init__(self, scale=1, seed=0):
        super().__init__()
        paddle.seed(seed)
        self.body = nn.Sequential(nn.Conv2D(3, 6, 3, padding=1, stride=scale), nn.BatchNorm2D(6), nn.ReLU())
        self.head = nn.Conv2D(6, 4, 1)

    def forward(self, x):
        return [self.head(self.body(x))]


def batch(iteration=0, label=0):
    paddle.seed(1)
    labels = paddle.full([2, 8, 8], label, "int64")
    return Batch(paddle.rand([2, 3, 8, 8]), labels, iteration=iteration)


def values(model):
    return {name: tensor.numpy().astype("float64") for name, tensor in model.state_dict().items()}


def moved(student, by):
    for tensor in student.state_dict().values():
        tensor.set_value(tensor + by)


def test_a_following_teacher_begins_as_the_student_and_then_lags_behind():
    student, copy = Model(seed=0), Model(seed=3)
    teacher = EmaTeacher(copy, no_features(copy), student, decay=0.9)
    teacher(batch(0))
    first = values(student)
    assert all(np.array_equal(v, first[k]) for k, v in values(copy).items())
    moved(student, 1.0)
    teacher(batch(500))
    for name, value in values(copy).items():
        np.testing.assert_allclose(value, 0.9 * first[name] + 0.1 * (first[name] + 1), rtol=1e-5, atol=1e-6)


def test_early_on_it_follows_faster():
    student, copy = Model(seed=0), Model(seed=3)
    teacher = EmaTeacher(copy, no_features(copy), student, decay=0.9)
    teacher(batch(0))
    before = values(copy)
    moved(student, 1.0)
    teacher(batch(2))  # (1 + 2) / (10 + 2)
    assert values(copy)["head.bias"] == pytest.approx(0.25 * before["head.bias"] + 0.75 * (before["head.bias"] + 1))


def test_it_follows_once_an_iteration_however_often_it_is_asked():
    student, copy = Model(seed=0), Model(seed=3)
    teacher = EmaTeacher(copy, no_features(copy), student, decay=0.9)
    teacher(batch(0))
    moved(student, 1.0)
    teacher(batch(5))
    once = values(copy)
    teacher(batch(5))
    assert all(np.array_equal(v, once[k]) for k, v in values(copy).items())


def test_it_gives_no_gradient_and_is_no_part_of_the_student():
    student, copy = Model(seed=0), Model(seed=3)
    said = EmaTeacher(copy, no_features(copy), student)(batch())
    assert said.logits[0].stop_gradient and not copy.training and student.training


def losses(outputs, batch):
    return {"Cross": nn.functional.cross_entropy(outputs[0], batch.labels, axis=1, ignore_index=255)}


def test_a_peer_is_in_train_mode_and_has_losses_of_its_own():
    model = Model()
    peer = PeerTeacher(model, no_features(model), losses)
    said = peer(batch())
    assert model.training and list(said.losses) == ["teacher/Cross"] and not said.logits[0].stop_gradient
    sum(said.losses.values()).backward()
    assert np.abs(model.head.weight.grad.numpy()).max() > 0


def test_a_peer_learns_nothing_from_pixels_without_a_label():
    seen = []

    def watched(outputs, batch):
        seen.append(batch.labels)
        return losses(outputs, batch)

    model = Model()
    PeerTeacher(model, no_features(model), watched, ignore_index=255)(batch(label=UNLABELLED))
    assert (seen[0].numpy() == 255).all()


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_several_teachers_are_averaged_by_probability_and_weight():
    models = [Model(seed=0), Model(seed=3)]
    teachers = {name: ModelTeacher(m, no_features(m)) for name, m in zip("ab", models, strict=True)}
    (logits,) = SeveralTeachers(teachers, [3, 1], mean=True)(batch()).logits
    p = [softmax(t(batch()).logits[0].numpy().astype("float64")) for t in teachers.values()]
    np.testing.assert_allclose(softmax(logits.numpy()), 0.75 * p[0] + 0.25 * p[1], rtol=1e-4)


def test_teachers_of_different_resolution_meet_at_the_firsts():
    models = [Model(scale=2), Model(scale=1)]
    teachers = {name: ModelTeacher(m, no_features(m)) for name, m in zip("ab", models, strict=True)}
    assert SeveralTeachers(teachers, [1, 1], mean=True)(batch()).logits[0].shape == [2, 4, 4, 4]


def test_each_teacher_keeps_its_outputs_and_features_by_name():
    def fixed(value, count):
        return lambda _: TeacherOutputs((value,) * count, {"hidden_0": value})

    said = SeveralTeachers({"a": fixed(1, 2), "b": fixed(2, 1)}, [1, 1], mean=False)(batch())
    assert said.logits == (1, 1, 2) and said.features == {"a/hidden_0": 1, "b/hidden_0": 2}
