"""Which outputs and features are compared, and what cannot be."""

import dataclasses

import paddle
import pytest
from nets import Net, adaptor, batch

from paddleseg_ext.config import Component, Config, Distillation, FeaturePair, LossTerm, OutputPair, Schedule
from paddleseg_ext.distill.pairs import DryRun, build_pairs, describe, dry_run, output_pairs
from paddleseg_ext.distill.recorder import Recorder, no_features
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.losses import DISTLoss
from paddleseg_ext.teachers import ModelTeacher

KL, CHANNEL = (
    Component("KLLoss", {}, "s.yml:5: distill_loss"),
    Component("SegChannelwiseLoss", {}, "s.yml:6: distill_loss"),
)


NUMBERS = {"ignore_index": 255, "num_classes": 4, "iters": 100}


def run(student, teacher):
    return dry_run(student, no_features(student), ModelTeacher(teacher, no_features(teacher)), batch())


def config(*terms, outputs=()):
    return Config("s.yml", Component("Net", {}, ""), distill_loss=terms, distill=Distillation(outputs=outputs))


def chosen(terms, student_outputs, teacher_outputs):
    shapes = run(Net(outputs=student_outputs), Net(outputs=teacher_outputs))
    return [(p.student, p.teacher, p.loss.type, p.weight) for p in output_pairs(config(*terms), shapes)]


def test_several_losses_compare_the_first_outputs_whatever_the_models_return():
    terms = [LossTerm(KL, 3, None), LossTerm(CHANNEL, 0.5, None)]
    expected = [(0, 0, "KLLoss", 3), (0, 0, "SegChannelwiseLoss", 0.5)]
    for counts in ((1, 1), (3, 1), (1, 2), (3, 3)):
        assert chosen(terms, *counts) == expected


def test_as_many_losses_as_both_models_have_outputs_go_output_by_output():
    terms = [LossTerm(KL, 3, None), LossTerm(CHANNEL, 0.5, None)]
    assert chosen(terms, 2, 2) == [(0, 0, "KLLoss", 3), (1, 1, "SegChannelwiseLoss", 0.5)]


def test_one_type_for_several_coefficients_goes_output_by_output():
    terms = [LossTerm(KL, 1, 0), LossTerm(KL, 0.4, 1)]
    assert chosen(terms, 3, 2) == [(0, 0, "KLLoss", 1), (1, 1, "KLLoss", 0.4)]


def test_outputs_that_are_paired_by_hand_replace_the_rest():
    pair = OutputPair(2, 0, KL, 2.0, "s.yml:9: distill.outputs[0]")
    assert output_pairs(config(LossTerm(CHANNEL, 1, None), outputs=(pair,)), run(Net(outputs=3), Net())) == (pair,)


@pytest.mark.parametrize(("classes", "losses"), [(2, ["PixelwiseKLLoss", "SegChannelwiseLoss"]), (3, ["DISTLoss"])])
def test_auto_compares_the_first_outputs_by_what_suits_the_number_of_classes(classes, losses):
    asked = dataclasses.replace(config(LossTerm(KL, 1, None)), distill=Distillation(auto="s.yml:9: distill"))
    shapes = DryRun((8, 8), ([1, classes, 2, 2], None), {}, ([1, classes, 2, 2],), {})
    pairs = output_pairs(asked, shapes)
    assert [(p.student, p.teacher, p.loss.type) for p in pairs] == [(0, 0, loss) for loss in losses]
    assert all(p.weight > 0 and p.loss.where == "s.yml:9: distill" for p in pairs)
    build_pairs(pairs, [], shapes, **{**NUMBERS, "num_classes": classes})


def test_between_two_classes_a_correlation_teaches_nothing():
    student, teacher = (paddle.randn([2, 2, 4, 4]) for _ in range(2))
    student.stop_gradient = False
    DISTLoss(gamma=0.0)(student, teacher).backward()
    between_classes = student.grad.abs().max()
    student.clear_gradient()
    DISTLoss(beta=0.0)(student, teacher).backward()
    assert between_classes < 1e-3 * student.grad.abs().max()


def test_a_dry_run_leaves_the_students_statistics_and_weights_as_they_were():
    student = Net()
    before = {name: value.numpy().copy() for name, value in student.state_dict().items()}
    run(student, Net())
    assert student.training
    assert all((value.numpy() == before[name]).all() for name, value in student.state_dict().items())


def test_a_dry_run_sees_outputs_and_features_of_both():
    student, teacher = Net(outputs=2, stride=2), Net(width=9)
    with (
        Recorder(adaptor(student, {"hidden_0": "stem"})) as caught,
        Recorder(adaptor(teacher, {"hidden_0": "stem.0"})) as t,
    ):
        shapes = dry_run(student, caught, ModelTeacher(teacher, t), batch())
    assert shapes.student_outputs == ([2, 4, 4, 4], [2, 4, 4, 4]) and shapes.teacher_outputs == ([2, 4, 8, 8],)
    assert shapes.student_features == {"hidden_0": [2, 6, 4, 4]} and shapes.teacher_features == {
        "hidden_0": [2, 9, 8, 8]
    }


