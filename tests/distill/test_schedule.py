"""A weight in the course of training."""

import numpy as np
import pytest

from paddleseg_ext.config import Schedule
from paddleseg_ext.distill.schedule import WeightFactor


def factor(schedule, iteration, iters):
    return WeightFactor(schedule, iters)(iteration)


def test_it_counts_from_start_to_end_alone():
    assert [factor(Schedule(2, 5), i, 10) for i in range(7)] == [0, 0, 1, 1, 1, 0, 0]
    assert [factor(Schedule(2), i, 4) for i in range(5)] == [0, 0, 1, 1, 0]


def test_it_warms_up_in_equal_steps():
    np.testing.assert_allclose([factor(Schedule(1, -1, 3), i, 9) for i in range(6)], [0, 0.25, 0.5, 0.75, 1, 1])


@pytest.mark.parametrize(("decay", "middle"), [("linear", 0.5), ("cosine", 0.5)])
def test_it_falls_to_nothing_at_its_end(decay, middle):
    values = [factor(Schedule(0, 20, 0, decay), i, 100) for i in range(21)]
    assert values[0] == 1 and values[10] == pytest.approx(middle) and values[19] < 0.06 and values[20] == 0
    assert all(a >= b for a, b in zip(values, values[1:], strict=False))


def test_it_says_what_it_does():
    assert str(WeightFactor(Schedule(10, -1, 5, "linear"), 100)) == "iterations 10 to 100, warm-up 5, linear decay"
