"""Features of any two shapes are brought together, by as little as is needed."""

import numpy as np
import paddle
import pytest
from nets import loss

from paddleseg_ext.config import Component
from paddleseg_ext.distill.connector import build_connector
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.losses import DISTILLATION

CHANNEL, RELATION, IMAGES = loss("SegChannelwiseLoss"), loss("SegPairWiseLoss"), loss("RKDLoss")


def build(student, teacher, kind="auto", criterion=CHANNEL, size=(64, 96)):
    return build_connector(Component(kind, {}, "s.yml:9: distill.features[0]"), student, teacher, size, criterion)


@pytest.mark.parametrize(
    ("student", "teacher", "criterion", "words"),
    [
        ([2, 6, 8, 12], [2, 6, 8, 12], CHANNEL, "none"),
        ([2, 6, 8, 12], [2, 9, 8, 12], CHANNEL, "conv1x1 6 to 9 channels"),
        ([2, 6, 8, 12], [2, 6, 4, 6], CHANNEL, "resize to 4x6"),
        ([2, 6, 8, 12], [2, 9, 16, 24], CHANNEL, "conv1x1 6 to 9 channels, resize to 16x24"),
        ([2, 6, 8, 12], [2, 9, 8, 12], RELATION, "none"),
        ([2, 6, 8, 12], [2, 9, 4, 6], RELATION, "resize to 4x6"),
        ([2, 6, 8, 12], [2, 9, 4, 6], IMAGES, "none"),
        ([2, 96, 5], [2, 5, 8, 12], CHANNEL, "student's tokens as 8x12"),
        ([2, 6, 8, 12], [2, 24, 7], CHANNEL, "teacher's tokens as 4x6, conv1x1 6 to 7 channels, resize to 4x6"),
        ([2, 6, 8, 12], [2, 25, 6], CHANNEL, "teacher's tokens as 4x6, resize to 4x6"),
        (
            [2, 24, 5],
            [2, 96, 7],
            CHANNEL,
            "student's tokens as 4x6, teacher's tokens as 8x12, conv1x1 5 to 7 channels, resize to 8x12",
        ),
    ],
)
def test_auto_adds_only_what_is_needed_and_the_loss_can_be_computed(student, teacher, criterion, words):
    paddle.seed(0)
    if criterion is IMAGES:
        student, teacher = [3, *student[1:]], [3, *teacher[1:]]
    connector = build(student, teacher, criterion=criterion)
    assert connector.describe() == words
    s, t = paddle.rand(student), paddle.rand(teacher)
    s.stop_gradient = False
    value = criterion(*connector(s, t))
    value.backward()
    assert np.isfinite(float(value)) and s.grad is not None
    assert all(p.grad is not None for p in connector.parameters() if not p.stop_gradient)
    assert ("conv" in words) == bool(connector.parameters())


@pytest.mark.parametrize(("kind", "count"), [("conv1x1", 3), ("conv3x3", 3), ("mlp", 4)])
def test_a_chosen_connector_projects_even_where_shapes_agree(kind, count):
    connector = build([2, 6, 8, 8], [2, 6, 8, 8], kind)
    assert len(connector.parameters()) in (count, count + 2)  # batch norm keeps two statistics as parameters
    student, _ = connector(paddle.rand([2, 6, 8, 8]), paddle.rand([2, 6, 8, 8]))
    assert student.shape == [2, 6, 8, 8]


def test_tokens_become_the_map_that_they_were():
    feature = paddle.rand([2, 5, 8, 12])
    tokens = as_tokens(feature)
    with_class_token = paddle.concat([paddle.zeros([2, 1, 5]), tokens], axis=1)
    for x in (tokens, with_class_token):
        student, teacher = build(x.shape, feature.shape)(x, feature)
        assert np.array_equal(student.numpy(), teacher.numpy())


def as_tokens(feature):
    return feature.flatten(2).transpose([0, 2, 1])


def value(criterion, student, teacher, label):
    """Of what compares one feature or two of a side, with the same random numbers each time."""
    paddle.seed(0)
    connector = build(student.shape, teacher.shape, criterion=criterion)
    criterion.prepare(*connector.shapes)
    student, teacher = connector(student, teacher)
    many = [student, 2 * student], [teacher, teacher + 1]
    return float(criterion(*(many if criterion.features == 2 else (student, teacher)), label))


@pytest.mark.parametrize("name", [cls.__name__ for cls in DISTILLATION])
@pytest.mark.parametrize("size", [(8, 12), (4, 6)])
def test_every_loss_has_the_same_value_of_tokens_as_of_the_map_that_they_are(name, size):
    paddle.seed(1)
    student, teacher = paddle.randn([3, 6, *size]), paddle.randn([3, 6, 8, 12])
    label = paddle.randint(0, 4, [3, 64, 96])
    label[:, :32] = 255
    wanted = value(loss(name), student, teacher, label)
    assert wanted > 0
    for tokens in ((as_tokens(student), as_tokens(teacher)), (as_tokens(student), teacher)):
        assert value(loss(name), *tokens, label) == wanted


@pytest.mark.parametrize("name", [cls.__name__ for cls in DISTILLATION])
def test_without_a_connector_tokens_are_refused_where_an_axis_would_be_taken_for_another(name):
    able = name in ("SegChannelwiseLoss", "HintLoss", "NormalizedFeatureLoss", "RKDLoss")
    shapes = [3, 96, 6], [3, 96, 6]
    if able:
        assert build(*shapes, "none", loss(name)).describe() == "none"
        return
    with pytest.raises(
        ValueError, match=rf"{name} compares maps \[N, C, H, W\]; `connector: auto` makes them of tokens"
    ):
        build(*shapes, "none", loss(name))


def test_vectors_are_compared_as_they_are():
    assert build([2, 6], [2, 6]).shapes == ([2, 6], [2, 6])
    with pytest.raises(ValueError, match="MGDLoss compares maps"):
        build([2, 6], [2, 6], criterion=loss("MGDLoss"))
    for shapes in (([2, 6], [2, 9]), ([2, 6, 8, 12], [2, 6])):
        with pytest.raises(ValueError, match="vectors .* of the same length alone"):
            build(*shapes)


def test_crops_of_another_size_are_resized_to_what_the_teacher_has():
    connector = build([2, 6, 8, 12], [2, 9, 4, 6])
    student, teacher = connector(paddle.rand([2, 6, 16, 16]), paddle.rand([2, 9, 8, 8]))
    assert student.shape == teacher.shape == [2, 9, 8, 8]


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "message"),
    [
        (
            [2, 6, 8, 8],
            [2, 9, 8, 8],
            "none",
            "shapes must be equal, or a connector chosen",
        ),
        ([2, 6, 8, 8], [2, 9, 8, 8], "conv1x2", "no connector 'conv1x2'; closest: 'conv1x1'"),
        ([2, 6, 8, 8], [2, 23, 9], "auto", "23 tokens are no grid of a 64x96 image"),
        ([2, 6, 8, 8], [2, 3, 6, 8, 8], "auto", r"maps \[N, C, H, W\], tokens \[N, L, C\] or vectors"),
    ],
)
def test_what_cannot_be_brought_together_is_named(student, teacher, kind, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        build(student, teacher, kind)
