"""Families of models as students of three kinds of teachers: outputs and one feature through `auto`, two iterations each."""

import functools

import numpy as np
import paddle
import pytest
from nets import batch, task_loss

from paddleseg_ext.config import Component, FeaturePair, OutputPair
from paddleseg_ext.distill.distiller import Distiller
from paddleseg_ext.distill.layers import record_layers, suggest_pairs
from paddleseg_ext.distill.pairs import build_pairs, dry_run
from paddleseg_ext.distill.recorder import Recorder, no_features
from paddleseg_ext.models import build_model
from paddleseg_ext.models.catalogue import model_config
from paddleseg_ext.teachers import ModelTeacher

CLASSES, SIZE = 4, 64
# A CNN at stride 8, one with auxiliary heads and other strides, and a transformer whose backbone gives tokens.
TEACHERS = ("DeepLabV3P", "PPLiteSeg", "SegFormer")
STUDENTS = (
    *("FastSCNN", "BiSeNetV2", "BiseNetV1", "LRASPP", "PPLiteSeg", "ENet", "ESPNetV2"),
    *("HarDNet", "DDRNet_23", "PSPNet", "UNet", "FCN", "OCRNet", "SegFormer", "LPSNet", "PFPNNet", "DeepLabV3P"),
)


def component(value):
    """A section of a YAML file, as `config.load` would give it."""
    if isinstance(value, list):
        return [component(item) for item in value]
    if isinstance(value, dict) and "type" in value:
        return Component(value["type"], {k: component(v) for k, v in value.items() if k != "type"}, value["type"])
    return value


@functools.cache
def built(name, role):
    paddle.seed(0)
    model, _ = build_model(component(model_config(name, CLASSES)), CLASSES, name_prefix=role)
    return model, record_layers(model, paddle.rand([1, 3, SIZE, SIZE]))


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_learns_from_every_kind_of_teacher(name):
    student, student_layers = built(name, "student_")
    sample = batch(SIZE, CLASSES)
    for teacher_name in TEACHERS:
        teacher, teacher_layers = built(teacher_name, "teacher_")
        ours, theirs = suggest_pairs(student_layers, teacher_layers)[0]
        pair = FeaturePair(
            *(ours.name, theirs.name, Component("SegChannelwiseLoss", {}, "x"), 1.0, Component("auto", {}, "x"), "x")
        )
        output = OutputPair(0, 0, Component("KLLoss", {}, "x"), 1.0, "x")
        catch = Recorder(no_features(student).adaptor, [ours.name])
        with catch as caught, Recorder(no_features(teacher).adaptor, [theirs.name]) as taught:
            model_teacher = ModelTeacher(teacher, taught)
            run = dry_run(student, caught, model_teacher, sample)
            pairs = build_pairs([output], [pair], run, ignore_index=255, num_classes=CLASSES, iters=2)
            step = Distiller(student, caught, model_teacher, task_loss(student, len(run.student_outputs)), pairs)
            optimizer = paddle.optimizer.SGD(0.001, parameters=step.parameters())
            step.train()
            before = [p.numpy().copy() for p in step.extras.parameters() if not p.stop_gradient]
            for _ in range(2):
                losses = step(sample).losses
                sum(losses.values()).backward()
                optimizer.step()
                optimizer.clear_grad()
                assert all(np.isfinite(float(value)) for value in losses.values()), (teacher_name, losses)
            after = [p.numpy() for p in step.extras.parameters() if not p.stop_gradient]
        assert len(losses) == len(run.student_outputs) + 2
        assert all(not np.array_equal(a, b) for a, b in zip(before, after, strict=True)), teacher_name
