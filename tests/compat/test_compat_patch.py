"""Fixes touch what they name and nothing else."""

import sys
import types

import numpy as np
import paddle
import pytest

from paddleseg_ext import compat
from paddleseg_ext.compat import patch


@pytest.fixture
def module(monkeypatch):
    fake = types.ModuleType("release_of_tomorrow")
    fake.paddle = paddle
    fake.double = lambda x: 2 * x
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return fake


def test_applying_twice_wraps_once():
    from paddleseg.models.losses import CrossEntropyLoss

    once = CrossEntropyLoss._post_process_loss
    compat.apply()
    assert CrossEntropyLoss._post_process_loss is once


def test_wrap_puts_the_new_function_around_the_old(module):
    patch.wrap("release_of_tomorrow:double", lambda original: lambda x: original(x) + 1)
    assert module.double(3) == 7


def test_an_export_has_the_fix_and_not_what_it_mends(tmp_path):
    from paddleseg.models.decoupled_segnet import SqueezeBodyEdge

    paddle.seed(0)
    layer = SqueezeBodyEdge(4)
    layer.eval()
    x = paddle.rand([1, 4, 16, 16])
    paddle.jit.save(layer, str(tmp_path / "model"), [paddle.static.InputSpec([None, 4, None, None], "float32")])
    for given, wanted in zip(paddle.jit.load(str(tmp_path / "model"))(x), layer(x), strict=True):
        np.testing.assert_allclose(given.numpy(), wanted.numpy(), atol=1e-6)


def test_what_paddleseg_has_can_be_found_under_every_fix(module):
    original = module.double
    for _ in range(2):
        patch.wrap("release_of_tomorrow:double", lambda given: lambda x: given(x) + 1)
    assert patch.unmended(module.double) is original and module.double(1) == 4


@pytest.mark.parametrize("target", ["release_of_tomorrow:gone", "release_of_tomorrow:Gone.forward", "no_such:thing"])
def test_what_a_release_does_not_have_is_left_alone(module, target):
    before = dict(vars(module))
    patch.wrap(target, lambda original: pytest.fail("there is nothing to wrap"))
    patch.overlay(target.partition(":")[0], "gone", concat=None)
    assert vars(module) == before


def test_overlay_is_seen_by_its_module_alone(module):
    concat = paddle.concat
    patch.overlay("release_of_tomorrow", "paddle", concat=lambda x: "mine")
    assert module.paddle.concat([]) == "mine"
    assert module.paddle.nn.functional is paddle.nn.functional
    assert paddle.concat is concat


def test_paddle_itself_is_unchanged():
    for library in (paddle, paddle.nn, paddle.nn.functional):
        changed = [n for n, v in vars(library).items() if "paddleseg" in str(getattr(v, "__module__", ""))]
        assert changed == []
