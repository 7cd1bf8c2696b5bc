"""Losses between class scores."""

from paddle import Tensor

from paddleseg_ext.losses import functional as F
from paddleseg_ext.losses.base import Loss, positive


class KLLoss(Loss):
    """t^2 / C times the mean over valid pixels of KL(p_T || p_S), p = softmax over C of logits / t.

    PaddleSeg's definition, which averages over classes too; its `coef: [3]` belongs to it.

    Args:
        ignore_index: label value of the pixels left out. Default 255.
        temperature: t, above 0. Default 1.

    Shape: student and teacher [N, C, H, W] (or [N, C] and any further axes without a label); label int64 [N, H', W'].
    Raises: ConfigError where temperature is not positive.
    Source: `KLLoss` of PaddleSeg 2.8, with Hinton, Vinyals, Dean 2015.
    """

    def __init__(self, ignore_index: int = 255, temperature: float = 1.0) -> None:
        super().__init__(ignore_index)
        self.temperature = positive("KLLoss: temperature", temperature)

    def forward(self, student: Tensor, teacher: Tensor, label: Tensor | None = None) -> Tensor:
        mask = self.mask(student, label)
        return F.pixelwise_kl(student, teacher, mask, self.temperature) / student.shape[1]


class PixelwiseKLLoss(Loss):
    """t^2 times the mean over valid pixels of KL(p_T || p_S), p = softmax over C of logits / t.

    C times larger than KLLoss, and independent of the number of classes.

    Args:
        ignore_index: label value of the pixels left out. Default 255.
        temperature: t, above 0. Default 1.
        standardize: z-score each pixel's logits over the classes first; then a temperature of 2 and a weight of 9 are usual.
            Default False.

    Shape: student and teacher [N, C, H, W]; label int64 [N, H', W'].
    Raises: ConfigError where temperature is not positive.
    Source: Hinton, Vinyals, Dean 2015; standardize: Sun et al. 2024, arXiv 2403.01427.
    """

    def __init__(self, ignore_index: int = 255, temperature: float = 1.0, standardize: bool = False) -> None:
        super().__init__(ignore_index)
        self.temperature = positive("PixelwiseKLLoss: temperature", temperature)
        self.standardize = standardize

    def forward(self, student: Tensor, teacher: Tensor, label: Tensor | None = None) -> Tensor:
        mask = self.mask(student, label)
        if self.standardize:
            student, teacher = (F.standardized(F.clean(x, mask), 1) for x in (student, teacher))
        return F.pixelwise_kl(student, teacher, mask, self.temperature)


class DISTLoss(Loss):
    """t^2 (beta * mean over pixels of 1 - r over classes + gamma * mean over classes of 1 - r over pixels).

    r is Pearson's correlation of probabilities, p = softmax over C of logits / t, over all valid pixels of the batch. It asks
    for the same order of preferences and not for the same values, which a much smaller student finds easier. Of two classes r
    over classes is 1 or -1, whatever the probabilities, so that the second part alone teaches.

    Args:
        ignore_index: label value of the pixels left out. Default 255.
        beta, gamma: weights of the two parts. Default 1, 1.
        temperature: t, above 0. Default 1.

    Shape: student and teacher [N, C, H, W]; label int64 [N, H', W'].
    Raises: ConfigError where temperature is not positive.
    Source: Huang et al. 2022, arXiv 2205.10536.
    """

    def __init__(
        self, ignore_index: int = 255, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0
    ) -> None:
        super().__init__(ignore_index)
        self.beta, self.gamma = beta, gamma
        self.temperature = positive("DISTLoss: temperature", temperature)

    def forward(self, student: Tensor, teacher: Tensor, label: Tensor | None = None) -> Tensor:
        mask = self.mask(student, label)
        return F.correlation_distance(student, teacher, mask, self.beta, self.gamma, self.temperature)


class DKDLoss(Loss):
    """t^2 times the mean over valid pixels of alpha KL(b_T || b_S) + beta KL(q_T || q_S).

    b = (p_y, 1 - p_y) for the label's class y, q = softmax over the other classes, both of logits / t.

    Args:
        ignore_index: label value of the pixels left out. Default 255.
        alpha, beta: weights of the target and of the other classes. Default 1 and 0.5; 8 for beta is usual at temperature 4.
        temperature: t, above 0. Default 1.

    Shape: student and teacher [N, C, H, W]; label int64 [N, H', W'], needed.
    Raises: ConfigError where temperature is not positive; ValueError without a label.
    Source: Zhao et al. 2022, arXiv 2203.08679.
    """

    axes = (4,)

    def __init__(
        self, ignore_index: int = 255, alpha: float = 1.0, beta: float = 0.5, temperature: float = 1.0
    ) -> None:
        super().__init__(ignore_index)
        self.alpha, self.beta = alpha, beta
        self.temperature = positive("DKDLoss: temperature", temperature)

    def forward(self, student: Tensor, teacher: Tensor, label: Tensor | None = None) -> Tensor:
        y, mask = self.labels(student, label)
        return F.decoupled_kl(student, teacher, y, mask, self.alpha, self.beta, self.temperature)


class BPKDLoss(Loss):
    """edge * pixelwise_kl on the band around the labels' edges + body * channelwise_kl on the rest.

    Args:
        ignore_index: label value of the pixels left out. Default 255.
        edge, body: weights of the two parts. Default 50, 20.
        radius: a pixel belongs to the band where another class lies within so many pixels, at the logits' resolution.
            Default 3.
        temperature: t, above 0. Default 1.

    Shape: student and teacher [N, C, H, W]; label int64 [N, H', W'], needed.
    Raises: ConfigError where temperature or radius is not positive; ValueError without a label.
    Source: Liu et al. 2023, arXiv 2306.08075.
    """

    axes = (4,)

    def __init__(
        self,
        ignore_index: int = 255,
        edge: float = 50.0,
        body: float = 20.0,
        radius: int = 3,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(ignore_index)
        self.edge, self.body = edge, body
        self.radius = int(positive("BPKDLoss: radius", radius))
        self.temperature = positive("BPKDLoss: temperature", temperature)

    def forward(self, student: Tensor, teacher: Tensor, label: Tensor | None = None) -> Tensor:
        y, mask = self.labels(student, label)
        band = F.edge_band(y, mask, self.radius)
        on_edge = F.pixelwise_kl(student, teacher, band, self.temperature)
        inside = F.channelwise_kl(student, teacher, mask.logical_and(band.logical_not()), self.temperature)
        return self.edge * on_edge + self.body * inside


class DMLLoss(Loss):
    """t^2 times the mean over valid pixels of KL(p_T || p_S) + KL(p_S || p_T): both sides learn where both have gradients.

    Args:
        ignore_index: label value of the pixels left out. Default 255.
        temperature: t, above 0. Default 1.

    Shape: student and teacher [N, C, H, W]; label int64 [N, H', W'].
    Raises: ConfigError where temperature is not positive.
    Source: Zhang et al. 2018, arXiv 1706.00384.
    """

    def __init__(self, ignore_index: int = 255, temperature: float = 1.0) -> None:
        super().__init__(ignore_index)
        self.temperature = positive("DMLLoss: temperature", temperature)

    def forward(self, student: Tensor, teacher: Tensor, label: Tensor | None = None) -> Tensor:
        return F.symmetric_kl(student, teacher, self.mask(student, label), self.temperature)
