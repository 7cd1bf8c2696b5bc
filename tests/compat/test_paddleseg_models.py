"""PaddleSeg's models that did not work do; the rest is the `models` command's business."""

import numpy as np
import paddle
import pytest

from paddleseg_ext.cli.model_trial import attempt
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.models.catalogue import CATALOGUE, model_config
from tests.compat.world import CLASSES, component

MENDED = [
    *("DecoupledSegNet", "SFNet", "PointRend", "MaskFormer", "SegmentationTransformer", "LinearSegmenter"),
    *("MaskSegmenter", "UPerNetCAE", "ESPNetV1", "HRNetW48Contrast"),
]


def _build(config: dict) -> paddle.nn.Layer:
    from paddleseg.cvlibs import manager

    params = {key: _build(value) if key == "backbone" else value for key, value in config.items() if key != "type"}
    kind = manager.MODELS if config["type"] in manager.MODELS.components_dict else manager.BACKBONES
    return kind.components_dict[config["type"]](**params)


@pytest.mark.parametrize("name", MENDED)
def test_mended_model_trains_and_predicts(name):
    trial = attempt(name)
    assert trial.failure == ""
    assert trial.stride == "1"


def test_a_model_that_cannot_run_is_a_row_with_the_reason():
    trial = attempt("UPerNetViTAdapter")
    assert "CUDA operator ms_deform_attn" in trial.failure


def test_catalogue_has_every_model():
    from paddleseg.cvlibs import manager

    theirs = {name for name, cls in manager.MODELS.components_dict.items() if cls.__module__.startswith("paddleseg.")}
    assert set(CATALOGUE) == theirs


def test_missing_operator_is_said_in_one_line():
    with pytest.raises(ConfigError, match="ViTAdapter needs the CUDA operator ms_deform_attn") as error:
        component("BACKBONES", "ViTAdapter_Tiny")()
    assert "\n" not in str(error.value)


def test_maskformer_predicts_every_image_of_a_batch():
    from paddleseg.core.infer import inference

    model = _build(model_config("MaskFormer", CLASSES))
    model.eval()
    images = paddle.randn([2, 3, 64, 96])
    with paddle.no_grad():
        both = inference(model, images)
        alone = [inference(model, images[i : i + 1]) for i in range(2)]
    assert both.shape == [2, CLASSES, 64, 96]
    np.testing.assert_allclose(both.numpy(), paddle.concat(alone).numpy(), rtol=1e-4)


def test_warping_by_no_flow_changes_nothing():
    from paddleseg.models.sfnet import AlignedModule

    image = paddle.randn([2, 3, 5, 7])
    size = paddle.shape(image)[2:]
    warped = AlignedModule(4, 2).flow_warp(image, paddle.zeros([2, 2, 5, 7]), size)
    np.testing.assert_allclose(warped.numpy(), image.numpy(), atol=1e-5)


def test_warping_moves_by_the_flow():
    from paddleseg.models.sfnet import AlignedModule

    image = paddle.arange(7, dtype="float32").tile([1, 1, 5, 1])
    flow = paddle.zeros([1, 2, 5, 7])
    flow[:, 0] = 7.0  # half the width, in the units of a grid that is 2 wide: 3 pixels of the 6 between the ends
    warped = AlignedModule(4, 2).flow_warp(image, flow, paddle.shape(image)[2:])
    np.testing.assert_allclose(warped[0, 0, 0, :4].numpy(), [3, 4, 5, 6], atol=1e-5)


@pytest.mark.parametrize("name", ["BiseNetV1", "CCNet", "ESPNetV1"])
def test_pretrained_weights_are_loaded(name, tmp_path):
    config = model_config(name, CLASSES)
    first = _build(config)
    path = str(tmp_path / "model.pdparams")
    paddle.save(first.state_dict(), path)
    second = _build({**config, "pretrained": path})
    for key, value in first.state_dict().items():
        np.testing.assert_array_equal(second.state_dict()[key].numpy(), value.numpy(), err_msg=key)


@pytest.mark.parametrize("name", ["MobileNetV2_x0_25", "ShuffleNetV2_x0_25", "GhostNet_x0_5"])
def test_two_backbones_of_a_kind_fit_in_one_process(name):
    build = component("BACKBONES", name)
    first, second = build(), build()
    assert first.state_dict().keys() == second.state_dict().keys()
    assert not {p.name for p in first.parameters()} & {p.name for p in second.parameters()}


def test_named_cae_backbones_build():
    assert type(component("BACKBONES", "CAE_small_patch16_224")()).__name__ == "CAE"


def test_knet_leaves_its_configuration_as_it_was():
    config = model_config("KNet", CLASSES)
    _build(config)
    assert config == model_config("KNet", CLASSES)
