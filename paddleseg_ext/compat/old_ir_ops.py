"""Paddle 3.3's exp, sum, matmul, sigmoid, gelu and their like take variables of PIR and tensors, but no longer of the old IR.

In a process of the old IR (FLAGS_enable_pir_api=0) they get their operators back. The operators themselves are still there.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import paddle
from paddle.base.layer_helper import LayerHelper

_UNARY = {
    **{
        name: name
        for name in ("exp", "log", "log1p", "log2", "log10", "abs", "sqrt", "rsqrt", "sigmoid", "tanh", "sign")
    },
    **{
        name: name
        for name in ("sin", "cos", "sinh", "cosh", "ceil", "floor", "expm1", "acos", "asin", "atanh", "acosh")
    },
    **{"isfinite": "isfinite_v2", "isinf": "isinf_v2", "isnan": "isnan_v2", "logical_not": "logical_not"},
}
_BINARY = {
    **{
        "multiply": "elementwise_mul",
        "maximum": "elementwise_max",
        "minimum": "elementwise_min",
        "bmm": "bmm",
        "dot": "dot",
    },
    **{name: name for name in ("logical_and", "logical_or", "logical_xor", "greater_than")},
}
_REDUCE = {"sum": "reduce_sum", "all": "reduce_all", "any": "reduce_any", "amax": "reduce_amax", "amin": "reduce_amin"}
_TRUE_OR_FALSE = ("isfinite", "isinf", "isnan", "greater_than", "all", "any")


def apply() -> None:
    if paddle.get_flags("FLAGS_enable_pir_api")["FLAGS_enable_pir_api"]:
        return
    builders: dict[str, Callable[..., Any]] = {name: _unary(name) for name in _UNARY}
    builders |= {name: _binary(name) for name in _BINARY}
    builders |= {name: _reduce(name) for name in _REDUCE}
    builders |= {"matmul": _matmul, "gelu": _gelu, "softplus": _softplus, "grid_sample": _grid_sample}
    builders |= {"argmax": _arg("arg_max"), "argmin": _arg("arg_min"), "expand_as": _expand_as}
    for name, build in builders.items():
        _replace(name, build)


def _replace(name: str, build: Callable[..., Any]) -> None:
    """Everywhere in Paddle where the function goes by its name, and as a method of variables."""
    original = getattr(paddle._C_ops, name)
    variable = paddle.base.framework.Variable

    def function(*args: Any, **kwargs: Any) -> Any:
        # Without a program, Paddle calls tensors instances of its variables too.
        traced = not paddle.in_dynamic_mode() and any(isinstance(x, variable) for x in (*args, *kwargs.values()))
        return (build if traced else original)(*args, **kwargs)

    holders = [module for key, module in list(sys.modules.items()) if key == "paddle" or key.startswith("paddle.")]
    for holder in [*holders, variable]:
        if getattr(holder, name, None) is original:
            setattr(holder, name, function)


def _op(kind: str, inputs: dict[str, Any], dtype: Any, attrs: dict[str, Any] | None = None) -> Any:
    helper = LayerHelper(kind)
    out = helper.create_variable_for_type_inference(dtype)
    helper.append_op(type=kind, inputs={k: [v] for k, v in inputs.items()}, outputs={"Out": [out]}, attrs=attrs or {})
    return out


def _unary(name: str) -> Callable[..., Any]:
    def build(x: Any, name: Any = None, *, _kind: str = name) -> Any:
        return _op(_UNARY[_kind], {"X": x}, "bool" if _kind in _TRUE_OR_FALSE else x.dtype)

    return build


def _binary(name: str) -> Callable[..., Any]:
    def build(x: Any, y: Any, name: Any = None, *, _kind: str = name) -> Any:
        attrs = {"axis": -1} if _BINARY[_kind].startswith("elementwise") else {}
        return _op(_BINARY[_kind], {"X": x, "Y": y}, "bool" if _kind in _TRUE_OR_FALSE else x.dtype, attrs)

    return build


def _reduce(name: str) -> Callable[..., Any]:
    kind = name

    def build(x: Any, axis: Any = None, *rest: Any, **kwargs: Any) -> Any:
        # sum(x, axis, dtype, keepdim, name); the others have no dtype.
        order = ("dtype", "keepdim", "name") if kind == "sum" else ("keepdim", "name")
        options = {**dict(zip(order, rest, strict=False)), **kwargs}
        axes = [] if axis is None else [axis] if isinstance(axis, int) else list(axis)
        if kind == "sum" and options.get("dtype") is not None:
            x = x.astype(options["dtype"])
        elif kind == "sum" and x.dtype == paddle.base.core.VarDesc.VarType.BOOL:
            x = x.astype("int64")
        attrs = {"dim": axes or [0], "keep_dim": bool(options.get("keepdim", False)), "reduce_all": not axes}
        return _op(_REDUCE[kind], {"X": x}, "bool" if kind in _TRUE_OR_FALSE else x.dtype, attrs)

    return build


def _matmul(x: Any, y: Any, transpose_x: bool = False, transpose_y: bool = False, name: Any = None) -> Any:
    return _op("matmul_v2", {"X": x, "Y": y}, x.dtype, {"trans_x": transpose_x, "trans_y": transpose_y})


def _gelu(x: Any, approximate: bool = False, name: Any = None) -> Any:
    return _op("gelu", {"X": x}, x.dtype, {"approximate": approximate in (True, "tanh")})


def _softplus(x: Any, beta: float = 1, threshold: float = 20, name: Any = None) -> Any:
    return _op("softplus", {"X": x}, x.dtype, {"beta": beta, "threshold": threshold})


def _expand_as(x: Any, y: Any, name: Any = None) -> Any:
    return _op("expand_as_v2", {"X": x, "Y": y}, x.dtype, {"target_shape": list(y.shape)})


def _arg(kind: str) -> Callable[..., Any]:
    def build(x: Any, axis: int | None = None, keepdim: bool = False, dtype: str = "int64", name: Any = None) -> Any:
        number = paddle.base.framework.convert_np_dtype_to_dtype_(dtype)
        attrs = {"axis": -1 if axis is None else axis, "keepdims": keepdim, "flatten": axis is None, "dtype": number}
        return _op(kind, {"X": x}, number, attrs)

    return build


def _grid_sample(
    x: Any, grid: Any, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: bool = True, name: Any = None
) -> Any:
    helper = LayerHelper("grid_sample")
    out = helper.create_variable_for_type_inference(x.dtype)
    attrs: dict[str, Any] = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    inputs: dict[str, Sequence[Any]] = {"X": [x], "Grid": [grid]}
    helper.append_op(type="grid_sampler", inputs=inputs, outputs={"Output": [out]}, attrs=attrs)
    return out
