"""Activations computed anew: the same training with less memory."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_ext.engine.recompute import activations_kept, recompute_blocks
from paddleseg_ext.errors import ConfigError


class Block(nn.Layer):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.norm, self.conv2 = (
            nn.Conv2D(width, width, 3, padding=1),
            nn.BatchNorm2D(width),
            nn.Conv2D(width, width, 1),
        )
        self.drop = nn.Dropout(0.3)

    def forward(self, x, scale=1.0):
        return x + scale * self.drop(self.conv2(nn.functional.relu(self.norm(self.conv1(x)))))


class Net(nn.Layer):
    def __init__(self):
        super().__init__()
        paddle.seed(5)
        self.stem, self.blocks, self.head = (
            nn.Conv2D(3, 6, 1),
            nn.LayerList([Block(6) for _ in range(3)]),
            nn.Conv2D(6, 2, 1),
        )

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, scale=0.5)
        return self.head(x)


def trained(model, steps=2):
    optimizer = paddle.optimizer.Momentum(0.1, parameters=model.parameters())
    for step in range(steps):
        paddle.seed(step)
        loss = model(paddle.rand([2, 3, 8, 8])).square().mean()
        loss.backward()
        gradients = [p.grad.numpy().copy() for p in model.parameters() if p.grad is not None]
        optimizer.step()
        optimizer.clear_grad()
    return gradients


def test_gradients_dropout_weights_and_running_statistics_are_the_same():
    plain, saving = Net(), Net()
    assert recompute_blocks(saving) == 3
    for ours, theirs in zip(trained(saving), trained(plain), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for name, value in plain.state_dict().items():
        np.testing.assert_array_equal(saving.state_dict()[name].numpy(), value.numpy(), err_msg=name)


def test_what_is_inside_of_blocks_is_computed_twice_in_training_and_once_else():
    model, runs = Net(), []
    recompute_blocks(model)
    model.blocks[0].conv2.register_forward_post_hook(lambda *_: runs.append(1))
    trained(model, steps=1)
    assert len(runs) == 2
    with paddle.no_grad():
        model(paddle.rand([1, 3, 8, 8]))
    model.eval()
    model(paddle.rand([1, 3, 8, 8]))
    assert len(runs) == 4


def caught_in(block, saving):
    """A net, recomputed or not, and a list of what a layer inside of one of its blocks gives."""
    model, caught = Net(), []
    if saving:
        recompute_blocks(model)
    model.blocks[block].conv1.register_forward_post_hook(lambda _l, _i, y: caught.append(y))
    paddle.seed(0)
    return model, caught


def test_a_feature_inside_of_a_block_teaches_as_without():
    gradients = []
    for saving in (False, True):
        model, caught = caught_in(1, saving)
        model(paddle.rand([2, 3, 8, 8]))
        caught[0].square().mean().backward()
        gradients.append(model.blocks[1].conv1.weight.grad.numpy())
    np.testing.assert_array_equal(*gradients)
    assert np.abs(gradients[0]).max() > 0


def test_one_forward_serves_several_backwards_where_activations_are_kept():
    gradients = []
    for saving in (False, True):
        model, caught = caught_in(0, saving)
        with activations_kept(model):
            model(paddle.rand([2, 3, 8, 8]))
        weight, losses = model.blocks[0].conv1.weight, (caught[0].square().mean(), caught[0].abs().mean())
        gradients.append([paddle.grad(loss, weight, retain_graph=True)[0].numpy() for loss in losses])
    np.testing.assert_array_equal(*gradients)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ConfigError, match="--recompute: Conv2D has no blocks"):
        recompute_blocks(nn.Conv2D(3, 3, 1))
