"""NumPy 2.4 refuses `int()` of an array of one element that has dimensions; older ones took it.

Affected: MaskFormerLoss, for every image that does not show all classes.
"""

import paddle
from paddle import Tensor

from paddleseg_ext.compat.patch import overlay


def apply() -> None:
    overlay("paddleseg.models.losses.maskformer_loss", "paddle", nonzero=_flat_nonzero)


def _flat_nonzero(x: Tensor) -> Tensor:
    """Positions in a 1-D tensor, as scalars."""
    return paddle.nonzero(x).flatten()
