"""The variables of a program by name, on either IR.

Programs of the old IR name every variable. PIR names parameters and inputs alone; here its other values are named after the
operation that makes them and its number among those of its type: `relu_3`, or `split_0.1` for the second of several results.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from paddleseg_ext.errors import ConfigError, closest
from paddleseg_ext.static.old_ir import is_old_ir

_PARAMETER = "builtin.parameter"
_NAME = "distill_name"  # an attribute of PIR operations, which copies keep
_NOT_FEATURES = (
    "parameter",
    "data",
    "full",
    "full_int_array",
    "combine",
    "fetch",
    "feed",
    "assign_value",
    "shadow_output",
)
_SEVERAL = ("split", "split_with_num", "unbind", "unstack", "topk")


@dataclass(frozen=True)
class FeatureVar:
    """A variable that a loss can compare: its name, its shape with -1 for what may change, its dtype, and what makes it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    operation: str


_DRAWING = {
    *("uniform", "uniform_random", "gaussian", "gaussian_random", "truncated_gaussian_random"),
    *("bernoulli", "multinomial", "randint", "randperm", "poisson", "dirichlet", "standard_gamma"),
}


def list_feature_vars(program: Any) -> list[FeatureVar]:
    """The variables of a program in the order of its operations, without parameters, inputs and what has no shape."""
    found = []
    for name, variable, operation in _made(program):
        shape = tuple(variable.shape)
        if shape:
            found.append(FeatureVar(name, shape, str(variable.dtype).rsplit(".", 1)[-1], operation))
    return found


def find(program: Any, name: Any, where: str) -> Any:
    """The variable of this name; a variable itself is given back.

    Raises:
        ConfigError: there is none, with the closest names.
    """
    if not isinstance(name, str):
        return name
    variables = {key: variable for key, variable, _ in _made(program)}
    variables.update(inputs(program))
    if name not in variables:
        raise ConfigError(f"{where}: the program has no variable '{name}'{closest(name, variables)}")
    return variables[name]


def inputs(program: Any) -> dict[str, Any]:
    """A program's inputs by name."""
    block = program.global_block()
    if is_old_ir():
        return {name: variable for name, variable in block.vars.items() if variable.desc.need_check_feed()}
    return {op.attrs()["name"]: op.result(0) for op in block.ops if op.name() == "pd_op.data"}


def parameters(program: Any) -> dict[str, Any]:
    """A program's parameters and running statistics by name."""
    if is_old_ir():
        return {v.name: v for v in program.list_vars() if v.persistable and v.name not in ("feed", "fetch")}
    ops = (op for op in program.global_block().ops if op.name() == _PARAMETER)
    return {op.attrs()["parameter_name"]: op.result(0) for op in ops}


def check_not_random(program: Any, where: str) -> None:
    """Raise ConfigError where an operation draws numbers.

    Test mode switches off Dropout, not what Dropout2D and DropPath are made of.
    """
    ops = program.global_block().ops
    if not is_old_ir():
        ops = [op for op in ops if not all(value.use_empty() for value in op.results())]
    kinds = [(op.type if is_old_ir() else op.name().rsplit(".", 1)[-1]).rstrip("_") for op in ops]
    found = next((kind for kind in kinds if kind in _DRAWING), None)
    if found is not None:
        raise ConfigError(
            f"{where}: the program draws random numbers ({found}), as Dropout2D and DropPath do while a layer trains; "
            "build it from the layer after layer.eval()"
        )


def suggest_pairs(student: Any, teacher: Any) -> list[tuple[FeatureVar, FeatureVar]]:
    """Variables of a batch and of equal shape, the last first: of each shape, the student's last and the teacher's as deep."""
    ours, theirs = (
        [v for v in list_feature_vars(side) if v.shape[0] in {x.shape[0] for x in inputs(side).values()}]
        for side in (student, teacher)
    )
    pairs = []
    for shape in dict.fromkeys(v.shape for v in reversed(ours) if len(v.shape) > 1):
        same = [(v, i / len(ours)) for i, v in enumerate(ours) if v.shape == shape]
        other = [(v, i / len(theirs)) for i, v in enumerate(theirs) if v.shape == shape]
        if other:
            mine, depth = same[-1]
            pairs.append((mine, min(other, key=lambda candidate: abs(candidate[1] - depth))[0]))
    return pairs


def print_pairs(student: Any, teacher: Any) -> None:
    """Write `suggest_pairs` to the screen, one line a pair."""
    for mine, other in suggest_pairs(student, teacher):
        sys.stdout.write(f"{mine.name} {list(mine.shape)} ({mine.operation})  <-  {other.name} ({other.operation})\n")


def rename(operation: Any, prefix: str) -> None:
    """Put a prefix before the name of what a PIR operation makes."""
    if operation.name() == _PARAMETER:
        operation.set_str_attr("parameter_name", prefix + operation.attrs()["parameter_name"])
    else:
        operation.set_str_attr(_NAME, prefix + operation.attrs()[_NAME])


def name_operations(program: Any) -> None:
    """Name every operation of a PIR program that has no name yet, but for parameters, which have one of their own."""
    counts: dict[str, int] = {}
    for operation in program.global_block().ops:
        if operation.name() == _PARAMETER:
            continue  # Paddle cannot write a parameter with a further attribute into a file
        kind = operation.name().rsplit(".", 1)[-1].rstrip("_")
        if operation.has_attr(_NAME):
            named = operation.attrs()[_NAME].rsplit("_", 1)
            if named[0] == kind:
                counts[kind] = int(named[1]) + 1
            continue
        operation.set_str_attr(_NAME, f"{kind}_{counts.get(kind, 0)}")
        counts[kind] = counts.get(kind, 0) + 1


def _made(program: Any) -> Iterator[tuple[str, Any, str]]:
    """Name, variable and type of operation of everything that operations make."""
    block = program.global_block()
    if is_old_ir():
        known = block.vars
        for operation in block.ops:
            slots = set(operation.output_names) & {"Out", "Output", "Y", "Loss"}  # the others are for the gradient
            for name in (name for slot in sorted(slots) for name in operation.output(slot)):
                if name in known and not known[name].persistable and operation.type not in _NOT_FEATURES:
                    yield name, known[name], operation.type
        return
    name_operations(program)
    for operation in block.ops:
        kind = operation.name().rsplit(".", 1)[-1]
        if kind in _NOT_FEATURES:
            continue
        values = [value for value in operation.results() if value.initialized() and _is_tensor(value)]
        # What follows the first is, but for a split, what the gradient needs and no feature.
        for index, value in enumerate(values if kind in _SEVERAL else values[:1]):
            name = operation.attrs()[_NAME]
            yield (name if index == 0 else f"{name}.{index}"), value, kind


def _is_tensor(value: Any) -> bool:
    return bool(value.is_dense_tensor_type()) and value.dtype is not None
