"""Runs one of the project's launchers with small models registered: `python tests/cli/launch.py train.py --config ...`."""

import os
import runpy
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import paddle  # noqa: E402
from paddle import nn  # noqa: E402
from paddleseg.cvlibs import manager  # noqa: E402


class Shared(nn.Layer):
    """As batch norm over all processes, whose training waits for every one of them."""

    def forward(self, x):
        mean = x.detach().mean()
        if self.training and paddle.distributed.get_world_size() > 1:
            paddle.distributed.all_reduce(mean)
        return x - mean / paddle.distributed.get_world_size()


@manager.MODELS.add_component
class ToyNet(nn.Layer):
    """Two convolutions at half size; `outputs` times its logits in training, once otherwise. No norm unless asked."""

    def __init__(self, num_classes, width=8, outputs=1, norm=False, dropout=0.0, pretrained=None):
        super().__init__()
        self.conv1 = nn.Conv2D(3, width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2D(width) if norm is True else Shared() if norm else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.conv2 = nn.Conv2D(width, num_classes, 3, padding=1)
        self.outputs = outputs
        if pretrained is not None:
            from paddleseg.utils import utils

            utils.load_entire_model(self, pretrained)

    def forward(self, x):
        features = nn.functional.relu(self.norm(self.conv1(x)))
        self.flat = paddle.flatten(features, 2)
        logits = nn.functional.interpolate(self.conv2(self.drop(features)), x.shape[2:], mode="bilinear")
        return [logits] * (self.outputs if self.training else 1)


@manager.MODELS.add_component
class GreyNet(nn.Layer):
    """One convolution of grey images."""

    def __init__(self, num_classes, in_channels=1, pretrained=None):
        super().__init__()
        self.conv = nn.Conv2D(in_channels, num_classes, 3, padding=1)

    def forward(self, x):
        return [self.conv(x)]


def _die_in_save(number: int) -> None:
    """Kill this process when it is about to write its `number`-th file of weights, some of it written already."""
    save, count = paddle.save, 0

    def counted(value, path, *args, **kwargs):
        nonlocal count
        count += 1
        if count == number:
            Path(path).write_bytes(b"half a file")
            os.kill(os.getpid(), signal.SIGKILL)
        save(value, path, *args, **kwargs)

    paddle.save = counted


def _die_in_sync(number: int) -> None:
    """Kill this process when it is about to bring its `number`-th file to the disk: written, and not in its place yet."""
    sync, count = os.fsync, 0

    def counted(descriptor):
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.fsync = counted


if __name__ == "__main__":
    if "DIE_IN_SYNC" in os.environ:
        _die_in_sync(int(os.environ["DIE_IN_SYNC"]))
    if "DIE_IN_SAVE" in os.environ:
        _die_in_save(int(os.environ["DIE_IN_SAVE"]))
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
