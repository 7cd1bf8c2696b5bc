"""The `loss` section as PaddleSeg means it."""

import paddle
import pytest
from paddle import nn

from paddleseg_ext import config as configuration
from paddleseg_ext.config import Component, LossTerm
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.losses.build import build_task_losses
from paddleseg_ext.losses.task import TaskLoss, unique_names
from paddleseg_ext.types import Batch


def term(kind, weight=1.0, **arguments):
    return LossTerm(Component(kind, arguments, "s.yml:3: loss.types[0]"), weight, 0)


def batch(**extra):
    paddle.seed(3)
    labels = paddle.randint(0, 3, [2, 8, 8])
    labels[:, :2] = 255
    return Batch(paddle.rand([2, 3, 8, 8]), labels, ("a.png", "b.png"), extra)


def logits(count=1, channels=3):
    paddle.seed(4)
    return [paddle.randn([2, channels, 8, 8]) for _ in range(count)]


def task(*terms, model=None):
    return TaskLoss(build_task_losses(terms, 255), model or nn.Layer(), "s.yml: loss")


def paddleseg_value(kind, outputs, target, **arguments):
    from paddleseg.cvlibs import manager

    return manager.LOSSES[kind](**arguments)(outputs, target)


def test_every_output_has_its_own_loss_and_coefficient():
    outputs, sample = logits(2), batch()
    values = task(term("CrossEntropyLoss"), term("DiceLoss", 0.4))(outputs, sample)
    assert list(values) == ["CrossEntropyLoss", "DiceLoss"]
    cross = paddleseg_value("CrossEntropyLoss", outputs[0], sample.labels)
    dice = paddleseg_value("DiceLoss", outputs[1], sample.labels.clone())
    assert float(values["CrossEntropyLoss"]) == pytest.approx(float(cross), rel=1e-6)
    assert float(values["DiceLoss"]) == pytest.approx(0.4 * float(dice), rel=1e-6)


def test_losses_of_one_kind_are_numbered():
    values = task(term("CrossEntropyLoss"), term("CrossEntropyLoss", 0.5))(logits(2), batch())
    assert list(values) == ["CrossEntropyLoss_0", "CrossEntropyLoss_1"]


def test_a_mixed_loss_is_reported_part_by_part_with_its_own_coefficients():
    parts = [Component("CrossEntropyLoss", {}, "x"), Component("LovaszSoftmaxLoss", {}, "x")]
    outputs, sample = logits(), batch()
    values = task(term("MixedLoss", 2.0, losses=parts, coef=[0.8, 0.2]))(outputs, sample)
    cross = paddleseg_value("CrossEntropyLoss", outputs[0], sample.labels)
    assert list(values) == ["MixedLoss/CrossEntropyLoss", "MixedLoss/LovaszSoftmaxLoss"]
    assert float(values["MixedLoss/CrossEntropyLoss"]) == pytest.approx(2 * 0.8 * float(cross), rel=1e-6)


def test_losses_leave_the_labels_alone():
    sample = batch()
    before = sample.labels.numpy().copy()
    task(term("DiceLoss"))(logits(), sample)
    assert (sample.labels.numpy() == before).all()


def test_a_bce_loss_with_edge_label_compares_with_the_edges():
    edges = paddle.randint(0, 2, [2, 8, 8])
    outputs = logits(channels=1)
    values = task(term("BCELoss", edge_label=True))(outputs, batch(edge=edges))
    wanted = paddleseg_value("BCELoss", outputs[0], edges, edge_label=True)
    assert float(values["BCELoss"]) == pytest.approx(float(wanted), rel=1e-6)


def test_a_bce_loss_with_edge_label_says_when_the_data_have_no_edges():
    with pytest.raises(ConfigError, match="s.yml: loss: BCELoss with edge_label needs `edge: true` in train_dataset"):
        task(term("BCELoss", edge_label=True))(logits(channels=1), batch())


def test_a_kl_loss_among_the_task_losses_pulls_the_first_output_to_the_second():
    outputs = logits(2)
    for x in outputs:
        x.stop_gradient = False
    values = task(term("CrossEntropyLoss"), term("KLLoss"))(outputs, batch())
    values["KLLoss"].backward()
    assert outputs[0].grad is not None and outputs[1].grad is None


def test_a_model_with_its_own_loss_is_asked_for_it():
    class Own(nn.Layer):
        def loss_computation(self, outputs, losses, data):
            assert set(data) >= {"img", "label"} and losses["coef"] == [0.5]
            return [losses["coef"][0] * outputs[0].mean(), outputs[0].max()]

    outputs = logits()
    values = task(term("CrossEntropyLoss", 0.5), model=Own())(outputs, batch())
    assert list(values) == ["CrossEntropyLoss_0", "CrossEntropyLoss_1"]
    assert float(values["CrossEntropyLoss_1"]) == float(outputs[0].max())


def test_another_number_of_outputs_than_losses_says_how_to_write_it():
    message = (
        r"s.yml: loss: the model has 3 outputs in training and needs as many losses, but there are 1 \(one type with 3"
    )
    with pytest.raises(ConfigError, match=message):
        task(term("CrossEntropyLoss"))(logits(3), batch())


def test_the_sum_is_what_paddlesegs_yaml_means(tmp_path):
    (tmp_path / "s.yml").write_text(
        "{batch_size: 2, iters: 1, model: {type: BiSeNetV2}, train_dataset: {type: Cityscapes}, optimizer: {type: SGD},\n"
        "lr_scheduler: {type: PolynomialDecay, learning_rate: 0.1},\n"
        "loss: {types: [{type: CrossEntropyLoss}], coef: [1, 0.4, 0.3]}}"
    )
    terms = configuration.load(str(tmp_path / "s.yml")).loss
    outputs, sample = logits(3), batch()
    values = TaskLoss(build_task_losses(terms, 255), nn.Layer(), "s.yml: loss")(outputs, sample)
    wanted = sum(
        coef * float(paddleseg_value("CrossEntropyLoss", x, sample.labels))
        for coef, x in zip((1, 0.4, 0.3), outputs, strict=True)
    )
    assert sum(map(float, values.values())) == pytest.approx(wanted, rel=1e-6)


def test_names_are_numbered_only_where_they_repeat():
    assert unique_names(["a", "b", "a"]) == ["a_0", "b", "a_1"]
