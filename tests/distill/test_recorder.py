"""Internal tensors by name."""

import numpy as np
import paddle
import pytest
from nets import TutorialModel, adaptor

from paddleseg_ext.distill.recorder import Recorder, no_features
from paddleseg_ext.errors import ConfigError


def hooks_of(model):
    return sum(len(x._forward_post_hooks) + len(x._forward_pre_hooks) for x in model.sublayers(include_self=True))


@pytest.fixture
def model():
    paddle.seed(0)
    return TutorialModel()


@pytest.fixture
def images():
    paddle.seed(1)
    return paddle.rand([2, 3, 8, 8])


def test_the_tutorials_model_gives_a_layers_output_and_a_functional_tensor(model, images):
    with Recorder(adaptor(model, {"hidden_0": "conv2"}, {"hidden_1": lambda m: m.reshape_out})) as recorder:
        model(images)
        caught = recorder.take()
    assert list(caught) == ["hidden_0", "hidden_1"]
    conv2 = model.conv2(model.conv1(images))
    assert np.array_equal(caught["hidden_0"].numpy(), conv2.numpy())
    assert np.array_equal(caught["hidden_1"].numpy(), model.conv3(conv2).reshape([2, -1]).numpy())


def test_what_is_caught_carries_gradient(model, images):
    with Recorder(adaptor(model, {"hidden_0": "conv2"})) as recorder:
        model(images)
        recorder.take()["hidden_0"].sum().backward()
    assert model.conv1.weight.grad is not None and model.conv3.weight.grad is None


def test_hooks_come_off_at_the_end_also_after_an_error(model, images):
    before = hooks_of(model)
    with pytest.raises(KeyError), Recorder(adaptor(model, {"hidden_0": "conv2", "hidden_1": "conv3"})):
        assert hooks_of(model) == before + 2
        raise KeyError
    assert hooks_of(model) == before


def test_hooks_come_off_when_one_of_the_names_is_wrong(model):
    before = hooks_of(model)
    with pytest.raises(ConfigError), Recorder(adaptor(model, {"hidden_0": "conv2", "hidden_1": "conv4"})):
        pass
    assert hooks_of(model) == before


def test_a_name_that_is_no_layer_is_answered_with_the_closest(model):
    message = "Adaptor: 'hidden_0': TutorialModel has no layer 'conv_2'; closest: 'conv2'"
    with pytest.raises(ConfigError, match=message), Recorder(adaptor(model, {"hidden_0": "conv_2"})):
        pass


def test_each_forward_leaves_its_own_tensors_and_no_reference_stays(model, images):
    with Recorder(adaptor(model, {"hidden_0": "conv2"})) as recorder:
        model(images)
        first = recorder.take()["hidden_0"]
        model(images * 2)
        second = recorder.take()["hidden_0"]
        assert not np.array_equal(first.numpy(), second.numpy())
        assert recorder.take() == {}


def test_a_layers_input_can_be_meant(model, images):
    with Recorder(adaptor(model, {"hidden_0": "conv2:input"})) as recorder:
        model(images)
        caught = recorder.take()
    assert np.array_equal(caught["hidden_0"].numpy(), model.conv1(images).numpy())


def test_one_of_several_outputs_is_chosen_by_number():
    class Pair(paddle.nn.Layer):
        def forward(self, x):
            return x, x + 1

    class Holder(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.pair = Pair()

        def forward(self, x):
            return self.pair(x)[0]

    holder, x = Holder(), paddle.zeros([1])
    with Recorder(adaptor(holder, {"hidden_0": "pair[1]"})) as recorder:
        holder(x)
        assert recorder.take()["hidden_0"].item() == 1
    with Recorder(adaptor(holder, {"hidden_0": "pair"})), pytest.raises(ConfigError, match=r"choose one by a number"):
        holder(x)
    with Recorder(adaptor(holder, {"hidden_0": "pair[2]"})), pytest.raises(ConfigError, match="only 2 elements"):
        holder(x)


def test_a_tensor_that_forward_never_sets_is_explained(model, images):
    with Recorder(adaptor(model, {}, {"hidden_0": lambda m: m.flatten_out})) as recorder:
        model(images)
        with pytest.raises(ConfigError, match="flatten_out.*must be set by the model's forward"):
            recorder.take()


def test_a_functional_tensor_asked_for_outside_add_tensor_is_explained(model):
    from paddleseg_ext.distill.adaptor import AdaptorBase

    class Hasty(AdaptorBase):
        def mapping_layers(self):
            return {"hidden_0": self.model.reshape_out}

    with pytest.raises(ConfigError, match="inside `if self.add_tensor:`"), Recorder(Hasty(model)):
        pass


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (3, "the name of a layer is expected, but got 3$"),
        ("conv2[x]", r"got 'conv2\[x\]'; closest: 'conv2\[0\]'"),
        ("conv2:inputt", "got 'conv2:inputt'; closest: 'conv2:input'"),
    ],
)
def test_what_is_no_name_is_refused(model, spec, message):
    with pytest.raises(ConfigError, match=message), Recorder(adaptor(model, {"hidden_0": spec})):
        pass


def test_a_recorder_may_catch_nothing(model, images):
    with no_features(model) as recorder:
        model(images)
        assert recorder.take() == {}


class WithMethod(paddle.nn.Layer):
    """A sub-layer whose method, and not a layer, makes the tensor of interest."""

    def __init__(self):
        super().__init__()
        self.inner = Inner()
        self.other = Inner()

    def half(self, x):
        return x / 2, x / 4

    def forward(self, x):
        return self.half(self.inner(x) + self.other(x))[0]


class Inner(paddle.nn.Layer):
    def doubled(self, x):
        return 2 * x

    def forward(self, x):
        return self.doubled(x) + 1


def test_what_a_method_of_a_layer_returns_is_caught_without_editing_the_model(images):
    for train in (True, False):
        model = WithMethod()
        model.train() if train else model.eval()
        with Recorder(adaptor(model, {"hidden_0": "inner.doubled()"}), ["half()[1]"]) as recorder:
            model(images)
            caught = recorder.take()
        assert np.array_equal(caught["hidden_0"].numpy(), 2 * images.numpy())
        np.testing.assert_allclose(caught["half()[1]"].numpy(), (4 * images.numpy() + 2) / 4, rtol=1e-6)


def test_a_watched_method_is_put_back_and_other_layers_never_change(images):
    model = WithMethod()
    with Recorder(adaptor(model, {"hidden_0": "inner.doubled()", "hidden_1": "inner.doubled()"})):
        assert "doubled" in vars(model.inner) and "doubled" not in vars(model.other)
    assert "doubled" not in vars(model.inner)


def test_a_method_that_does_not_exist_is_answered_with_the_closest():
    model = WithMethod()
    with pytest.raises(ConfigError, match="Inner has no method 'doubld'; closest: 'doubled'"):
        Recorder(adaptor(model, {"hidden_0": "inner.doubld()"})).__enter__()
    with pytest.raises(ConfigError, match="WithMethod has no layer 'iner'; closest: 'inner'"):
        Recorder(adaptor(model, {"hidden_0": "iner.doubled()"})).__enter__()
