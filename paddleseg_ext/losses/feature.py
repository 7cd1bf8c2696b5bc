"""Losses between feature maps."""

from collections.abc import Sequence

import paddle
from paddle import Tensor, nn

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.losses import functional as F
from paddleseg_ext.losses.base import AnyChannels, Loss, positive


class SegChannelwiseLoss(Loss):
    """t^2 / (N C) times the sum over images and channels of KL(phi_T || phi_S), phi = softmax over H*W of x / t.

    Each channel becomes a distribution over the valid pixels, so the loss looks at where a channel is active and not how
    strongly. Usual weights: 3 on logits, 50 on features.

    Args:
        ignore_index: label value of the pixels left out before the softmax. Default 255.
        temperature: t, above 0. Default 4, or 1 with compat.
        compat: 'paddleslim' for the definition that PaddleSeg's tutorial used (softmax over W alone, mean over all
            elements, no t^2, labels not used), where a weight found with that one is to be kept. Default None.

    Shape: student and teacher [N, C, H, W]; without a connector, [N, C, D] is taken as [N, C, 1, D] and [N, D] as one channel, of
        which all counts.
    Raises: ConfigError where temperature is not positive or compat is unknown.
    Source: Shu et al. 2021, arXiv 2011.13256.
    """

    axes = (2, 3, 4)

    def __init__(self, ignore_index: int = 255, temperature: float | None = None, compat: str | None = None) -> None:
        super().__init__(ignore_index)
        if compat not in (None, "paddleslim"):
            raise ConfigError(f"SegChannelwiseLoss: compat is null or 'paddleslim', but got {compat!r}")
        default = 4.0 if compat is None else 1.0
        self.temperature = positive("SegChannelwiseLoss: temperature", default if temperature is None else temperature)
        self.compat = compat

    def forward(self, student: Tensor, teacher: Tensor, label: Tensor | None = None) -> Tensor:
        mask = self.mask(student, label)
        student, teacher = as_map(student), as_map(teacher)
        if self.compat == "paddleslim":
            return F.rowwise_kl(student, teacher, self.temperature)
        return F.channelwise_kl(student, teacher, mask, self.temperature)


def as_map(x: Tensor) -> Tensor:
    if x.ndim == 4:
        return x
    return x.reshape([x.shape[0], 1 if x.ndim == 2 else x.shape[1], 1, -1])


class HintLoss(Loss):
    """Mean over valid pixels and channels of d(S - T).

    Args:
        ignore_index: label value of the pixels left out. Default 255.
        norm: d, 'mse' (squared), 'l1' (absolute) or 'smooth_l1' (Huber's with delta 1). Default 'mse'.

    Shape: student and teacher [N, C, H, W]; label int64 [N, H', W'].
    Raises: ConfigError where norm is unknown.
    Source: Romero et al. 2015, arXiv 1412.6550. Usual weight 10.
    """

    axes = (2, 3, 4)

    def __init__(self, ignore_index: int = 255, norm: str = "mse") -> None:
        super().__init__(ignore_index)
        if norm not in ("mse", "l1", "smooth_l1"):
            raise ConfigError(f"HintLoss: norm is 'mse', 'l1' or 'smooth_l1', but got {norm!r}")
        self.norm = norm

    def forward(self, student: Tensor, teacher: Tensor, label: Tensor | None = None) -> Tensor:
        mask = self.mask(student, label)
        return F.feature_distance(as_map(student), as_map(teacher), mask, self.norm)


class NormalizedFeatureLoss(Loss):
    """Mean over valid pixels and channels of (z_S - z_T)^2, z each channel's map of each image, standardised over valid pixels.

    Neither the offset of a channel counts nor, while its variance is well above 1e-5 (instance norm's epsilon), its scale. Usual
    weight 1.

    Args:
        ignore_index: label value of the pixels left out. Default 255.

    Shape: student and teacher [N, C, H, W]; label int64 [N, H', W'].
    """

    axes = (2, 3, 4)

    def forward(self, student: Tensor, teacher: Tensor, label: Tensor | None = None) -> Tensor:
        mask = self.mask(student, label)
        return F.normalized_feature_distance(as_map(student), as_map(teacher), mask)


class MGDLoss(Loss):
    """Mean over valid pixels and channels of (G(m S) - T)^2: from a part of the student's feature, generate the teacher's.

    m leaves a random share of the pixels, the same in all channels, drawn anew for each batch; G is a 3x3 convolution, ReLU and
    another 3x3 convolution that train with the student. The published weight 2e-5 belongs to the sum over pixels and
    channels (compat 'mmrazor') instead of the mean.

    Args:
        ignore_index: label value of the pixels left out. Default 255.
        mask_ratio: share of the pixels that are hidden, 0 to 1. Default 0.75.
        compat: 'mmrazor' for the sum over pixels and channels, averaged over images. Default None.

    Shape: student and teacher [N, C, H, W]; label int64 [N, H', W'].
    Raises: ConfigError where mask_ratio is not within 0 to 1 or compat is unknown.
    Source: Yang et al. 2022, arXiv 2205.01529.
    """

    axes = (4,)

    def __init__(self, ignore_index: int = 255, mask_ratio: float = 0.75, compat: str | None = None) -> None:
        super().__init__(ignore_index)
        if not 0 <= mask_ratio < 1:
            raise ConfigError(f"MGDLoss: mask_ratio is at least 0 and below 1, but got {mask_ratio!r}")
        if compat not in (None, "mmrazor"):
            raise ConfigError(f"MGDLoss: compat is null or 'mmrazor', but got {compat!r}")
        self.mask_ratio, self.compat = mask_ratio, compat
        self.generation: nn.Layer | None = None

    def prepare(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        channels = teacher[1]
        self.generation = nn.Sequential(
            nn.Conv2D(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2D(channels, channels, 3, padding=1)
        )

    def forward(self, student: Tensor, teacher: Tensor, label: Tensor | None = None) -> Tensor:
        assert self.generation is not None, "prepare() comes first"
        mask = self.mask(student, label)
        seen = paddle.rand([student.shape[0], 1, *student.shape[2:]]) >= self.mask_ratio
        generated = self.generation(F.clean(F.clean(student, mask), seen))
        loss = F.feature_distance(generated, teacher, mask, "mse")
        if self.compat is None:
            return loss
        valid = student.shape[2] * student.shape[3] if mask is None else mask.astype("float32").sum() / student.shape[0]
        return loss * valid * student.shape[1]


class AttentionTransferLoss(AnyChannels):
    """Mean over images of ||a_S - a_T||^2, a = mean over C of F^2 as a vector over valid pixels, divided by its length.

    Channels may differ. It is at most 2. The weight 1e4 that is usual where the difference is averaged over pixels
    too is 1e4 / (H W) here.

    Args:
        ignore_index: label value of the pixels left out. Default 255.

    Shape: student [N, C, H, W], teacher [N, C', H, W]; label int64 [N, H', W'].
    Source: Zagoruyko, Komodakis 2017, arXiv 1612.03928.
    """

    def forward(self, student: Tensor, teacher: Tensor, label: Tensor | None = None) -> Tensor:
        mask = self.mask(student, label)
        return F.attention_distance(as_map(student), as_map(teacher), mask)
