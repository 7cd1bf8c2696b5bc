"""Weights of a model that is hardly ever asked lie in a file."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_ext.models.weights import digest
from paddleseg_ext.teachers.resting import Resting


def make_model():
    paddle.seed(0)
    model = nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.Conv2D(4, 2, 1))
    model.eval()
    return model


def test_a_model_that_rests_holds_no_weights_and_wakes_unchanged_when_it_is_called(tmp_path):
    model, images = make_model(), paddle.rand([1, 3, 8, 8])
    before, answer = digest(model), model(images).numpy()
    resting = Resting(model, tmp_path)
    for _ in range(2):
        resting.rest()
        resting.rest()
        assert not any(tensor._is_initialized() for tensor in model.state_dict().values())
        assert np.array_equal(model(images).numpy(), answer)
    resting.rest()
    resting.wake()
    assert digest(model) == before
    assert [p.shape for p in model.parameters()] == [p.shape for p in make_model().parameters()]
    assert not list(tmp_path.iterdir())  # the file has no name: nothing is left where the process is killed


def test_where_the_file_cannot_be_made_the_model_stays_as_it_is(tmp_path):
    model = make_model()
    with pytest.raises(OSError, match="no_such"):
        Resting(model, tmp_path / "no_such")
    assert model(paddle.rand([1, 3, 8, 8])).shape == [1, 2, 6, 6]
