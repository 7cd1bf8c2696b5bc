"""PaddleSeg 2.8's CAE_small_patch16_224 and its siblings build a `VisionTransformer`, which their module does not have.

Affected: the nine backbones CAE_*; they build what `type: CAE` does.
"""

from paddleseg_ext.compat.patch import find


def apply() -> None:
    module = find("paddleseg.models.backbones.cae")
    if module is not None and hasattr(module, "CAE"):
        module.__dict__.setdefault("VisionTransformer", module.CAE)
