"""Handwritten digits: trains a teacher, and a student that learns from teachers on other machines.

python train_with_fleet.py --network convolutional_neural_network --save_serving_model     # the teacher
python train_with_fleet.py --use_distill_service True --distill_teachers 127.0.0.1:9292     # the student
python train_with_fleet.py                                                                  # the student alone
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.distributed import fleet

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from paddleseg_ext.errors import UserError  # noqa: E402
from paddleseg_ext.inference.predictor import describe  # noqa: E402
from paddleseg_ext.service.reader import DistillReader  # noqa: E402
from paddleseg_ext.service.serving_files import write_yaml  # noqa: E402
from paddleseg_ext.service.spec import ModelSpec  # noqa: E402


def yes_or_no(text):
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"True or False is expected, but got {text!r}")
    return text.lower() == "true"


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--network", choices=sorted(NETWORKS), default="multilayer_perceptron", help="what is trained")
    add("--data", choices=("digits", "mnist"), default="digits", help="scikit-learn's 8x8 digits, or MNIST, downloaded")
    add("--num_epochs", type=int, default=10, help="passes over the training data")
    add("--batch_size", type=int, default=64, help="digits in a batch")
    add("--learning_rate", type=float, default=0.01, help="of momentum")
    add("--seed", type=int, default=0, help="of weights and order")
    add("--use_gpu", type=yes_or_no, default=False, nargs="?", const=True, help="whether to compute on a GPU")
    add("--use_distill_service", type=yes_or_no, default=False, nargs="?", const=True, help="learn from teachers")
    add("--distill_teachers", default="127.0.0.1:9292", help="their addresses, separated by commas")
    add("--discovery", help="addresses of discovery servers, instead of fixed teachers")
    add("--teacher_service", default="MnistDistill", help="the service's name at the discovery servers")
    add("--save_serving_model", nargs="?", const="mnist_cnn_model", help="folder for the trained model, to be served")
    return parser.parse_args()


def convolutional_neural_network(side):
    def block(channels_in, channels_out):
        return [
            nn.Conv2D(channels_in, channels_out, 3, padding=1),
            nn.BatchNorm2D(channels_out),
            nn.ReLU(),
            nn.MaxPool2D(2),
        ]

    return nn.Sequential(*block(1, 20), *block(20, 50), nn.Flatten(), nn.Linear(50 * (side // 4) ** 2, 10))


def multilayer_perceptron(side):
    return nn.Sequential(nn.Flatten(), nn.Linear(side * side, 16), nn.Tanh(), nn.Linear(16, 10))


def softmax_regression(side):
    return nn.Sequential(nn.Flatten(), nn.Linear(side * side, 10))


NETWORKS = {f.__name__: f for f in (convolutional_neural_network, multilayer_perceptron, softmax_regression)}


def load(name):
    """Images float32 [N, 1, side, side] in -1..1 and labels int64 [N, 1], for training and for testing."""
    if name == "mnist":
        sets = [paddle.vision.datasets.MNIST(mode=mode, backend="cv2") for mode in ("train", "test")]
        return [
            (np.stack([x[None] for x, _ in each]).astype("float32") / 127.5 - 1, np.array([y for _, y in each]))
            for each in sets
        ]
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 1, 8, 8) / 8 - 1).astype("float32")
    labels = labels.astype("int64")[:, None]
    order = np.random.default_rng(0).permutation(len(images))
    return (images[order[:1437]], labels[order[:1437]]), (images[order[1437:]], labels[order[1437:]])


def sample_lists(images, labels, batch_size, seed):
    """A reader: each call is an epoch in another order; it yields lists of samples (img, label)."""
    rng = np.random.default_rng(seed)
    rank, ranks = fleet.worker_index(), fleet.worker_num()

    def reader():
        order = rng.permutation(len(images))[rank::ranks]
        for start in range(0, len(order), batch_size):
            yield [(images[i], labels[i]) for i in order[start : start + batch_size]]

    return reader


def batches(reader):
    """Epochs of a reader of lists of samples, as arrays."""
    return lambda: (tuple(np.stack(field) for field in zip(*samples, strict=True)) for samples in reader())


def distilled(args, reader):
    """The reader, with what teachers say of each sample as a third field."""
    dr = DistillReader(ins=["img", "label"], predicts=["prediction"])
    if args.discovery:
        dr.set_dynamic_teacher(args.discovery, args.teacher_service)
    else:
        dr.set_fixed_teacher(args.distill_teachers)
    return dr.set_sample_list_generator(reader)  # a list of samples becomes a tuple of arrays: img, label, prediction


def train(args, model, reader):
    optimizer = paddle.optimizer.Momentum(args.learning_rate, 0.9, parameters=model.parameters())
    if fleet.worker_num() > 1:
        model, optimizer = fleet.distributed_model(model), fleet.distributed_optimizer(optimizer)
    for epoch in range(args.num_epochs):
        losses = []
        for batch in reader():
            image, label, *taught = map(paddle.to_tensor, batch)
            logits = model(image)
            loss = F.cross_entropy(logits, label)
            if (
                taught
            ):  # the teacher's probabilities; the weights add up to 1, so that steps are as long as without a teacher
                loss = 0.3 * loss + 0.7 * F.cross_entropy(logits, taught[0], soft_label=True)
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            losses.append(float(loss))
        if fleet.worker_index() == 0:
            print(f"epoch {epoch + 1}: loss {np.mean(losses):.4f}", flush=True)


@paddle.no_grad()
def accuracy(model, images, labels):
    model.eval()
    found = model(paddle.to_tensor(images)).argmax(1).numpy()
    return float((found == labels[:, 0]).mean())


def save(model, folder, side):
    """The model, giving probabilities as `prediction`, as a folder that `paddleseg_ext.cli.serve` takes."""
    served = nn.Sequential(model, nn.Softmax(axis=1))
    served.eval()
    specification = [paddle.static.InputSpec([None, 1, side, side], "float32", "img")]
    paddle.jit.save(paddle.jit.to_static(served, input_spec=specification, full_graph=True), f"{folder}/model")
    inputs, outputs = describe(Path(folder) / "model.json")
    outputs = [replace(outputs[0], alias="prediction")]
    write_yaml(Path(folder), ModelSpec("mnist", "1", inputs, tuple(outputs)), "model.json", "model.pdiparams", {})
    print(f"saved to {folder}: input {inputs[0].name}, output {outputs[0].name}, also called prediction")


def main():
    args = parse_args()
    paddle.set_device("gpu" if args.use_gpu else "cpu")
    fleet.init(is_collective=True)
    paddle.seed(args.seed)
    training, testing = load(args.data)
    side = training[0].shape[-1]
    model = NETWORKS[args.network](side)
    started = time.perf_counter()
    reader = sample_lists(*training, args.batch_size, args.seed)
    train(args, model, distilled(args, reader) if args.use_distill_service else batches(reader))
    if fleet.worker_index() == 0:
        print(
            f"accuracy {accuracy(model, *testing):.4f} on {len(testing[0])} digits, {time.perf_counter() - started:.0f} s"
        )
        if args.save_serving_model:
            save(model, args.save_serving_model, side)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
