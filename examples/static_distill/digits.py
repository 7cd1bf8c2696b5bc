"""MobileNet learns from a ResNet in static programs: handwritten digits, one program after the merge.

python examples/static_distill/digits.py --small            # 32x32 images, half a MobileNet, ResNet18: for 2 cores
python examples/static_distill/digits.py --small --ir old   # the same on Paddle's old IR
python examples/static_distill/digits.py                    # 224x224 images, MobileNet, ResNet50: for a GPU
"""

import argparse
import functools
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--small", action="store_true", help="32x32 images, smaller models, a short training")
parser.add_argument("--ir", choices=("pir", "old"), default="pir", help="which of Paddle's program representations")
parser.add_argument("--epochs", type=int, default=4, help="of the student")
parser.add_argument(
    "--save_dir", type=Path, default=Path("output/static_distill"), help="where weights and the student go"
)
args = parser.parse_args()

from paddleseg_ext import static  # noqa: E402  (imports no Paddle)

if args.ir == "old":
    static.use_old_ir()

import numpy as np  # noqa: E402
import paddle  # noqa: E402
from paddle.vision.models import mobilenet_v1, resnet18, resnet50  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

from paddleseg_ext.compat import old_ir_ops  # noqa: E402

SIDE = 32 if args.small else 224
BATCH = 32
TEACHER, TEACHER_EPOCHS = (resnet18, 2) if args.small else (resnet50, 4)
STUDENT = functools.partial(mobilenet_v1, scale=0.5 if args.small else 1.0)
PLACE = paddle.CUDAPlace(0) if paddle.is_compiled_with_cuda() else paddle.CPUPlace()


def digits():
    """1797 digits of 8x8, enlarged: images float32 [N, 3, SIDE, SIDE] and labels int64 [N, 1], for training and for testing."""
    images, labels = load_digits(return_X_y=True)
    large = images.reshape(-1, 8, 8).repeat(SIDE // 8, 1).repeat(SIDE // 8, 2)[:, None].repeat(3, 1)
    large = (large / 8 - 1).astype("float32")
    order = np.random.default_rng(0).permutation(len(large))
    train, test = order[:1437], order[1437:]
    return (large[train], labels[train, None]), (large[test], labels[test, None])


class Classifier:
    """A model as a static program with its inputs, and one for testing that shares its parameters."""

    def __init__(self, build, prefix):
        self.program, self.startup = paddle.static.Program(), paddle.static.Program()
        with paddle.utils.unique_name.guard(prefix), paddle.static.program_guard(self.program, self.startup):
            self.image = paddle.static.data("image", [None, 3, SIDE, SIDE], "float32")
            self.logits = build(num_classes=10)(self.image)
        self.test = self.program.clone(for_test=True) if args.ir == "old" else tested(self.program)

    def with_label(self):
        with paddle.static.program_guard(self.program, self.startup):
            label = paddle.static.data("label", [None, 1], "int64")
            return paddle.nn.functional.cross_entropy(self.logits, label)


def tested(program):
    """A program of PIR in test mode."""
    copy = program.clone()
    copy.set_is_test_attr()
    return copy


def train(executor, program, loss, data, epochs, seed=0):
    images, labels = data
    rng = np.random.default_rng(seed)
    for epoch in range(epochs):
        order, losses = rng.permutation(len(images)), []
        for start in range(0, len(images) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            feed = {"image": images[chosen], "label": labels[chosen]}
            losses.append(float(executor.run(program, feed=feed, fetch_list=[loss])[0]))
        print(f"  epoch {epoch + 1}: loss {np.mean(losses):.4f}", flush=True)


def accuracy(executor, model, name, data):
    images, labels = data
    found = []
    fetch = static.variables.find(model.test, name, "accuracy")
    for start in range(0, len(images), 64):
        (logits,) = executor.run(model.test, feed={"image": images[start : start + 64]}, fetch_list=[fetch])
        found.append(logits.argmax(1))
    return float((np.concatenate(found) == labels[:, 0]).mean())


def last_name(model):
    return static.list_feature_vars(model.test)[-1].name


def main():
    paddle.enable_static()
    if not paddle.is_compiled_with_cuda():
        paddle.base.core.set_num_threads(os.cpu_count() or 1)
    paddle.seed(0)
    old_ir_ops.apply()
    executor = paddle.static.Executor(PLACE)
    training, testing = digits()
    started = time.perf_counter()

    print(f"teacher: {TEACHER.__name__}")
    teacher = Classifier(TEACHER, "t_")
    teacher_output = last_name(teacher)
    pure = teacher.program.clone()  # without loss and optimizer: what is merged
    loss = teacher.with_label()
    with paddle.static.program_guard(teacher.program, teacher.startup):
        paddle.optimizer.Adam(3e-3).minimize(loss)
    executor.run(teacher.startup)
    train(executor, teacher.program, loss, training, TEACHER_EPOCHS)
    rows = [("teacher", accuracy(executor, teacher, teacher_output, testing))]
    args.save_dir.mkdir(parents=True, exist_ok=True)
    static.save_student(pure, str(args.save_dir / "teacher.pdparams"))

    for title in ("student alone", "student distilled"):
        print(f"{title}: MobileNet")
        paddle.seed(1)
        student = Classifier(STUDENT, "s_")
        student_output = last_name(student)
        if title == "student distilled":
            pairs = static.suggest_pairs(student.program, pure)
            feature, other = next((s, t) for s, t in pairs if len(s.shape) == 4 and s.shape[2] > 1)
            print(
                f"  l2: {feature.name} {list(feature.shape)} <- {other.name}; soft labels: {student_output} <- {teacher_output}"
            )
            static.load_teacher(pure, str(args.save_dir / "teacher.pdparams"), PLACE)
            static.merge(pure, student.program, {"image": "image"}, PLACE)
        loss = student.with_label()
        with paddle.static.program_guard(student.program, student.startup):
            if title == "student distilled":
                loss = loss + 0.1 * static.l2(f"teacher_{other.name}", feature.name, student.program)
                loss = loss + static.soft_label(f"teacher_{teacher_output}", student_output, student.program)
            paddle.optimizer.Adam(3e-3).minimize(loss)
        executor.run(student.startup)
        train(executor, student.program, loss, training, args.epochs)
        rows.append((title, accuracy(executor, student, student_output, testing)))
    static.save_student(student.program, str(args.save_dir / "student.pdparams"))
    static.export_student(
        student.test, str(args.save_dir / "inference" / "model"), ["image"], [student_output], executor
    )

    print(f"\n{'model':<20}accuracy on {len(testing[0])} digits")
    for title, value in rows:
        print(f"{title:<20}{value:.4f}")
    print(f"{time.perf_counter() - started:.0f} s; the student alone for inference: {args.save_dir}/inference")


main()
