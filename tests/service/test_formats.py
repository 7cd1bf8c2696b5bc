"""Outputs become smaller on their way and mean the same at its end."""

import numpy as np
import pytest

from paddleseg_ext.service.formats import Extras, OutputForm, cast, expand, highest, seen
from paddleseg_ext.service.spec import ModelSpec, TensorSpec
from tests.service.servers import SPEC

LOGITS = np.random.default_rng(0).normal(0, 4, [2, 19, 5, 7]).astype("float32")


def softmax(x):
    x = np.exp(x - x.max(1, keepdims=True))
    return x / x.sum(1, keepdims=True)


@pytest.mark.parametrize("k", [1, 3, 17])
def test_the_highest_keep_their_probabilities_and_the_others_share_the_rest(k):
    values, classes = highest(LOGITS, k)
    assert values.shape == (2, k + 1, 5, 7) and classes.shape == (2, k, 5, 7) and classes.dtype == np.uint8
    np.testing.assert_array_equal(classes[:, 0], LOGITS.argmax(1))
    assert (np.diff(values[:, :k], axis=1) <= 0).all()
    wanted, found = softmax(LOGITS), softmax(expand(values, classes, 19))
    np.testing.assert_allclose(
        np.take_along_axis(found, classes.astype(int), 1), np.take_along_axis(wanted, classes.astype(int), 1), rtol=1e-5
    )
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize(("size", "dtype"), [(256, np.uint8), (257, np.int16), (40000, np.int32)])
def test_classes_take_as_few_bytes_as_they_can(size, dtype):
    logits = np.zeros([1, size], np.float32)
    logits[0, -1] = 1
    _, classes = highest(logits, 1)
    assert classes.dtype == dtype and classes[0, 0] == size - 1


@pytest.mark.parametrize(
    ("values", "classes", "message"),
    [
        (np.zeros([1, 3, 2]), np.zeros([1, 3, 2], int), "take classes"),
        (np.zeros([1, 3, 2]), np.full([1, 2, 2], 19), "classes from 19 to 19, but there are 19"),
        (np.zeros([1, 3, 2]), np.full([1, 2, 2], -1), "classes from -1"),
        (np.zeros([1, 22, 2]), np.zeros([1, 21, 2], int), "take classes"),
    ],
)
def test_what_does_not_fit_is_not_expanded(values, classes, message):
    with pytest.raises(ValueError, match=message):
        expand(values, classes, 19)


def test_values_beyond_fp16_become_its_largest():
    x = np.array([1e6, -1e6, 1.5], np.float32)
    assert cast(x, "FP16").tolist() == [65504, -65504, 1.5]
    assert np.isnan(cast(np.array([np.nan], np.float32), "FP16")).all()


def test_what_is_sent_and_its_extras_give_what_a_student_sees():
    for form in (OutputForm(), OutputForm("BF16", 2), OutputForm("FP32", 4), OutputForm("FP16", 40)):
        sent, extras = form.sent(SPEC)
        said = ModelSpec(  # as it is described: without aliases
            *(sent.name, sent.version, sent.inputs),
            tuple(TensorSpec(t.name, t.datatype, t.shape) for t in sent.outputs),
        )
        assert seen(said, Extras.read(extras.write())) == form.seen(SPEC)
    assert len(OutputForm("BF16", 2).sent(SPEC)[0].outputs) == 3
    assert len(OutputForm("BF16", 4).sent(SPEC)[0].outputs) == 2  # of five classes, four and a rest are no saving


@pytest.mark.parametrize("text", ["", "[]", '{"aliases": []}', '{"classes": {"y": "5"}}', '{"classes": {"y": 1e9}}'])
def test_extras_that_make_no_sense_are_refused(text):
    with pytest.raises(ValueError):
        Extras.read(text)


def test_extras_of_outputs_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="no output y.values"):
        seen(SPEC, Extras({}, {"y": 5}))
