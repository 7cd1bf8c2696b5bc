"""DistillReader over real servers in this process: teachers that do not fit, that are restarted."""

import logging
import time
from dataclasses import replace

import numpy as np
import pytest

from paddleseg_ext.service.reader import DistillReader
from tests.service.servers import SPEC, served, toy


def slow(inputs):
    time.sleep(0.01)
    return toy(inputs)


def numbered():
    """Batches without end."""
    number = 0
    while True:
        yield (np.full((1, 3, 4, 4), number, "float32"),)
        number += 1


@pytest.mark.parametrize(
    "change", [{"name": "image", "alias": "image"}, {"shape": (-1, 3, 8, 8)}, {"datatype": "INT32"}]
)
def test_a_teacher_that_takes_another_input_is_left_out_and_costs_no_sample(change, caplog):
    other = replace(SPEC, inputs=(replace(SPEC.inputs[0], **change),))
    reader = DistillReader(["x"], ["prediction"])
    with served(predictors=(slow,)) as right, served(spec=other) as wrong, caplog.at_level(logging.WARNING):
        reader.set_fixed_teacher(right.endpoint)
        epoch = reader.set_batch_generator(numbered)
        next(epoch())  # the model is settled
        reader.set_fixed_teacher([right.endpoint, wrong.endpoint])
        end = time.monotonic() + 20
        for number, (x, prediction) in enumerate(epoch()):
            np.testing.assert_allclose(prediction, toy([x])[0], rtol=1e-2, atol=1e-2)
            assert x[0, 0, 0, 0] == number and time.monotonic() < end
            if f"teacher {wrong.endpoint} is left out" in caplog.text:
                break
    assert f"{wrong.endpoint}: 'toy' has the inputs" in caplog.text
