"""PaddleSeg's metrics and inference functions."""

import numpy as np
import paddle
import pytest
from paddle import nn

from tests.compat.world import CLASSES


class Threshold(nn.Layer):
    """Logits that say which quarter of the grey scale a pixel is in; 1/2 of the input's size if asked."""

    def __init__(self, half: bool = False) -> None:
        super().__init__()
        self.half = half

    def forward(self, x: paddle.Tensor) -> list[paddle.Tensor]:
        grey = x.mean(axis=1, keepdim=True)
        centres = paddle.arange(CLASSES, dtype="float32").reshape([1, -1, 1, 1])
        return [-((grey[:, :, ::2, ::2] if self.half else grey) - centres).abs()]


def _image(height: int = 32, width: int = 48) -> tuple[paddle.Tensor, np.ndarray]:
    label = np.kron(np.random.default_rng(0).integers(0, CLASSES, (height // 16, width // 16)), np.ones((16, 16), int))
    return paddle.to_tensor(np.tile(label, (1, 3, 1, 1)).astype("float32")), label


def test_areas_are_counts_of_pixels_without_ignored_ones():
    from paddleseg.utils import metrics

    label = paddle.to_tensor([[[0, 1, 1, 255]]])
    pred = paddle.to_tensor([[[0, 1, 0, 1]]])
    intersect, pred_area, label_area = metrics.calculate_area(pred, label, 3)
    assert (intersect.tolist(), pred_area.tolist(), label_area.tolist()) == ([1, 1, 0], [2, 1, 0], [1, 2, 0])
    assert metrics.mean_iou(intersect, pred_area, label_area)[1] == pytest.approx((0.5 + 0.5) / 3)


@pytest.mark.parametrize("half", [False, True])
def test_inference_goes_back_to_the_size_before_the_transforms(half):
    from paddleseg.core.infer import inference

    image, label = _image()
    small = nn.functional.interpolate(image, size=[16, 24], mode="nearest")
    pred, logit = inference(Threshold(half), small, trans_info=[("resize", (32, 48))])
    assert pred.shape == [1, 1, 32, 48] and logit.shape == [1, CLASSES, 32, 48]
    assert (pred.numpy()[0, 0] == label).mean() > 0.7


@pytest.mark.parametrize("scales", [1, 1.0, [1], [0.5, 1.0, 2], (0.75, 1.25)])
@pytest.mark.parametrize("flip", [False, True])
def test_augmented_inference_takes_every_kind_of_scales(scales, flip):
    from paddleseg.core.infer import aug_inference

    image, label = _image()
    trans_info = [("resize", (32, 48))]
    pred, _ = aug_inference(Threshold(), image, trans_info, scales=scales, flip_horizontal=flip, flip_vertical=flip)
    assert pred.shape == [1, 1, 32, 48]
    assert (pred.numpy()[0, 0] == label).mean() > 0.85


def test_sliding_windows_make_the_whole_picture():
    from paddleseg.core.infer import aug_inference, inference, slide_inference

    image, label = _image()
    window = {"crop_size": (20, 20), "stride": (15, 15)}
    np.testing.assert_allclose(slide_inference(Threshold(), image, **window).numpy(), Threshold()(image)[0].numpy())
    pred, _ = inference(Threshold(), image, trans_info=[], is_slide=True, **window)
    np.testing.assert_array_equal(pred.numpy()[0, 0], label)
    pred, _ = aug_inference(Threshold(), image, [], scales=1, flip_horizontal=True, is_slide=True, **window)
    np.testing.assert_array_equal(pred.numpy()[0, 0], label)


@pytest.mark.parametrize("aug_eval", [False, True])
def test_evaluate_measures_a_perfect_model_as_perfect(aug_eval):
    from paddleseg.core import evaluate

    class Images(paddle.io.Dataset):
        num_classes, ignore_index = CLASSES, 255

        def __len__(self):
            return 3

        def __getitem__(self, index):
            image, label = _image()
            label = label.copy()
            label[:4] = 255
            return {"img": image.numpy()[0], "label": label[None], "trans_info": [("resize", (32, 48))]}

    miou, accuracy, *_ = evaluate(Threshold(), Images(), aug_eval=aug_eval, print_detail=False)
    assert (miou, accuracy) == (1.0, 1.0)
