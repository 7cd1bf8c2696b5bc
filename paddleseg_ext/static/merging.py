"""The teacher's program into the student's: one program, one run, the teacher's part frozen."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle

from paddleseg_ext.errors import ConfigError, closest
from paddleseg_ext.static.old_ir import is_old_ir, run_in_order
from paddleseg_ext.static.variables import check_not_random, inputs, name_operations, parameters, rename

_SYSTEM = ("learning_rate",)  # begins names of what is an optimizer's and not a model's


def merge(
    teacher_program: Any,
    student_program: Any,
    data_name_map: Mapping[str, str],
    place: Any,
    name_prefix: str = "teacher_",
    scope: Any = None,
    teacher_scope: Any = None,
) -> None:
    """Put the teacher's operations and parameters into the student's program, every name with the prefix.

    The teacher's part is fed by the student's inputs, is in test mode (batch norm, dropout), has no gradient, and its parameters
    are out of an optimizer's reach. Its values are copied in the scope, so that both programs may have used the same names
    before. To be called before the student's program gets losses and an optimizer; the teacher's program stays as it is.

    Args:
        teacher_program: without an optimizer; its parameters are initialised or loaded.
        student_program: what is trained; it is changed.
        data_name_map: the teacher's inputs to the student's, by name. Inputs that nothing of the teacher uses may be missing.
        place: where the teacher's parameters are to lie.
        name_prefix: before each of the teacher's names.
        scope: of the student's parameters. Default: the global one.
        teacher_scope: of the teacher's parameters. Default: `scope`.

    Raises:
        ConfigError: an input is unknown or not mapped, shapes of inputs differ, a name is taken, the teacher's parameters have
            no values, or it draws random numbers that test mode does not switch off.
    """
    run_in_order()
    scope = scope or paddle.static.global_scope()
    teacher_scope = teacher_scope or scope
    theirs, ours = inputs(teacher_program), inputs(student_program)
    _check_no_gradients(teacher_program)
    check_not_random(teacher_program, "merge: the teacher")
    _check_inputs(theirs, ours, data_name_map)
    values = _values(teacher_program, teacher_scope)
    taken = sorted(name_prefix + name for name in values if name_prefix + name in parameters(student_program))
    if taken:
        raise ConfigError(
            f"merge: the student's program has a variable '{taken[0]}' already; choose another name_prefix"
        )
    if is_old_ir():
        _merge_old(teacher_program, student_program, data_name_map, place, name_prefix, scope, teacher_scope)
        return
    _merge_pir(teacher_program, student_program, data_name_map, name_prefix)
    for name, value in values.items():
        scope.var(name_prefix + name).get_tensor().set(value, place)


def _check_no_gradients(program: Any) -> None:
    ops = program.global_block().ops
    for kind in (op.type if is_old_ir() else op.name() for op in ops):
        if kind.endswith(("_grad", "_grad_")):
            raise ConfigError(f"merge: the teacher's program has gradients ({kind}); build it without an optimizer")


def _check_inputs(theirs: Mapping[str, Any], ours: Mapping[str, Any], mapping: Mapping[str, str]) -> None:
    for teacher, student in mapping.items():
        if teacher not in theirs:
            raise ConfigError(
                f"merge: data_name_map: the teacher's program has no input '{teacher}'{closest(teacher, theirs)}"
            )
        if student not in ours:
            raise ConfigError(
                f"merge: data_name_map: the student's program has no input '{student}'{closest(student, ours)}"
            )
        shapes = list(theirs[teacher].shape), list(ours[student].shape)
        if not _fit(*shapes):
            raise ConfigError(
                f"merge: data_name_map: the teacher's input '{teacher}' is {shapes[0]}, the student's '{student}' {shapes[1]}"
            )
    for name, value in theirs.items():
        if name not in mapping and _is_used(value):
            known = ", ".join(f"'{n}'" for n in ours)
            raise ConfigError(f"merge: data_name_map misses the teacher's input '{name}'; the student's are {known}")


def _fit(a: list[int], b: list[int]) -> bool:
    return len(a) == len(b) and all(x == y or -1 in (x, y) for x, y in zip(a, b, strict=True))


def _is_used(value: Any) -> bool:
    if is_old_ir():
        return any(value.name in op.input_arg_names for op in value.block.ops)
    return not value.use_empty()


def _values(program: Any, scope: Any) -> dict[str, np.ndarray]:
    found = {}
    for name in parameters(program):
        variable = scope.find_var(name)
        if variable is None or not variable.get_tensor()._is_initialized():
            raise ConfigError(
                f"merge: the teacher's parameter '{name}' has no value; run the teacher's startup program "
                "and load its weights first"
            )
        if not name.startswith(_SYSTEM):
            found[name] = np.array(variable.get_tensor())
    return found


def _merge_pir(teacher: Any, student: Any, mapping: Mapping[str, str], prefix: str) -> None:
    name_operations(teacher)
    name_operations(student)
    copy = teacher.clone()
    copy.set_is_test_attr()
    block = student.global_block()
    joined = paddle.base.libpaddle.pir.IrMapping()
    ours = inputs(student)
    for name, value in inputs(copy).items():
        if name in mapping:
            joined.add(value, ours[mapping[name]])
    before = len(block.ops)
    copy.copy_to_block(joined, block)
    for operation in block.ops[before:]:
        rename(operation, prefix)
        if operation.name() == "builtin.parameter":
            operation.set_bool_attr("trainable", False)
        for value in operation.results():
            if value.initialized():
                value.stop_gradient = True
    for operation in list(block.ops[before:]):
        if operation.name() == "pd_op.data" and operation.result(0).use_empty():
            block.remove_op(operation)  # an input that nothing uses


def _merge_old(
    teacher: Any, student: Any, mapping: Mapping[str, str], place: Any, prefix: str, scope: Any, teacher_scope: Any
) -> None:
    from paddleslim.dist import merge as paddleslim_merge

    frozen = teacher.clone(for_test=True)
    options = {"scope": scope, "teacher_scope": teacher_scope, "name_prefix": prefix}
    paddleslim_merge(frozen, student, dict(mapping), place, **options)
    for variable in student.list_vars():
        if variable.name.startswith(prefix):
            variable.stop_gradient = True
