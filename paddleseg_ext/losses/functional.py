"""Every distillation loss as a pure function of tensors.

Rules for all: float32 inside, whatever comes in; the teacher's tensor carries no gradient; pixels whose label is
`ignore_index` change nothing, bit for bit; a batch without a valid pixel gives 0; inputs are never written to.
"""

import paddle
import paddle.nn.functional as F
from paddle import Tensor

_FAR_BELOW = -1e30  # a score that softmax turns into exactly 0, and whose difference to itself is finite


def valid_mask(label: Tensor, size: tuple[int, int], ignore_index: int) -> Tensor:
    """Where labels count: bool [N, 1, h, w] from int64 labels [N, H, W], brought to `size` by nearest neighbour."""
    if label.ndim != 3:
        raise ValueError(f"a label of shape [N, H, W] is expected, but got {list(label.shape)}")
    for axis, target in zip((1, 2), size, strict=True):
        given = label.shape[axis]
        if given != target:
            label = paddle.index_select(label, paddle.arange(target) * given // target, axis=axis)
    return (label != ignore_index).unsqueeze(1)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of [N, C, H, W] to `size` (align_corners=False); the same tensor where the size already fits."""
    return x if tuple(x.shape[2:]) == tuple(size) else F.interpolate(x, size, mode="bilinear", align_corners=False)


def log_softmax(x: Tensor, axis: int) -> Tensor:
    """x - log(sum(exp(x))) over `axis`, as paddle.nn.functional.log_softmax.

    Paddle 3.3.1's own CPU kernel takes time quadratic in the length of the axis and cuts the result off at -64.
    """
    x = x - x.detach().max(axis=axis, keepdim=True)
    return x - x.exp().sum(axis=axis, keepdim=True).log()


def pixelwise_kl(student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
    """t^2 times the mean over valid pixels of KL(p_T || p_S), p = softmax over C of logits / t.

    Args:
        student, teacher: logits [N, C, h, w].
        mask: bool [N, 1, h, w], False where a pixel is ignored; None where all count.

    Source: Hinton, Vinyals, Dean 2015, with t^2 so that gradients keep their size.
    """
    student, teacher = _prepared(student, teacher, mask)
    log_s = log_softmax(student / temperature, axis=1)
    log_t = log_softmax(teacher / temperature, axis=1)
    per_pixel = (log_t.exp() * (log_t - log_s)).sum(axis=1, keepdim=True)
    return temperature**2 * masked_mean(per_pixel, mask)


def channelwise_kl(student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
    """t^2 / (N C) times the sum over images and channels of KL(phi_T || phi_S), phi = softmax over valid pixels of x / t.

    Args:
        student, teacher: logits or features [N, C, h, w].
        mask: bool [N, 1, h, w], False where a pixel is left out; None where all count.

    Source: Shu et al. 2021, arXiv 2011.13256.
    """
    images, channels = student.shape[:2]
    student, teacher = _prepared(student, teacher, mask)
    student, teacher = student / temperature, teacher / temperature
    if mask is not None:
        far_below = paddle.full([1], _FAR_BELOW, student.dtype)
        student, teacher = paddle.where(mask, student, far_below), paddle.where(mask, teacher, far_below)
    log_s = log_softmax(student.reshape([images, channels, -1]), axis=-1)
    log_t = log_softmax(teacher.reshape([images, channels, -1]), axis=-1)
    return temperature**2 / (images * channels) * (log_t.exp() * (log_t - log_s)).sum()


def rowwise_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """PaddleSlim's SegChannelwiseLoss, for weights published with it: softmax over W alone, mean over all elements, no t^2."""
    student, teacher = _prepared(student, teacher, None)
    log_s = log_softmax(student / temperature, axis=-1)
    log_t = log_softmax(teacher / temperature, axis=-1)
    return (log_t.exp() * (log_t - log_s)).mean()


def masked_mean(per_pixel: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of [N, 1, h, w] over the pixels of the mask, 0 where it has none."""
    if mask is None:
        return per_pixel.mean()
    count = mask.astype("float32").sum()
    return paddle.where(mask, per_pixel, paddle.zeros_like(per_pixel)).sum() / count.clip(min=1.0)


def _prepared(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """float32, the teacher detached, and zeros in ignored pixels, so that even infinities there do no harm."""
    student, teacher = student.astype("float32"), teacher.detach().astype("float32")
    if mask is None:
        return student, teacher
    return paddle.where(mask, student, paddle.zeros_like(student)), paddle.where(
        mask, teacher, paddle.zeros_like(teacher)
    )
