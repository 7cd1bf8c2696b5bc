"""The step of distillation."""

import dataclasses

import numpy as np
import paddle
import pytest
from nets import Net, TutorialModel, adaptor, batch, loss, task_loss

from paddleseg_ext.config import Component
from paddleseg_ext.distill.connector import Connector
from paddleseg_ext.distill.distiller import Distiller, Pair, names
from paddleseg_ext.distill.recorder import Recorder, no_features
from paddleseg_ext.losses.functional import resize
from paddleseg_ext.teachers import ModelTeacher
from paddleseg_ext.types import TeacherOutputs


@pytest.fixture
def models():
    paddle.seed(7)
    return Net(outputs=2, dropout=0), Net(width=8)


def distiller(student, teacher, *pairs, outputs=2):
    taught = ModelTeacher(teacher, no_features(teacher))
    return Distiller(student, no_features(student), taught, task_loss(student, outputs), pairs)


def test_every_loss_is_weighted_and_has_its_name(models):
    student, teacher = models
    sample = batch()
    step = distiller(student, teacher, Pair("distill/KLLoss", 0, 0, loss(), 3.0))
    result = step(sample)
    assert list(result.losses) == ["Resized_0", "Resized_1", "distill/KLLoss"]
    outputs = student(sample.images)
    wanted = 3 * loss()(outputs[0], teacher(sample.images)[0], sample.labels)
    assert float(result.losses["distill/KLLoss"]) == pytest.approx(float(wanted), rel=1e-5)
    assert len(result.logits) == 2 and all(x.stop_gradient for x in result.logits)


def test_the_student_learns_and_the_teacher_does_not(models):
    student, teacher = models
    step = distiller(student, teacher, Pair("kd", 0, 0, loss(), 1.0))
    step.train()
    step(batch()).losses["kd"].backward()
    assert student.stem[0].weight.grad is not None and student.heads[0].weight.grad is not None
    assert all(p.grad is None and p.stop_gradient for p in teacher.parameters())
    assert not teacher.training


def test_the_teacher_is_no_part_of_the_step(models):
    student, teacher = models
    step = distiller(student, teacher)
    assert {id(p) for p in step.parameters()} == {id(p) for p in student.parameters()}
    assert {name.removeprefix("student.") for name in step.state_dict()} == set(student.state_dict())


def test_a_teacher_of_another_resolution_is_brought_to_the_students(models):
    student, _ = models
    teacher, sample = Net(stride=4), batch()
    value = distiller(student, teacher, Pair("kd", 1, 0, loss(), 1.0))(sample).losses["kd"]
    taught = ModelTeacher(teacher, no_features(teacher))(sample).logits[0]
    assert taught.shape[2:] == [2, 2]
    wanted = loss()(student(sample.images)[1], resize(taught, (8, 8)), sample.labels)
    assert float(value) == pytest.approx(float(wanted), rel=1e-5)


def test_outputs_and_features_are_distilled_at_once(models):
    student, teacher = models[0], Net(width=6)
    pairs = [Pair("out", 0, 0, loss(), 1.0), Pair("feature", "hidden_0", "hidden_0", loss("SegChannelwiseLoss"), 5.0)]
    with (
        Recorder(adaptor(student, {"hidden_0": "stem"})) as caught,
        Recorder(adaptor(teacher, {"hidden_0": "stem"})) as t,
    ):
        step = Distiller(student, caught, ModelTeacher(teacher, t), task_loss(student, 2), pairs)
        losses = step(batch()).losses
        losses["feature"].backward()
    assert float(losses["out"]) > 0 and float(losses["feature"]) > 0
    assert student.stem[0].weight.grad is not None and student.heads[0].weight.grad is None


def test_the_tutorials_model_learns_its_teachers_reshaped_tensor():
    paddle.seed(0)
    student, teacher = TutorialModel(), TutorialModel()
    names = {"hidden_0": "conv2"}, {"hidden_1": lambda m: m.reshape_out}
    pairs = [Pair(key, key, key, loss("SegChannelwiseLoss", temperature=1), 1.0) for key in ("hidden_0", "hidden_1")]

    class NoTask:
        def __call__(self, outputs, batch):
            return {}

    with Recorder(adaptor(student, *names)) as caught, Recorder(adaptor(teacher, *names)) as taught:
        step = Distiller(student, caught, ModelTeacher(teacher, taught), NoTask(), pairs)
        optimizer = paddle.optimizer.Adam(0.01, parameters=student.parameters())
        history = []
        for _ in range(150):
            total = sum(step(batch()).losses.values())
            total.backward()
            optimizer.step()
            optimizer.clear_grad()
            history.append(float(total))
    assert history[-1] < 0.2 * history[0]


