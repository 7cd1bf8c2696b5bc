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
