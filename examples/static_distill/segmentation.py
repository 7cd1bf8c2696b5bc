"""PaddleSeg models in static programs: a small student learns channel by channel from a convolutional or a transformer teacher.

python examples/static_distill/segmentation.py                    # FCN on a small HRNet teaches LPSNet
python examples/static_distill/segmentation.py --teacher segformer
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402
import paddle  # noqa: E402

from paddleseg_ext import static  # noqa: E402
from paddleseg_ext.config import Component  # noqa: E402
from paddleseg_ext.data.build import build_dataset  # noqa: E402
from paddleseg_ext.engine.env import use_all_cores  # noqa: E402
from paddleseg_ext.models import build_model  # noqa: E402
from paddleseg_ext.static.variables import find  # noqa: E402

SIZE, CLASSES, BATCH = 128, 2, 8
STUDENT = {"type": "LPSNet", "depths": [1] * 5, "channels": [8, 16, 24, 32, 32], "scale_ratios": [1.0, 0.5]}
TEACHERS = {
    "hrnet": {"type": "FCN", "backbone": {"type": "HRNet_W18_Small_V1"}},
    "segformer": {"type": "SegFormer", "backbone": {"type": "MixVisionTransformer_B0"}, "embedding_dim": 64},
}


def component(tree):
    parts = {k: component(v) if isinstance(v, dict) else v for k, v in tree.items() if k != "type"}
    return Component(tree["type"], parts, "the example")


class Program:
    """A model with its image as a static program, and another in test mode, whose parameters have the same names."""

    def __init__(self, tree, prefix):
        self.main, self.start, self.test = (paddle.static.Program() for _ in range(3))
        # Dropout of whole channels or paths would stay on in a copy: it is on or off when a program is built.
        self._traced(tree, prefix, self.test, paddle.static.Program(), training=False)
        self.logits = self._traced(tree, prefix, self.main, self.start, training=True)
        self.output, self.answer = (static.list_feature_vars(program)[-1].name for program in (self.main, self.test))

    @staticmethod
    def _traced(tree, prefix, program, start, training):
        with paddle.static.program_guard(program, start):
            image = paddle.static.data("image", [None, 3, SIZE, SIZE], "float32")
            model, _ = build_model(component(tree), CLASSES, name_prefix=prefix)
            model.train() if training else model.eval()
            # Models decide by the sizes of tensors; that becomes part of the program.
            return static.traced(model, image)[0]

    def with_loss(self, distil=None):
        with paddle.static.program_guard(self.main, self.start):
            label = paddle.static.data("label", [None, SIZE, SIZE], "int64")
            loss = paddle.nn.functional.cross_entropy(self.logits, label, axis=1)
            if distil is not None:
                loss = loss + distil()
            paddle.optimizer.Adam(2e-3).minimize(loss)
        return loss


def samples():
    """Drawn fundus images, 160 to train on and 40 to test: float32 [N, 3, SIZE, SIZE] and labels int64 [N, SIZE, SIZE]."""
    given = {"dataset_root": "data/fundus", "transforms": [component({"type": "Normalize"})]}
    parts = []
    for mode, count in (("train", 160), ("val", 40)):
        dataset = build_dataset(Component("FundusDataset", {**given, "mode": mode}, "the example"))
        chosen = [dataset[i] for i in range(count)]
        labels = np.stack([np.squeeze(s["label"]) for s in chosen]).astype("int64")
        parts.append((np.stack([s["img"] for s in chosen]), labels))
    return parts


def train(executor, program, loss, data, iters):
    images, labels = data
    rng = np.random.default_rng(0)
    for _ in range(iters):
        chosen = rng.choice(len(images), BATCH, replace=False)
        value = executor.run(program, feed={"image": images[chosen], "label": labels[chosen]}, fetch_list=[loss])[0]
    print(f"  last loss {float(value):.4f}", flush=True)


def miou(executor, program, data):
    images, labels = data
    output = find(program.test, program.answer, "mIoU")
    answers = (executor.run(program.test, feed={"image": x[None]}, fetch_list=[output])[0][0] for x in images)
    found = np.stack([logits.argmax(0) for logits in answers])
    hits = [((found == c) & (labels == c)).sum() / ((found == c) | (labels == c)).sum() for c in range(CLASSES)]
    return float(np.mean(hits))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", choices=TEACHERS, default="hrnet")
    parser.add_argument("--iters", type=int, default=60, help="of the student's trainings")
    parser.add_argument("--teacher_iters", type=int, help="of the teacher's; default: 60, or 240 for the transformer")
    args = parser.parse_args()
    training, testing = samples()
    paddle.enable_static()
    use_all_cores()
    static.run_in_order()
    executor = paddle.static.Executor(paddle.CPUPlace())
    started = time.perf_counter()

    print(f"teacher: {args.teacher}")
    paddle.seed(0)
    teacher = Program(TEACHERS[args.teacher], "t_")
    loss = teacher.with_loss()
    executor.run(teacher.start)
    train(executor, teacher.main, loss, training, args.teacher_iters or (60 if args.teacher == "hrnet" else 240))
    rows = [("teacher", miou(executor, teacher, testing))]

    for title in ("student alone", "student distilled"):
        print(title)
        paddle.seed(1)
        student = Program(STUDENT, "s_")
        distil = None
        if title == "student distilled":
            static.merge(teacher.test, student.main, {"image": "image"}, paddle.CPUPlace())
            names = f"teacher_{teacher.answer}", student.output
            distil = lambda: 3 * static.channelwise(*names, student.main)  # noqa: B023, E731
        loss = student.with_loss(distil)
        executor.run(student.start)
        train(executor, student.main, loss, training, args.iters)
        rows.append((title, miou(executor, student, testing)))

    print(f"\n{'model':<20}mIoU on {len(testing[0])} images")
    for title, value in rows:
        print(f"{title:<20}{value:.4f}")
    print(f"{time.perf_counter() - started:.0f} s")


main()
