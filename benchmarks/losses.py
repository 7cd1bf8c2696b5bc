"""What losses between maps of class scores cost, forward and backward, beside the same formula as papers write it.

python benchmarks/losses.py [--shape 8 11 160 192] [--threads 1]

Prints JSON: milliseconds, medians over rounds in which everything is done once, and the medians of the rounds' ratios.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import paddle

from paddleseg_ext.config import Component
from paddleseg_ext.losses import functional as F
from paddleseg_ext.losses.build import build_distill_loss

LOSSES = ("KLLoss", "PixelwiseKLLoss", "SegChannelwiseLoss", "DISTLoss", "DKDLoss", "BPKDLoss")
WARM_UP = 2


def pixelwise_as_written(student, teacher, label):
    """The mean over valid pixels of sum_c p_T (log p_T - log p_S), one log-softmax a side."""
    mask = (label != 255).unsqueeze(1)
    student, teacher = F.clean(student, mask), F.clean(teacher, mask)
    log_s, log_t = F.log_softmax(student, axis=1), F.log_softmax(teacher, axis=1)
    return F.masked_mean((log_t.exp() * (log_t - log_s)).sum(axis=1, keepdim=True), mask)


def channelwise_as_written(student, teacher, label):
    """The same over the positions of each channel, at temperature 4."""
    mask = (label != 255).unsqueeze(1)
    far_below = paddle.full([1], -1e30, "float32")
    student, teacher = (paddle.where(mask, x / 4, far_below).flatten(2) for x in (student, teacher))
    log_s, log_t = F.log_softmax(student, axis=-1), F.log_softmax(teacher, axis=-1)
    return 16 * (log_t.exp() * (log_t - log_s)).sum(axis=-1).mean()


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--shape", type=int, nargs=4, default=(8, 11, 160, 192), metavar=("N", "C", "H", "W"))
    flags.add_argument("--threads", type=int, default=1)
    flags.add_argument("--repeats", type=int, default=9, help="rounds that count")
    args = flags.parse_args()
    paddle.set_device("cpu")
    paddle.base.core.set_num_threads(args.threads)
    paddle.seed(0)
    student, teacher = paddle.randn(args.shape), paddle.randn(args.shape)
    student.stop_gradient = False
    label = paddle.randint(0, args.shape[1], [args.shape[0], *args.shape[2:]])
    ways = {name: build_distill_loss(Component(name, {}, "here"), 255, args.shape[1]) for name in LOSSES}
    ways |= {
        "PixelwiseKLLoss as written": pixelwise_as_written,
        "SegChannelwiseLoss as written": channelwise_as_written,
    }
    for name in ("PixelwiseKLLoss", "SegChannelwiseLoss"):
        ours, written = (float(ways[key](student, teacher, label)) for key in (name, f"{name} as written"))
        assert abs(ours - written) < 1e-4 * abs(written), (name, ours, written)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(WARM_UP + args.repeats):
        for name, loss in ways.items():
            started = time.perf_counter()
            loss(student, teacher, label).backward()
            if repeat >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
            student.clear_grad()
    ratios = {
        f"{name}_to_as_written": round(
            statistics.median(a / b for a, b in zip(seconds[name], seconds[f"{name} as written"], strict=True)), 3
        )
        for name in ("PixelwiseKLLoss", "SegChannelwiseLoss")
    }
    milliseconds = {name: round(1e3 * statistics.median(values), 1) for name, values in seconds.items()}
    print(
        json.dumps({"shape": list(args.shape), "threads": args.threads, "ms": milliseconds, "ratios": ratios}, indent=1)
    )


if __name__ == "__main__":
    main()