def output_pair(student=0, teacher=0, loss=KL):
    return OutputPair(student, teacher, loss, 1.0, "s.yml:9: distill.outputs[0]")


@pytest.mark.parametrize(
    ("pair", "student", "message"),
    [
        (output_pair(student=1), Net(), "the student has no output 1; it has 1, counted from 0"),
        (output_pair(teacher=4), Net(), "the teacher has no output 4; it has 2, counted from 0"),
        (output_pair(), Net(classes=5), "student output 0 has 5 classes, teacher output 0 has 4"),
    ],
)
def test_outputs_that_cannot_be_compared_are_named_before_training(pair, student, message):
    with pytest.raises(ConfigError, match="s.yml:9: distill.outputs.*" + message):
        build_pairs([pair], [], run(student, Net(outputs=2)), **NUMBERS)


def test_an_output_that_is_no_map_of_logits_is_named():
    class Odd(paddle.nn.Layer):
        def forward(self, x):
            return [x.mean([2, 3]), {"not": "a tensor"}]

    for index, what in ((0, r"\[2, 3\]"), (1, "no tensor")):
        with pytest.raises(ConfigError, match=f"output {index} of the student is no map of logits but {what}"):
            build_pairs([output_pair(student=index)], [], run(Odd(), Net()), **NUMBERS)


def features(student="stem", teacher="stem", **sizes):
    s, t = Net(), Net(**sizes)
    with Recorder(adaptor(s, {"hidden_0": student})) as caught, Recorder(adaptor(t, {"hidden_0": teacher})) as taught:
        return dry_run(s, caught, ModelTeacher(t, taught), batch())


def feature_pair(student="hidden_0", teacher="hidden_0", loss="SegChannelwiseLoss", connector="none"):
    where = "mine.py: prepare_distill_config[0]"
    return FeaturePair(student, teacher, Component(loss, {}, where), 2.0, Component(connector, {}, where), where)


def test_features_of_different_shapes_are_named_with_both():
    with pytest.raises(
        ConfigError,
        match=r"student 'hidden_0' is \[2, 6, 8, 8\] and teacher 'hidden_0' is \[2, 9, 8, 8\]; shapes must be equal",
    ):
        build_pairs([], [feature_pair()], features(width=9), **NUMBERS)


def test_a_key_that_no_adaptor_gives_is_named_with_those_it_gives():
    with pytest.raises(ConfigError, match="TeacherAdaptor.mapping_layers gives no 'hidden_3'; it gives 'hidden_0'"):
        build_pairs([], [feature_pair(teacher="hidden_3")], features(), **NUMBERS)


def test_names_of_losses_tell_what_they_compare():
    shapes = run(Net(outputs=2), Net(outputs=2))
    same = build_pairs([output_pair(), output_pair(loss=CHANNEL)], [], shapes, **NUMBERS)
    assert [p.name for p in same] == ["distill/KLLoss", "distill/SegChannelwiseLoss"]
    several = build_pairs([output_pair(), output_pair(1, 1), output_pair(1, 1)], [], shapes, **NUMBERS)
    assert [p.name for p in several] == ["distill/KLLoss_0_0", "distill/KLLoss_1_1_0", "distill/KLLoss_1_1_1"]
    (feature,) = build_pairs([], [feature_pair()], features(), **NUMBERS)
    assert feature.name == "distill/SegChannelwiseLoss_hidden_0"
    assert describe(feature, features()).endswith(
        "feature hidden_0 [2, 6, 8, 8] <- teacher feature hidden_0 [2, 6, 8, 8], weight 2"
    )


def test_connectors_have_parameter_names_of_their_own_whatever_was_built_before():
    twice = [feature_pair(connector="auto"), feature_pair(connector="conv3x3")]
    names = []
    for _ in range(2):
        pairs = build_pairs([], twice, features(width=9), **NUMBERS)
        names.append([p.name for pair in pairs for p in pair.connectors[0].parameters()])
    assert names[0] == names[1] and len(set(names[0])) == len(names[0]) > 4


def test_a_schedule_that_starts_after_training_is_an_error():
    pair = dataclasses.replace(feature_pair(), schedule=Schedule(start=100))
    with pytest.raises(ConfigError, match="starts at iteration 100, but training has 100"):
        build_pairs([], [pair], features(), **NUMBERS)


def test_a_schedule_scales_the_weight_by_the_batchs_iteration():
    pair = dataclasses.replace(feature_pair(), schedule=Schedule(start=10, end=30, decay="linear"))
    (built,) = build_pairs([], [pair], features(), **NUMBERS)
    assert [built.schedule(i) for i in (0, 9, 10, 20, 30)] == [0, 0, 1, 0.5, 0]
