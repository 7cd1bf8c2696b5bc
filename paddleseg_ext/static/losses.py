"""Distillation losses between variables of one program, by the formulas of `paddleseg_ext.losses.functional`.

Names come teacher first, as in PaddleSlim. `program` is the merged program, by default the default main program; each function
gives a variable, a scalar to be added to the student's loss inside a `program_guard`.
"""

from collections.abc import Callable
from typing import Any

import paddle

from paddleseg_ext.compat import old_ir_ops
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.losses import functional as F
from paddleseg_ext.static.old_ir import run_in_order
from paddleseg_ext.static.variables import find


def l2(teacher_var_name: Any, student_var_name: Any, program: Any = None) -> Any:
    """Mean of (S - T)^2 over all elements."""
    return _between(_l2, "l2", (teacher_var_name,), (student_var_name,), program)


def soft_label(
    teacher_var_name: Any,
    student_var_name: Any,
    program: Any = None,
    teacher_temperature: float = 1.0,
    student_temperature: float = 1.0,
) -> Any:
    """Mean over samples (pixels) of the cross entropy - sum_c p_T log p_S, p = softmax over axis 1 of logits / temperature."""

    def formula(student: Any, teacher: Any) -> Any:
        return F.soft_cross_entropy(student, teacher, student_temperature, teacher_temperature)

    return _between(formula, "soft_label", (teacher_var_name,), (student_var_name,), program)


def kl(teacher_var_name: Any, student_var_name: Any, program: Any = None, temperature: float = 1.0) -> Any:
    """t^2 times the mean over samples (pixels) of KL(p_T || p_S), p = softmax over axis 1 of logits / t: PixelwiseKLLoss."""

    def formula(student: Any, teacher: Any) -> Any:
        return F.pixelwise_kl(student, teacher, None, temperature)

    return _between(formula, "kl", (teacher_var_name,), (student_var_name,), program)


def channelwise(teacher_var_name: Any, student_var_name: Any, program: Any = None, temperature: float = 4.0) -> Any:
    """t^2 / (N C) times the sum of KL of each channel's softmax over positions: SegChannelwiseLoss."""

    def formula(student: Any, teacher: Any) -> Any:
        return F.channelwise_kl(student, teacher, None, temperature)

    return _between(formula, "channelwise", (teacher_var_name,), (student_var_name,), program)


def fsp(
    teacher_var1_name: Any, teacher_var2_name: Any, student_var1_name: Any, student_var2_name: Any, program: Any = None
) -> Any:
    """Mean of (G_S - G_T)^2, G = F1 F2^T / (H W) of two features of one model with equal H and W: FSPLoss."""
    teachers, students = (teacher_var1_name, teacher_var2_name), (student_var1_name, student_var2_name)

    def formula(first_s: Any, second_s: Any, first_t: Any, second_t: Any) -> Any:
        return (F.flow_matrix(first_s, second_s, None) - F.flow_matrix(first_t, second_t, None)).square().mean()

    return _between(formula, "fsp", teachers, students, program, channels_only=True)


def loss(loss_func: Callable[..., Any], program: Any = None, **variables: Any) -> Any:
    """`loss_func` of variables of the program, each given as `argument='name'`."""
    run_in_order()
    program = program or paddle.static.default_main_program()
    found = {argument: find(program, name, f"loss: {argument}") for argument, name in variables.items()}
    old_ir_ops.apply()
    with paddle.static.program_guard(program):
        return loss_func(**found)


def _l2(student: Any, teacher: Any) -> Any:
    return (student.astype("float32") - teacher.detach().astype("float32")).square().mean()


def _between(
    formula: Callable[..., Any],
    name: str,
    teachers: tuple[Any, ...],
    students: tuple[Any, ...],
    program: Any,
    channels_only: bool = False,
) -> Any:
    run_in_order()
    program = program or paddle.static.default_main_program()
    found = [
        [find(program, key, f"{name}: {side}") for key in keys]
        for side, keys in (("student", students), ("teacher", teachers))
    ]
    for s, t in zip(*found, strict=True):
        shapes = [list(v.shape)[: 2 if channels_only else None] for v in (s, t)]
        if len(shapes[0]) != len(shapes[1]) or any(a != b and -1 not in (a, b) for a, b in zip(*shapes, strict=True)):
            raise ConfigError(f"{name}: the student's variable is {list(s.shape)}, the teacher's {list(t.shape)}")
    old_ir_ops.apply()
    with paddle.static.program_guard(program):
        return formula(*found[0], *found[1])
