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
        downloads,
        espnetv1_channels,
        fixed_names,
        ignored_options,
        integer_scale,
        interpolated_labels,
        label_as_image,
        maskformer_batch,
        missing_operator,
        nothing_to_contrast,
        old_ir_ops,
        pretrained_path,
        rates_in_programs,
        size_one_arrays,
        squeezed_axes,
        sync_batch_norm,
        type_promotion,
        undefined_name,
        unloaded_weights,
        written_arguments,
        zero_dim,
    )

    for cause in (
        type_promotion,
        zero_dim,
        size_one_arrays,
        sync_batch_norm,
        nothing_to_contrast,
        squeezed_axes,
        written_arguments,
        interpolated_labels,
        label_as_image,
        ignored_options,
        integer_scale,
        pretrained_path,
        undefined_name,
        fixed_names,
        missing_operator,
        downloads,
        espnetv1_channels,
        unloaded_weights,  # after every other change of these constructors: weights go in last
        maskformer_batch,
        old_ir_ops,
        rates_in_programs,
    ):
        cause.apply()
