"""Small networks and what goes with them."""

import paddle
from paddle import nn

from paddleseg_ext.config import Component
from paddleseg_ext.distill.adaptor import AdaptorBase
from paddleseg_ext.losses.build import build_distill_loss
from paddleseg_ext.losses.task import TaskLoss, WeightedLoss
from paddleseg_ext.types import Batch


class TutorialModel(nn.Layer):
    """The tutorial's example: layers' outputs, and one tensor that is kept as an attribute."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2D(3, 3, 3, padding=1)
        self.conv2 = nn.Conv2D(3, 3, 3, padding=1)
        self.conv3 = nn.Conv2D(3, 3, 3, padding=1)
        self.fc = nn.Linear(3 * 8 * 8, 10)

    def forward(self, x):
        self.reshape_out = paddle.reshape(self.conv3(self.conv2(self.conv1(x))), [x.shape[0], -1])
        return self.fc(self.reshape_out)


class Net(nn.Layer):
    """`outputs` maps of logits at 1/`stride` of the input, with batch norm and dropout, as PaddleSeg's models return them."""

    def __init__(self, classes=4, width=6, outputs=1, stride=1, dropout=0.5):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2D(3, width, 3, stride=stride, padding=1), nn.BatchNorm2D(width), nn.ReLU())
        self.drop = nn.Dropout(dropout)
        self.heads = nn.LayerList([nn.Conv2D(width, classes, 1) for _ in range(outputs)])

    def forward(self, x):
        x = self.drop(self.stem(x))
        return [head(x) for head in self.heads]


def batch(size=8, classes=4, seed=0):
    paddle.seed(seed)
    return Batch(paddle.rand([2, 3, size, size]), paddle.randint(0, classes, [2, size, size]), ("a.png", "b.png"))


def adaptor(model, layers, tensors=None):
    """An adaptor of `model`: keys to layer names, and keys to functions of the model that give a tensor."""

    class Adaptor(AdaptorBase):
        def mapping_layers(self):
            mapping = dict(layers)
            if self.add_tensor:
                mapping.update({key: get(self.model) for key, get in (tensors or {}).items()})
            return mapping

    return Adaptor(model)


def loss(name="KLLoss", **arguments):
    return build_distill_loss(Component(name, arguments, "test"), 255, 4)


def task_loss(model, outputs=1):
    cross = nn.CrossEntropyLoss(axis=1, ignore_index=255)

    class Resized(nn.Layer):
        def forward(self, logits, label):
            return cross(nn.functional.interpolate(logits, label.shape[1:], mode="bilinear"), label)

    return TaskLoss([WeightedLoss(Resized(), 1.0)] * outputs, model, "test: loss")
