"""What a step of a merged static program costs beside the same written by hand in one program. Prints JSON.

python benchmarks/static_step.py --size 64 --batch 8 --repeats 15
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import paddle
from paddle.vision.models import mobilenet_v1, resnet18

from paddleseg_ext import static
from paddleseg_ext.losses import functional as F

PLACE = paddle.CPUPlace()


def build(make, size, name):
    with paddle.utils.unique_name.guard(name):
        image = paddle.static.data("image", [None, 3, size, size], "float32")
        model = make(num_classes=10)
        return image, model, model(image)


def optimise(logits, distilled):
    label = paddle.static.data("label", [None, 1], "int64")
    loss = paddle.nn.functional.cross_entropy(logits, label) + distilled(logits)
    paddle.optimizer.Momentum(0.01).minimize(loss)
    return loss


def merged(size):
    teacher, teacher_start = paddle.static.Program(), paddle.static.Program()
    with paddle.static.program_guard(teacher, teacher_start):
        build(resnet18, size, "t_")
    executor = paddle.static.Executor(PLACE)
    executor.run(teacher_start)
    program, start = paddle.static.Program(), paddle.static.Program()
    with paddle.static.program_guard(program, start):
        _, _, logits = build(mobilenet_v1, size, "s_")
    output = static.list_feature_vars(teacher)[-1].name
    static.merge(teacher, program, {"image": "image"}, PLACE)
    with paddle.static.program_guard(program, start):
        loss = optimise(logits, lambda x: static.kl(f"teacher_{output}", x, program))
    executor.run(start)
    return executor, program, loss


def by_hand(size):
    executor = paddle.static.Executor(PLACE)
    program, start = paddle.static.Program(), paddle.static.Program()
    with paddle.static.program_guard(program, start):
        image, _, logits = build(mobilenet_v1, size, "hs_")
        with paddle.utils.unique_name.guard("ht_"):
            teacher = resnet18(num_classes=10)
        teacher.eval()
        for parameter in teacher.parameters():
            parameter.stop_gradient = True
        taught = teacher(image)
        loss = optimise(logits, lambda x: F.pixelwise_kl(x, taught, None, 1.0))
    executor.run(start)
    return executor, program, loss


def by_layers(values, feed, steps):
    """The losses of the same training of layers, their weights those of the merged program."""
    paddle.disable_static()
    nets = []
    for make, name in ((mobilenet_v1, "s_"), (resnet18, "t_")):
        with paddle.utils.unique_name.guard(name):
            nets.append(make(num_classes=10))
        for tensor in nets[-1].state_dict().values():
            tensor.set_value(values[tensor.name if name == "s_" else f"teacher_{tensor.name}"])
    student, teacher = nets
    teacher.eval()
    optimizer = paddle.optimizer.Momentum(0.01, parameters=student.parameters())
    image, label = paddle.to_tensor(feed["image"]), paddle.to_tensor(feed["label"])
    losses = []
    for _ in range(steps):
        with paddle.no_grad():
            taught = teacher(image)
        logits = student(image)
        loss = paddle.nn.functional.cross_entropy(logits, label) + F.pixelwise_kl(logits, taught, None, 1.0)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    return losses


def agreement(ways, feed, steps=3):
    """Losses of a few steps from the same weights, three ways, and their largest relative difference."""
    scope = paddle.static.global_scope()
    values = {n: np.array(scope.find_var(n).get_tensor()) for n in static.variables.parameters(ways["merged"][1])}
    for name in static.variables.parameters(ways["by_hand"][1]):
        source = name.replace("hs_", "s_") if name.startswith("hs_") else "teacher_" + name.replace("ht_", "t_")
        if not name.startswith(("learning_rate", "velocity")) and source in values:
            scope.var(name).get_tensor().set(values[source], PLACE)
    history = {}
    for name, (executor, program, loss) in ways.items():
        history[name] = [float(executor.run(program, feed=feed, fetch_list=[loss])[0]) for _ in range(steps)]
    history["layers"] = by_layers(values, feed, steps)
    table = np.array(list(history.values()))
    return history, float((np.ptp(table, axis=0) / table.mean(0)).max())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="of the square images")
    parser.add_argument("--batch", type=int, default=8, help="images in a batch")
    parser.add_argument("--repeats", type=int, default=15, help="pairs of steps, the order changing")
    args = parser.parse_args()
    paddle.enable_static()
    paddle.base.core.set_num_threads(os.cpu_count() or 1)
    static.run_in_order()
    rng = np.random.default_rng(0)
    feed = {
        "image": rng.random((args.batch, 3, args.size, args.size)).astype("float32"),
        "label": rng.integers(0, 10, (args.batch, 1)),
    }
    ways = {"merged": merged(args.size), "by_hand": by_hand(args.size)}
    losses, difference = agreement(ways, feed)
    paddle.enable_static()
    seconds = {name: [] for name in ways}
    for repeat in range(args.repeats + 2):
        for name in ways if repeat % 2 else reversed(ways):
            executor, program, loss = ways[name]
            started = time.perf_counter()
            executor.run(program, feed=feed, fetch_list=[loss])
            if repeat >= 2:
                seconds[name].append(time.perf_counter() - started)
    ratios = [m / h for m, h in zip(seconds["merged"], seconds["by_hand"], strict=True)]
    result = {f"{name}_seconds": statistics.median(values) for name, values in seconds.items()}
    result |= {"losses": losses, "largest_relative_difference": difference}
    print(json.dumps({**vars(args), **result, "ratios": {"merged_step_to_by_hand": statistics.median(ratios)}}))


if __name__ == "__main__":
    main()