def test_the_students_random_numbers_do_not_depend_on_the_teacher():
    """A teacher in eval mode draws none, so that a student alone and a distilled one start alike."""
    drawn = []
    for teacher in (Net(), Net(width=16, outputs=2)):
        paddle.seed(11)
        student = Net()
        paddle.seed(12)
        drawn.append(distiller(student, teacher, outputs=1)(batch(seed=5)).logits[0].numpy())
    assert np.array_equal(*drawn)


def test_connectors_train_with_the_student_and_are_no_part_of_it(models):
    student, teacher = Net(), Net(width=9, stride=2)
    criterion = loss("HintLoss")
    with Recorder(adaptor(student, {}), ["stem"]) as caught, Recorder(adaptor(teacher, {}), ["stem"]) as taught:
        connector = Connector([2, 6, 8, 8], [2, 9, 4, 4], (8, 8), Component("auto", {}, "test"), criterion)
        pair = Pair("feature", "stem", "stem", criterion, 1.0, (connector,))
        step = Distiller(student, caught, ModelTeacher(teacher, taught), task_loss(student), [pair])
        step(batch()).losses["feature"].backward()
    assert connector.projection[0].weight.grad is not None
    assert {id(p) for p in step.parameters()} == {id(p) for p in (*student.parameters(), *connector.parameters())}
    assert not [name for name in student.state_dict() if "projection" in name]


@pytest.fixture
def mixed_precision():
    """The state that auto_cast sets on a GPU; on a CPU it sets none."""
    attributes = paddle.base.core._get_amp_attrs()
    before = attributes._amp_level, attributes._amp_dtype
    attributes._amp_level, attributes._amp_dtype = paddle.base.core.AmpLevel.O1, "float16"
    yield attributes
    attributes._amp_level, attributes._amp_dtype = before


@pytest.mark.parametrize("key", [0, "stem", ("stem", "stem")])
def test_losses_are_computed_in_float32_and_connectors_under_mixed_precision(mixed_precision, key):
    seen = {}

    def state(*tensors):
        return mixed_precision._amp_level, {x.dtype for x in tensors}

    class Spy(paddle.nn.Layer):
        def forward(self, students, teachers, label):
            seen["loss"] = state(*([*students, *teachers] if isinstance(students, list) else [students, teachers]))
            return paddle.zeros([])

    class Connector(paddle.nn.Layer):
        def forward(self, student, teacher):
            seen["connector"] = state(student, teacher)
            return student, teacher

    tensor = paddle.ones([2, 4, 8, 8], "float16")
    connectors = () if key == 0 else [Connector() for _ in names(key)]
    pair = Pair("pair", key, key, Spy(), 1.0, connectors)
    pair([tensor], {"stem": tensor}, TeacherOutputs([tensor], {"stem": tensor}), batch())
    assert seen["loss"] == (paddle.base.core.AmpLevel.O0, {paddle.float32})
    assert key == 0 or seen["connector"] == (paddle.base.core.AmpLevel.O1, {paddle.float16})
    assert mixed_precision._amp_level == paddle.base.core.AmpLevel.O1


def test_a_loss_whose_time_has_not_come_is_not_computed(models):
    student, teacher = models

    class Counted(type(loss())):
        calls = 0

        def forward(self, *arguments):
            Counted.calls += 1
            return super().forward(*arguments)

    step = distiller(student, teacher, Pair("kd", 0, 0, Counted(), 2.0, schedule=lambda i: float(i >= 5) / 2))
    assert float(step(batch()).losses["kd"]) == 0 and Counted.calls == 0
    later = dataclasses.replace(batch(), iteration=5)
    wanted = loss()(student(later.images)[0], teacher(later.images)[0], later.labels)
    assert float(step(later).losses["kd"]) == pytest.approx(float(wanted), rel=1e-5) and Counted.calls == 1
