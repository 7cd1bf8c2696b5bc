"""Every distillation loss as a pure function of tensors.

Rules for all: float32 inside, whatever comes in; the teacher's tensor carries no gradient; pixels whose label is
`ignore_index` change nothing, bit for bit; a batch without a valid pixel gives 0; inputs are never written to.
"""

from collections.abc import Callable

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

_TINY = 1e-12  # under roots and divisions, so that they and their gradients stay finite
_FAR_BELOW = -1e30  # a score that softmax turns into exactly 0, and whose difference to itself is finite


def nearest(label: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels [N, H, W] brought to `size` by nearest neighbour: int64 [N, h, w]."""
    if label.ndim != 3:
        raise ValueError(f"a label of shape [N, H, W] is expected, but got {list(label.shape)}")
    for axis, target in zip((1, 2), size, strict=True):
        given = label.shape[axis]
        if given != target:
            label = paddle.index_select(label, paddle.arange(target) * given // target, axis=axis)
    return label


def valid_mask(label: Tensor, size: tuple[int, int], ignore_index: int) -> Tensor:
    """Where labels count: bool [N, 1, h, w] from int64 labels [N, H, W], brought to `size` by nearest neighbour."""
    return (nearest(label, size) != ignore_index).unsqueeze(1)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of [N, C, H, W] to `size` (align_corners=False); the same tensor where the size already fits."""
    return x if tuple(x.shape[2:]) == tuple(size) else F.interpolate(x, size, mode="bilinear", align_corners=False)


def mixing(spots: np.ndarray) -> tuple[int, np.ndarray]:
    """Linear interpolation as a matrix: the first position that is needed, and float32 [spots, needed] to multiply by.

    Args:
        spots: float64, where to take a value; 0 is the first position, 0.5 between it and the second.
    """
    lower = np.floor(spots).astype(int)
    upper = np.ceil(spots).astype(int)
    first = int(lower.min())
    matrix = np.zeros((len(spots), int(upper.max()) - first + 1), "float32")
    rows, part = np.arange(len(spots)), (spots - lower).astype("float32")
    matrix[rows, lower - first] = 1 - part
    matrix[rows, upper - first] += part
    return first, matrix


def average(x: Tensor, size: tuple[int, int], mask: Tensor | None) -> Tensor:
    """[N, C, H, W] in float32 as means over a grid of `size`, each over the valid pixels of its cell; 0 where it has none."""
    if tuple(x.shape[2:]) == tuple(size):
        return clean(x, mask)
    means = F.adaptive_avg_pool2d(clean(x, mask), size)
    return means if mask is None else means / F.adaptive_avg_pool2d(mask.astype("float32"), size).clip(min=_TINY)


def highest(x: Tensor, mask: Tensor | None) -> Tensor:
    """The maximum of each map of [N, C, H, W] over valid pixels, [N, C, 1, 1]; 0 where there are none.

    By pooling: the gradient of Paddle 3.3.1's own `max` takes thousands of times longer on CPU.
    """
    if mask is None:
        return F.adaptive_max_pool2d(x, 1)
    top = F.adaptive_max_pool2d(paddle.where(mask, x, paddle.full([1], _FAR_BELOW, x.dtype)), 1)
    return paddle.where(top > _FAR_BELOW, top, paddle.zeros_like(top))


def log_softmax(x: Tensor, axis: int) -> Tensor:
    """x - log(sum(exp(x))) over `axis`, as paddle.nn.functional.log_softmax.

    Paddle 3.3.1's own CPU kernel takes time quadratic in the length of the axis and cuts the result off at -64.
    """
    x = x - x.detach().max(axis=axis, keepdim=True)
    return x - x.exp().sum(axis=axis, keepdim=True).log()


def softmax(x: Tensor, axis: int, temperature: float = 1.0) -> Tensor:
    """exp(x / t) over its sum over `axis`."""
    x = x if temperature == 1 else x / temperature
    powers = (x - x.detach().max(axis=axis, keepdim=True)).exp()
    return powers / powers.sum(axis=axis, keepdim=True)


def pixelwise_kl(student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
    """t^2 times the mean over valid pixels of KL(p_T || p_S), p = softmax over C of logits / t.

    Args:
        student, teacher: logits [N, C, h, w].
        mask: bool [N, 1, h, w], False where a pixel is ignored; None where all count.

    Source: Hinton, Vinyals, Dean 2015, with t^2 so that gradients keep their size.
    """
    mask = None if mask is None else mask.flatten()
    student, teacher = _prepared(_rows(student), _rows(teacher), mask)
    return temperature**2 * masked_mean(divergence(student, teacher, 0, temperature), mask)


def divergence(student: Tensor, teacher: Tensor, axis: int, temperature: float = 1.0) -> Tensor:
    """KL(p_T || p_S), p = softmax(x / t) over `axis`, which goes.

    As sum(p_T (x_T - x_S)) - log(sum(exp(x_T))) + log(sum(exp(x_S))), x less its maximum: two exponentials in place of three, and
    no probabilities of the student.
    """
    if temperature != 1:
        student, teacher = student / temperature, teacher / temperature
    student = student - student.detach().max(axis=axis, keepdim=True)
    teacher = teacher - teacher.max(axis=axis, keepdim=True)
    powers = teacher.exp()
    total = powers.sum(axis=axis)
    difference = (powers * (teacher - student)).sum(axis=axis) / total
    return difference + (student.exp().sum(axis=axis).log() - total.log())


def soft_cross_entropy(
    student: Tensor, teacher: Tensor, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """Mean over all but axis 1 of - sum_c p_T log p_S, p = softmax over axis 1 of logits / temperature.

    Source: Hinton, Vinyals, Dean 2015, without t^2. Its gradient is that of KL(p_T || p_S).
    """
    student, teacher = _prepared(student, teacher, None)
    p_t = log_softmax(teacher / teacher_temperature, axis=1).exp()
    return -(p_t * log_softmax(student / student_temperature, axis=1)).sum(axis=1).mean()


def channelwise_kl(student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
    """t^2 / (N C) times the sum over images and channels of KL(phi_T || phi_S), phi = softmax over valid pixels of x / t.

    Args:
        student, teacher: logits or features [N, C, h, w].
        mask: bool [N, 1, h, w], False where a pixel is left out; None where all count.

    Source: Shu et al. 2021, arXiv 2011.13256.
    """
    student, teacher = _prepared(student, teacher, mask)
    student, teacher = student / temperature, teacher / temperature
    if mask is not None:
        far_below = paddle.full([1], _FAR_BELOW, student.dtype)
        student, teacher = paddle.where(mask, student, far_below), paddle.where(mask, teacher, far_below)
    return temperature**2 * divergence(student.flatten(2), teacher.flatten(2), -1).mean()


def rowwise_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """PaddleSlim's SegChannelwiseLoss, for weights published with it: softmax over W alone, mean over all elements, no t^2."""
    student, teacher = _prepared(student, teacher, None)
    return divergence(student, teacher, -1, temperature).mean() / student.shape[-1]


def unit_vectors(x: Tensor, axis: int = 1) -> Tensor:
    """x over its length along `axis`; 0 stays 0."""
    return x / lengths(x, axis)


def lengths(x: Tensor, axis: int = 1) -> Tensor:
    """The square root of the sum of squares along `axis`, which stays with size 1, above 0."""
    return (x.square().sum(axis=axis, keepdim=True) + _TINY).sqrt()


def masked_kl(student: Tensor, teacher: Tensor, exist: Tensor, counts: Tensor) -> Tensor:
    """Mean over the rows that count of KL(softmax(teacher) || softmax(student)), both over the last axis where `exist`.

    Args:
        student, teacher: float32 [..., K].
        exist: bool, broadcast to them; the others take no part. Where a row has none, it gives 0.
        counts: float32 [...], 1 for the rows that count and 0 for the others.
    """
    far_below = paddle.full([1], _FAR_BELOW, "float32")
    student, teacher = (paddle.where(exist, x, far_below) for x in (student, teacher))
    return (divergence(student, teacher, -1) * counts).sum() / counts.sum().clip(min=1.0)


def standardized(x: Tensor, axis: int | list[int], mask: Tensor | None = None, epsilon: float = _TINY) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) over `axis`, both over the mask alone (0 outside it), by 1/n."""
    if mask is None:
        x = x - x.mean(axis=axis, keepdim=True)
        return x / (x.square().mean(axis=axis, keepdim=True) + epsilon).sqrt()
    weight = mask.astype(x.dtype)
    count = weight.sum(axis=axis, keepdim=True).clip(min=1.0)
    x = (x - (x * weight).sum(axis=axis, keepdim=True) / count) * weight
    return x / (x.square().sum(axis=axis, keepdim=True) / count + epsilon).sqrt()


def decoupled_kl(
    student: Tensor, teacher: Tensor, label: Tensor, mask: Tensor, alpha: float, beta: float, temperature: float
) -> Tensor:
    """t^2 times the mean over valid pixels of alpha KL(b_T || b_S) + beta KL(q_T || q_S).

    b = (p_y, 1 - p_y) for the label's class y; q = softmax over the other classes.

    Args:
        student, teacher: logits [N, C, h, w].
        label: int64 [N, h, w].
        mask: bool [N, 1, h, w].

    Source: Zhao et al. 2022, arXiv 2203.08679, per pixel.
    """
    mask = mask.flatten()
    student, teacher = (x / temperature for x in _prepared(_rows(student), _rows(teacher), mask))
    is_target = paddle.arange(student.shape[0]).unsqueeze(1) == label.flatten()

    def parts(x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of (y, not y) and of the other classes."""
        target = paddle.where(is_target, x, paddle.zeros([1])).sum(axis=0)
        others = paddle.where(is_target, paddle.full([1], _FAR_BELOW, x.dtype), x)
        return paddle.stack([target, _log_sum(others)]), others

    (binary_s, others_s), (binary_t, others_t) = parts(student), parts(teacher)
    per_pixel = alpha * divergence(binary_s, binary_t, 0) + beta * divergence(others_s, others_t, 0)
    return temperature**2 * masked_mean(per_pixel, mask)


def correlation_distance(
    student: Tensor, teacher: Tensor, mask: Tensor | None, beta: float, gamma: float, temperature: float
) -> Tensor:
    """t^2 times (beta * mean over valid pixels of 1 - r over classes + gamma * mean over classes of 1 - r over valid pixels).

    r is Pearson's correlation of the probabilities of student and teacher, p = softmax over C of logits / t; the pixels
    are those of the whole batch.

    Args:
        student, teacher: logits [N, C, h, w].
        mask: bool [N, 1, h, w] or None.

    Source: Huang et al. 2022, arXiv 2205.10536.
    """
    mask = None if mask is None else mask.flatten().unsqueeze(0)
    student, teacher = _prepared(_rows(student), _rows(teacher), mask)
    # Probabilities less their mean over the classes, which is 1 / C.
    s, t = (softmax(x, 0, temperature) - 1 / x.shape[0] for x in (student, teacher))
    over_classes = masked_mean(1 - _cosine(s, t, 0), mask)
    over_pixels = (1 - _cosine(_centred(s, 1, mask), _centred(t, 1, mask), 1)).mean()
    return temperature**2 * (beta * over_classes + gamma * over_pixels)


def edge_band(label: Tensor, mask: Tensor, radius: int) -> Tensor:
    """Where another class lies within `radius` pixels (in a square): bool [N, 1, h, w] from labels [N, h, w].

    Ignored pixels are no class.
    """
    x = label.unsqueeze(1).astype("float32")
    far = paddle.full([1], 1e6, x.dtype)
    window = {"kernel_size": 2 * radius + 1, "stride": 1, "padding": radius}
    highest = F.max_pool2d(paddle.where(mask, x, -far), **window)
    lowest = -F.max_pool2d(paddle.where(mask, -x, -far), **window)
    return paddle.logical_and(mask, highest != lowest)


def feature_distance(student: Tensor, teacher: Tensor, mask: Tensor | None, norm: str) -> Tensor:
    """Mean over valid pixels and channels of d(S - T): squared ('mse'), absolute ('l1') or Huber's with delta 1 ('smooth_l1').

    Source: Romero et al. 2015, arXiv 1412.6550.
    """
    student, teacher = _prepared(student, teacher, mask)
    return masked_mean(_distances[norm](student - teacher).mean(axis=1, keepdim=True), mask)


def normalized_feature_distance(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over valid pixels and channels of (z_S - z_T)^2, z each channel's map of each image standardised over valid pixels.

    With instance norm's epsilon 1e-5, which bounds the gradient of a channel that hardly varies.
    """
    student, teacher = _prepared(student, teacher, mask)
    z_s, z_t = (standardized(x, [2, 3], mask, epsilon=1e-5) for x in (student, teacher))
    difference = z_s - z_t
    return masked_mean(difference.square().mean(axis=1, keepdim=True), mask)


def attention_distance(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over images of ||a_S - a_T||^2, a = mean over C of F^2 as a vector over valid pixels, divided by its length.

    Channels may differ. Source: Zagoruyko, Komodakis 2017, arXiv 1612.03928.
    """
    student, teacher = _prepared(student, teacher, mask)

    def attention(x: Tensor) -> Tensor:
        energy = x.square().mean(axis=1).flatten(1)
        return unit_vectors(energy)

    return (attention(student) - attention(teacher)).square().sum(axis=1).mean()


def unit_distance(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over images of ||u_S - u_T||^2, u an image's whole feature over its length; at most 4."""
    student, teacher = _prepared(student, teacher, mask)

    def unit(x: Tensor) -> Tensor:
        return unit_vectors(x.flatten(1))

    return (unit(student) - unit(teacher)).square().sum(axis=1).mean()


def flow_matrix(first: Tensor, second: Tensor, mask: Tensor | None) -> Tensor:
    """F1 F2^T / (H W) of an image's two features [N, C1, h, w] and [N, C2, h, w], over valid pixels: [N, C1, C2]."""
    first, second = (clean(x, mask).flatten(2) for x in (first, second))
    count = first.shape[2] if mask is None else mask.astype("float32").sum(axis=[2, 3]).clip(min=1.0).unsqueeze(2)
    return paddle.matmul(first, second, transpose_y=True) / count


def pairwise_similarity_distance(
    student: Tensor, teacher: Tensor, mask: Tensor | None, grid: tuple[int, int]
) -> Tensor:
    """Mean over images and pairs of cells of (a_S - a_T)^2, a the cosine between the mean features of two cells of a grid.

    Cells without valid pixels are left out. Channels may differ. Memory grows with the square of the number of cells and
    not with the resolution. Source: Liu et al. 2019, arXiv 1903.04197 (whose code pools by the maximum).
    """
    student, teacher = _prepared(student, teacher, mask)
    grid = (min(grid[0], student.shape[2]), min(grid[1], student.shape[3]))

    def similarities(x: Tensor) -> Tensor:
        cells = unit_vectors(average(x, grid, mask).flatten(2))
        return paddle.matmul(cells, cells, transpose_x=True)

    squared = (similarities(student) - similarities(teacher)).square()
    if mask is None:
        return squared.mean()
    valid = (F.adaptive_avg_pool2d(mask.astype("float32"), grid).flatten(1) > 0).astype("float32")
    pairs = valid.unsqueeze(1) * valid.unsqueeze(2)
    return (squared * pairs).sum() / pairs.sum().clip(min=1.0)


def intra_class_variation_distance(
    student: Tensor, teacher: Tensor, label: Tensor, mask: Tensor, classes: int
) -> Tensor:
    """Mean over valid pixels of (c_S - c_T)^2, c the cosine between a pixel's feature and its class's mean in the image.

    Args:
        student, teacher: features [N, C, h, w]; channels may differ.
        label: int64 [N, h, w] in 0..classes-1 where the mask is True.

    Source: Wang et al. 2020, "Intra-class Feature Variation Distillation", ECCV.
    """
    student, teacher = _prepared(student, teacher, mask)
    numbers = paddle.arange(classes).reshape([1, -1, 1])
    valid = mask.flatten(2)
    members = paddle.logical_and(label.flatten(1).unsqueeze(1) == numbers, valid).astype("float32")
    counts = members.sum(axis=2, keepdim=True).clip(min=1.0)

    def similarity(x: Tensor) -> Tensor:
        x = x.flatten(2)
        means = paddle.matmul(members, x, transpose_y=True) / counts
        own = paddle.matmul(means, members, transpose_x=True)
        return _cosine(x, own, 1)

    return masked_mean((similarity(student) - similarity(teacher)).square(), valid)


def relational_distance(student: Tensor, teacher: Tensor, distance: float, angle: float) -> Tensor:
    """distance * mean Huber(d_S - d_T) + angle * mean Huber(cos_S - cos_T) over pairs and triples of images.

    d: Euclidean distances between the images' features, over their mean in the batch; cos: of the angle at the middle one
    of three images. Time and memory grow with the cube of the batch. Source: Park et al. 2019, arXiv 1904.05068.
    """
    if student.shape[0] < 3:
        raise ValueError(f"RKDLoss compares at least 3 images, but the batch has {student.shape[0]}")
    student, teacher = _prepared(student, teacher, None)
    huber = _distances["smooth_l1"]

    def relations(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.flatten(1)
        difference = x.unsqueeze(0) - x.unsqueeze(1)
        squared = difference.square().sum(axis=2)
        others = (1 - paddle.eye(x.shape[0])).astype(x.dtype)
        length = (squared + _TINY).sqrt() * others
        unit = difference / (squared + _TINY).sqrt().unsqueeze(2)
        count = others.sum()
        return length / (length.sum() / count + _TINY), paddle.matmul(unit, unit, transpose_y=True)

    (d_s, c_s), (d_t, c_t) = relations(student), relations(teacher)
    return distance * huber(d_s - d_t).mean() + angle * huber(c_s - c_t).mean()


def symmetric_kl(student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
    """t^2 times the mean over valid pixels of KL(p_T || p_S) + KL(p_S || p_T); gradients reach both sides.

    Source: Zhang et al. 2018, arXiv 1706.00384.
    """
    mask = None if mask is None else mask.flatten()
    student, teacher = clean(_rows(student), mask), clean(_rows(teacher), mask)
    log_s, log_t = log_softmax(student / temperature, axis=0), log_softmax(teacher / temperature, axis=0)
    per_pixel = ((log_t.exp() - log_s.exp()) * (log_t - log_s)).sum(axis=0)
    return temperature**2 * masked_mean(per_pixel, mask)


def masked_mean(per_pixel: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the pixels of the mask, of its shape, 0 where it has none."""
    if mask is None:
        return per_pixel.mean()
    count = mask.astype("float32").sum()
    return paddle.where(mask, per_pixel, paddle.zeros_like(per_pixel)).sum() / count.clip(min=1.0)


def _log_sum(x: Tensor) -> Tensor:
    """log(sum(exp(x))) over axis 0."""
    highest = x.detach().max(axis=0)
    return highest + (x - highest).exp().sum(axis=0).log()


def _rows(x: Tensor) -> Tensor:
    """A row of pixels for each class, [C, N h w] of [N, C, h, w]: Paddle's CPU kernels take what is the same for all classes from
    such rows several times faster."""
    return x.transpose([1, 0, *range(2, x.ndim)]).flatten(1)


def _prepared(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """float32, the teacher detached, and zeros in ignored pixels, so that even infinities there do no harm."""
    return clean(student, mask), clean(teacher.detach(), mask)


def clean(x: Tensor, mask: Tensor | None) -> Tensor:
    """float32, and zeros in ignored pixels."""
    x = x.astype("float32")
    return x if mask is None else paddle.where(mask, x, paddle.zeros_like(x))


def _centred(x: Tensor, axis: int | list[int], mask: Tensor | None) -> Tensor:
    """x minus its mean over `axis`, over the mask alone, 0 outside it."""
    if mask is None:
        return x - x.mean(axis=axis, keepdim=True)
    weight = mask.astype(x.dtype)
    mean = (x * weight).sum(axis=axis, keepdim=True) / weight.sum(axis=axis, keepdim=True).clip(min=1.0)
    return (x - mean) * weight


def _cosine(a: Tensor, b: Tensor, axis: int | list[int]) -> Tensor:
    """The cosine between a and b over `axis`; 1 where both are 0."""
    product = (a * b).sum(axis=axis, keepdim=True) + _TINY
    lengths = (a.square().sum(axis=axis, keepdim=True) + _TINY) * (b.square().sum(axis=axis, keepdim=True) + _TINY)
    return product / lengths.sqrt()


def _huber(x: Tensor) -> Tensor:
    size = x.abs()
    return paddle.where(size < 1, 0.5 * x.square(), size - 0.5)


_distances: dict[str, Callable[[Tensor], Tensor]] = {"mse": paddle.square, "l1": paddle.abs, "smooth_l1": _huber}
