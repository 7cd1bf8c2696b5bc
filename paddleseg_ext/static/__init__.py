"""Distillation of static programs: a teacher's program is merged into the student's, and losses are added by variable name.

On Paddle 3's own IR (PIR) by this package, on the old IR through PaddleSlim. Nothing here imports Paddle before it is used, so
that `use_old_ir()` can come first.
"""

import importlib
from typing import Any

_WHERE = {
    **{name: "merging" for name in ("merge",)},
    **{name: "variables" for name in ("FeatureVar", "list_feature_vars", "print_pairs", "suggest_pairs")},
    **{name: "losses" for name in ("channelwise", "fsp", "kl", "l2", "loss", "soft_label")},
    "traced": "tracing",
    **{name: "weights" for name in ("export_student", "load_teacher", "save_student")},
    **{name: "old_ir" for name in ("run_in_order", "use_old_ir")},
}
__all__ = sorted(_WHERE)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
