"""How a fix reaches PaddleSeg: around one of its functions, or in one module's view of a library.

Nothing of Paddle itself is changed, but by old_ir_ops.py in processes of the old IR, and what a PaddleSeg release does not
have is left alone.
"""

import importlib
import inspect
import logging
import types
from collections.abc import Callable
from typing import Any

_log = logging.getLogger(__name__)


def wrap(target: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put `make(original)` in the place of `target`, written "module:function" or "module:Class.method"."""
    module_name, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner: Any = find(module_name)
    for part in owners:
        owner = getattr(owner, part, None)
    original = getattr(owner, name, None)
    if original is None:
        _log.debug("this PaddleSeg has no %s: nothing to mend", target)
        return
    mended: Any = make(original)
    if mended is original:
        return
    # Not functools.wraps: paddle.jit.to_static would export what is wrapped, and looks for the source by the name.
    mended.__doc__, mended.__signature__, mended.mends = original.__doc__, inspect.signature(original), original
    setattr(owner, name, mended)


def unmended(function: Any) -> Callable[..., Any]:
    """What PaddleSeg has, under every fix."""
    while hasattr(function, "mends"):
        function = function.mends
    return function


def overlay(module_name: str, alias: str, **functions: Callable[..., Any]) -> None:
    """Let one PaddleSeg module find `functions` under the name (`paddle`, `F`) by which it knows a library.

    Every other name is looked up in the library itself, each time, and other modules see the library as it is.
    """
    module = find(module_name)
    library = getattr(module, alias, None)
    if not isinstance(library, types.ModuleType):
        _log.debug("%s does not import a library as %s: nothing to mend", module_name, alias)
        return
    setattr(module, alias, _Overlay(library, functions))


def find(name: str) -> types.ModuleType | None:
    """A module of PaddleSeg, or None where this release does not have it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        _log.debug("this PaddleSeg has no module %s", name)
        return None


class _Overlay(types.ModuleType):
    def __init__(self, library: types.ModuleType, functions: dict[str, Callable[..., Any]]) -> None:
        super().__init__(library.__name__, library.__doc__)
        self.__dict__.update(functions, _library=library)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_library"], name)
