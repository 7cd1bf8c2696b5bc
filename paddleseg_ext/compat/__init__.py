"""What PaddleSeg 2.8 needs to work on Paddle 3: one file per cause, each naming it and what it affects."""

import functools


@functools.cache
def apply() -> None:
    """Import PaddleSeg and mend it, once. To be called before anything of PaddleSeg's is built."""
    import paddleseg.core
    import paddleseg.datasets
    import paddleseg.models
    import paddleseg.transforms  # noqa: F401

    from paddleseg_ext.compat import (
        contrast_labels,
        ignored_options,
        integer_scale,
        maskformer_batch,
        missing_operator,
        pretrained_path,
        squeezed_axes,
        type_promotion,
        written_labels,
        zero_dim,
    )

    for cause in (
        type_promotion,
        zero_dim,
        contrast_labels,
        squeezed_axes,
        written_labels,
        ignored_options,
        pretrained_path,
        missing_operator,
        maskformer_batch,
        integer_scale,
    ):
        cause.apply()
