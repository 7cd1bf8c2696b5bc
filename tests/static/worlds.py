"""A student and a teacher of one architecture and equal parameter names, and their training three ways: merged, in one program by
hand, and by layers.

As a script, in a process of its own: python tests/static/worlds.py pir|old; prints the losses of the merged program.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from paddleseg_ext import static  # noqa: E402

if __name__ == "__main__" and sys.argv[1] == "old":
    static.use_old_ir()

import numpy as np  # noqa: E402
import paddle  # noqa: E402
from paddle import nn  # noqa: E402

from paddleseg_ext.losses import functional as F  # noqa: E402
from paddleseg_ext.static.old_ir import run_in_order  # noqa: E402
from paddleseg_ext.static.variables import list_feature_vars, parameters  # noqa: E402

PLACE, STEPS, RATE = paddle.CPUPlace(), 4, 0.1
SHAPES = {"conv": (6, 3, 3, 3), "head": (4, 6, 1, 1)}


class Net(nn.Layer):
    """A convolution with batch norm, a dropout that matters in test mode only by being off, and a head."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.conv = nn.Conv2D(3, 6, 3, padding=1, bias_attr=False)
        self.norm = nn.BatchNorm2D(6)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Conv2D(6, 4, 1, bias_attr=False)

    def forward(self, x):
        feature = nn.functional.relu(self.norm(self.conv(x)))
        return feature, self.head(self.drop(feature))


def weights(seed):
    """By the order of parameters with more than one axis: convolution, head."""
    rng = np.random.default_rng(seed)
    return [rng.normal(0, 0.3, shape).astype("float32") for shape in SHAPES.values()]


def data():
    rng = np.random.default_rng(0)
    return rng.random((5, 3, 8, 8)).astype("float32"), rng.integers(0, 4, (5, 8, 8)).astype("int64")


def task(logits, label):
    return nn.functional.cross_entropy(logits, label, axis=1)


def distillation(s_feature, s_logits, t_feature, t_logits):
    """The losses, each alike for tensors and for variables."""
    flow = F.flow_matrix(s_feature, s_logits, None) - F.flow_matrix(t_feature, t_logits, None).detach()
    return [
        (s_feature - t_feature.detach()).square().mean(),
        F.pixelwise_kl(s_logits, t_logits, None, 2.0),
        F.channelwise_kl(s_feature, t_feature, None, 4.0),
        flow.square().mean(),
        F.soft_cross_entropy(s_logits, t_logits, 1.0, 1.0),
    ]


class Program:
    """A net as a static program with its own start, all names counted from zero."""

    def __init__(self, dropout=0.0, with_label=False):
        self.main, self.start = paddle.static.Program(), paddle.static.Program()
        with paddle.utils.unique_name.guard(), paddle.static.program_guard(self.main, self.start):
            image = paddle.static.data("image", [None, 3, 8, 8], "float32")
            if with_label:
                self.label = paddle.static.data("label", [None, 8, 8], "int64")
            self.feature, self.logits = Net(dropout)(image)

    def name(self, kind):
        """The last variable that an operation of a type makes."""
        return [
            v.name for v in list_feature_vars(self.main) if v.operation == kind and not v.name.startswith("teacher_")
        ][-1]


def fill(program, scope, seed, prefix=""):
    """Known values for the weights; everything else as started."""
    wanted = iter(weights(seed))
    found = {n: v for n, v in parameters(program).items() if n.startswith(prefix) and len(v.shape) > 1}
    for name in sorted(found, key=lambda n: n.replace("teacher_", "")):
        if prefix or not name.startswith("teacher_"):
            scope.var(name).get_tensor().set(next(wanted), PLACE)


def merged(temperatures=None):
    """Program, start, scope and the losses' variables of student and teacher merged."""
    executor, scope, teacher_scope = paddle.static.Executor(PLACE), paddle.static.Scope(), paddle.static.Scope()
    student, teacher = Program(with_label=True), Program(dropout=0.5)
    with paddle.static.scope_guard(teacher_scope):
        executor.run(teacher.start)
        fill(teacher.main, teacher_scope, 1)
    with paddle.static.scope_guard(scope):
        feature, logits = student.name("relu"), student.name("conv2d")
        static.merge(teacher.main, student.main, {"image": "image"}, PLACE, scope=scope, teacher_scope=teacher_scope)
        t_feature, t_logits = f"teacher_{feature}", f"teacher_{logits}"
        with paddle.static.program_guard(student.main, student.start):
            losses = [
                task(student.logits, student.label),
                static.l2(t_feature, feature, student.main),
                static.kl(t_logits, logits, student.main, temperature=2.0),
                static.channelwise(t_feature, feature, student.main),
                static.fsp(t_feature, t_logits, feature, logits, student.main),
                static.soft_label(t_logits, logits, student.main),
            ]
            paddle.optimizer.SGD(RATE).minimize(sum(losses[1:], losses[0]))
        executor.run(student.start)
        fill(student.main, scope, 0)
    return student, executor, scope, losses


def run(student, executor, scope, losses):
    image, label = data()
    with paddle.static.scope_guard(scope):
        feed = {"image": image, "label": label}
        return [[float(x) for x in executor.run(student.main, feed=feed, fetch_list=losses)] for _ in range(STEPS)]


def by_hand():
    """Both nets defined in one program from the start, the teacher frozen and in test mode."""
    run_in_order()
    executor, scope = paddle.static.Executor(PLACE), paddle.static.Scope()
    program = Program.__new__(Program)
    program.main, program.start = paddle.static.Program(), paddle.static.Program()
    with paddle.utils.unique_name.guard(), paddle.static.program_guard(program.main, program.start):
        image = paddle.static.data("image", [None, 3, 8, 8], "float32")
        program.label = paddle.static.data("label", [None, 8, 8], "int64")
        s_feature, s_logits = Net()(image)
        teacher = Net(dropout=0.5)
        teacher.eval()
        for parameter in teacher.parameters():
            parameter.stop_gradient = True
        t_feature, t_logits = teacher(image)
        losses = [task(s_logits, program.label), *distillation(s_feature, s_logits, t_feature, t_logits)]
        paddle.optimizer.SGD(RATE).minimize(sum(losses[1:], losses[0]))
    with paddle.static.scope_guard(scope):
        executor.run(program.start)
        found = [n for n, v in sorted(parameters(program.main).items()) if len(v.shape) > 1]
        for name, value in zip(found, [*weights(0), *weights(1)], strict=True):
            scope.var(name).get_tensor().set(value, PLACE)
    return program, executor, scope, losses


def by_layers():
    """The same training of layers, without any program."""
    nets = []
    for seed in (0, 1):
        net = Net(dropout=0.5 if seed else 0.0)
        for layer, value in zip((net.conv, net.head), weights(seed), strict=True):
            layer.weight.set_value(value)
        nets.append(net)
    student, teacher = nets
    teacher.eval()
    optimizer = paddle.optimizer.SGD(RATE, parameters=student.parameters())
    image, label = map(paddle.to_tensor, data())
    history = []
    for _ in range(STEPS):
        with paddle.no_grad():
            taught = teacher(image)
        feature, logits = student(image)
        losses = [task(logits, label), *distillation(feature, logits, *taught)]
        sum(losses[1:], losses[0]).backward()
        optimizer.step()
        optimizer.clear_grad()
        history.append([float(x) for x in losses])
    return history


if __name__ == "__main__":
    paddle.enable_static()
    print(json.dumps(run(*merged())))
