"""PaddleSeg 2.8's UPerNetCAE uses `nn.SyncBatchNorm`, which has no CPU kernel, where its other models choose by device.

Affected: UPerNetCAE on a CPU.
"""

from typing import Any

from paddleseg_ext.compat.patch import overlay


def apply() -> None:
    overlay("paddleseg.models.upernet_cae", "nn", SyncBatchNorm=_by_device)


def _by_device(*args: Any, **kwargs: Any) -> Any:
    from paddleseg.models import layers

    return layers.SyncBatchNorm(*args, **kwargs)
