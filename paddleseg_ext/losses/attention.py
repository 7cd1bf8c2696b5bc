"""Features refined by learned attention, then compared."""

from collections.abc import Sequence

import paddle
from paddle import Tensor, nn

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.losses import functional as F
from paddleseg_ext.losses.base import Loss


class ConvolutionalAttention(nn.Layer):
    """CBAM: channels, then positions, are weighted by what is in the feature itself.

    x1 = x * sigmoid(m(mean x) + m(max x)) with means and maxima over valid pixels and m two linear layers with ReLU between;
    x1 * sigmoid(conv7x7([mean over C of x1, max over C of x1])).

    Source: Woo et al. 2018, arXiv 1807.06521.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.channel = nn.Sequential(nn.Conv2D(channels, hidden, 1), nn.ReLU(), nn.Conv2D(hidden, channels, 1))
        self.spatial = nn.Conv2D(2, 1, 7, padding=3, bias_attr=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = F.clean(x, mask)
        pooled = self.channel(F.average(x, (1, 1), mask)) + self.channel(F.highest(x, mask))
        x = x * nn.functional.sigmoid(pooled)
        top = nn.functional.adaptive_max_pool1d(x.flatten(2).transpose([0, 2, 1]), 1)  # fast, as in F.highest
        top = top.reshape([x.shape[0], 1, *x.shape[2:]])
        seen = paddle.concat([x.mean(axis=1, keepdim=True), top], axis=1)
        return x * nn.functional.sigmoid(self.spatial(seen))


class AttnFDLoss(Loss):
    """Mean over images of ||u_S - u_T||^2, u the feature refined by CBAM, all of an image's values divided by their length.

    The student's CBAM trains with the student. The teacher's keeps the weights it begins with, as in the published code,
    where it is part of the frozen teacher: one that trained could make both sides alike by making them empty.

    Args:
        ignore_index: label value of the pixels left out. Default 255.
        reduction: by how much CBAM's hidden layer is narrower than the feature. Default 16.

    Shape: student and teacher [N, C, H, W]; label int64 [N, H', W'].
    Raises: ConfigError where reduction is below 1.
    Source: Mansourian et al. 2024, arXiv 2403.05451 (whose code divides by the length over the whole batch). Usual weight 2.
    """

    axes = (4,)

    def __init__(self, ignore_index: int = 255, reduction: int = 16) -> None:
        super().__init__(ignore_index)
        if reduction < 1:
            raise ConfigError(f"AttnFDLoss: reduction is at least 1, but got {reduction!r}")
        self.reduction = reduction
        self.student_attention: nn.Layer | None = None
        self.teacher_attention: nn.Layer | None = None

    def prepare(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        self.student_attention, self.teacher_attention = (
            ConvolutionalAttention(shape[1], self.reduction) for shape in (student, teacher)
        )
        for parameter in self.teacher_attention.parameters():
            parameter.stop_gradient = True

    def forward(self, student: Tensor, teacher: Tensor, label: Tensor | None = None) -> Tensor:
        assert self.student_attention is not None and self.teacher_attention is not None, "prepare() comes first"
        mask = self.mask(student, label)
        refined = self.student_attention(student, mask)
        wanted = self.teacher_attention(teacher.detach(), mask)
        return F.unit_distance(refined, wanted, mask)
