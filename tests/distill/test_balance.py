"""How much each loss weighs."""

import numpy as np
import paddle
import pytest
from nets import Net, batch, loss, task_loss

from paddleseg_ext.distill.balance import term_shares
from paddleseg_ext.distill.distiller import Distiller, Pair
from paddleseg_ext.distill.recorder import no_features
from paddleseg_ext.teachers import ModelTeacher, PeerTeacher


@pytest.fixture
def models():
    paddle.seed(3)
    return Net(dropout=0), Net(width=8)


def distiller(student, teacher, *pairs):
    teacher = ModelTeacher(teacher, no_features(teacher))
    step = Distiller(student, no_features(student), teacher, task_loss(student), pairs)
    step.train()
    return step


def test_shares_are_those_of_the_losses_and_of_their_gradients(models):
    student, _ = models
    step, sample = distiller(*models, Pair("kd", 0, 0, loss(), 3.0)), batch()
    shares = {s.name: s for s in term_shares(step, student, sample)}
    losses, norms = step(sample).losses, {}
    for name, value in losses.items():
        value.backward(retain_graph=True)
        norms[name] = np.sqrt(sum(float(p.grad.square().sum()) for p in student.parameters() if p.grad is not None))
        student.clear_gradients()
    for name, value in losses.items():
        assert shares[name].loss == pytest.approx(float(value) / sum(map(float, losses.values())), rel=1e-4)
        assert shares[name].gradient == pytest.approx(norms[name] / sum(norms.values()), rel=1e-4)
    assert sum(s.gradient for s in shares.values()) == pytest.approx(1)


def test_weights_gradients_and_statistics_stay_as_they_are(models):
    student, _ = models
    step = distiller(*models, Pair("kd", 0, 0, loss(), 3.0))
    before = {name: value.numpy().copy() for name, value in step.state_dict().items()}
    term_shares(step, student, batch())
    assert all((value.numpy() == before[name]).all() for name, value in step.state_dict().items())
    assert all(p.grad is None for p in step.parameters())


def test_a_weight_that_is_far_too_small_or_too_large_is_warned_of(models):
    student, _ = models
    for weight, words in (
        (1e-6, "teaches next to nothing; raise its weight"),
        (1e7, "drowns the others; lower its weight"),
    ):
        shares = term_shares(distiller(*models, Pair("kd", 0, 0, loss(), weight)), student, batch())
        warnings = {s.name: s.warning for s in shares}
        assert words in warnings["kd"]
    balanced = term_shares(distiller(*models, Pair("kd", 0, 0, loss(), 3.0)), student, batch())
    assert [s.warning for s in balanced] == [None, None]


def test_a_loss_whose_time_has_not_come_is_left_out(models):
    pair = Pair("kd", 0, 0, loss(), 3.0, schedule=lambda i: 0.0)
    assert [s.name for s in term_shares(distiller(*models, pair), models[0], batch())] == ["Resized"]


def test_losses_of_a_teacher_that_learns_too_have_no_share_of_what_moves_the_student(models):
    student, teacher = models
    pair, sample = Pair("kd", 0, 0, loss("DMLLoss"), 3.0), batch()
    peer = PeerTeacher(teacher, no_features(teacher), task_loss(teacher))
    step = Distiller(student, no_features(student), peer, task_loss(student), [pair])
    assert "teacher/Resized" in step(sample).losses
    shares = term_shares(step, student, sample)
    assert [s.name for s in shares] == ["Resized", "kd"] and not any(s.warning for s in shares)
    assert sum(s.loss for s in shares) == pytest.approx(1) and sum(s.gradient for s in shares) == pytest.approx(1)
