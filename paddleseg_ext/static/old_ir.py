"""Which IR Paddle builds programs of, settled when Paddle is imported, and how it runs them."""

import os
import sys

from paddleseg_ext.errors import ConfigError

_FLAG = "FLAGS_enable_pir_api"


def use_old_ir() -> None:
    """Build programs of Paddle's old IR. To be called before Paddle is imported.

    Raises:
        ConfigError: Paddle is already imported, with PIR.
    """
    if "paddle" in sys.modules and not is_old_ir():
        raise ConfigError(
            "use_old_ir(): paddle is already imported and builds programs of PIR; call it before the first `import paddle` "
            f"(and before anything that imports it), or start Python with {_FLAG}=0 in its environment"
        )
    os.environ[_FLAG] = "0"


def run_in_order() -> None:
    """Let executors of this process run a program's operations one after the other.

    Paddle 3.3.1's executor of PIR programs runs independent ones side by side, and on a CPU two branches that meet in a loss then
    sometimes give wrong values, gradients included.
    """
    import paddle

    paddle.set_flags({"FLAGS_enable_pir_in_executor_trace_run": True})


def is_old_ir() -> bool:
    """Whether programs of this process are of the old IR. Imports Paddle."""
    import paddle

    return not paddle.get_flags(_FLAG)[_FLAG]
