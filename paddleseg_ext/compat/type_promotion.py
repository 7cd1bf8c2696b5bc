"""Paddle 3 refuses `int64 * float32` and `bool * float32`, which Paddle 2 promoted; PaddleSeg 2.8 relies on it.

Affected: CrossEntropyLoss, DistillCrossEntropyLoss, PointCrossEntropyLoss, L1Loss, RMILoss, DualTaskLoss,
RelaxBoundaryLoss, OhemCrossEntropyLoss and OhemEdgeAttentionLoss (MSELoss too: see ignore_index.py), and the flow
warping of SFNet and DecoupledSegNet. Where a cast of an argument or a result is enough, that is the fix.
"""

from collections.abc import Callable
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from paddleseg_ext.compat.patch import overlay, wrap

_LOSSES = "paddleseg.models.losses"


def apply() -> None:
    wrap(f"{_LOSSES}.cross_entropy_loss:CrossEntropyLoss._post_process_loss", _float_label)
    overlay(f"{_LOSSES}.cross_entropy_loss", "F", one_hot=_one_hot)
    wrap(f"{_LOSSES}.l1_loss:L1Loss.forward", _label_as_input)
    overlay(f"{_LOSSES}.rmi_loss", "paddle", unsqueeze=_unsqueeze)
    wrap(f"{_LOSSES}.decoupledsegnet_relax_boundary_loss:RelaxBoundaryLoss.relax_onehot", _float_result)
    wrap(f"{_LOSSES}.gscnn_dual_task_loss:DualTaskLoss.forward", lambda original: _dual_task)
    wrap(f"{_LOSSES}.ohem_cross_entropy_loss:OhemCrossEntropyLoss.forward", _mined_first)
    wrap(f"{_LOSSES}.ohem_edge_attention_loss:OhemEdgeAttentionLoss.forward", _edges_mined_first)
    for module in ("sfnet:AlignedModule", "decoupled_segnet:SqueezeBodyEdge"):
        wrap(f"paddleseg.models.{module}.flow_warp", lambda original: _flow_warp)


def _float_label(original: Callable[..., Any]) -> Callable[..., Any]:
    def post_process_loss(self: Any, logit: Tensor, label: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return original(self, logit, label.astype("float32"), *args, **kwargs)

    return post_process_loss


def _one_hot(x: Tensor, num_classes: int) -> Tensor:
    """One-hot of labels in any dtype; what is no class (an ignored label that was not masked) is all zeros."""
    x = x.astype("int64")
    known = paddle.logical_and(x >= 0, x < num_classes)
    return F.one_hot(paddle.where(known, x, paddle.zeros_like(x)), num_classes) * known.unsqueeze(-1).astype("float32")


def _label_as_input(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, input: Tensor, label: Tensor) -> Tensor:
        return original(self, input, label.astype(input.dtype))

    return forward


def _unsqueeze(x: Tensor, axis: int) -> Tensor:
    """RMILoss unsqueezes nothing but masks, to multiply by them."""
    return paddle.unsqueeze(x.astype("float32") if x.dtype == paddle.bool else x, axis)


def _float_result(original: Callable[..., Any]) -> Callable[..., Any]:
    def relax_onehot(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return original(self, *args, **kwargs).astype("float32")

    return relax_onehot


def _dual_task(self: Any, logit: Tensor, labels: Tensor) -> Tensor:
    """The distance of the edges of a sampled prediction from those of the labels, over either one's edges."""
    labels = labels.reshape([labels.shape[0], *labels.shape[-2:]])
    valid = labels != self.ignore_index
    mask = valid.unsqueeze(1).astype(logit.dtype)
    onehot = F.one_hot(paddle.where(valid, labels, paddle.zeros_like(labels)), logit.shape[1]).transpose([0, 3, 1, 2])
    edges = self.compute_grad_mag(self._gumbel_softmax_sample(logit * mask, tau=self.tau))
    label_edges = self.compute_grad_mag(onehot)
    distance = (edges - label_edges).abs() * mask

    def mean_over(strength: Tensor) -> Tensor:
        chosen = (strength.detach() > 1e-8).astype(logit.dtype)
        return (distance * chosen).sum() / chosen.sum().clip(min=1)

    return 0.5 * (mean_over(edges) + mean_over(label_edges))


def _mined_first(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, logit: Tensor, label: Tensor) -> Tensor:
        return _without_mining(original, self, logit, _hard_labels(self, logit, label))

    return forward


def _edges_mined_first(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, logits: tuple[Tensor, Tensor], label: Tensor) -> Tensor:
        segmentation, edge = logits
        label = label.reshape([label.shape[0], 1, *label.shape[-2:]])
        label = paddle.where(edge > self.edge_threshold, label, paddle.full_like(label, self.ignore_index))
        return _without_mining(original, self, logits, _hard_labels(self, segmentation, label))

    return forward


def _hard_labels(loss: Any, logit: Tensor, label: Tensor) -> Tensor:
    """Labels where all but the `min_kept` hardest pixels, and those below `thresh`, are ignored."""
    label = label.reshape([label.shape[0], *label.shape[-2:]]).astype("int64")
    valid = label != loss.ignore_index
    if loss.min_kept <= 0 or loss.min_kept >= int(valid.sum()):
        return label
    index = paddle.where(valid, label, paddle.zeros_like(label)).unsqueeze(1)
    probability = paddle.take_along_axis(F.softmax(logit.detach(), axis=1), index, axis=1).squeeze(1)
    probability = paddle.where(valid, probability, paddle.full_like(probability, 2.0))  # after every real one
    hardest = paddle.sort(probability.flatten())[loss.min_kept - 1]
    kept = paddle.logical_and(valid, probability < max(float(hardest), loss.thresh))
    return paddle.where(kept, label, paddle.full_like(label, loss.ignore_index))


def _without_mining(original: Callable[..., Any], loss: Any, logits: Any, label: Tensor) -> Tensor:
    """PaddleSeg's loss mines only where there are more than `min_kept` pixels, and that branch is what fails."""
    min_kept, loss.min_kept = loss.min_kept, label.size
    try:
        return original(loss, logits, label)
    finally:
        loss.min_kept = min_kept


def _flow_warp(self: Any, input: Tensor, flow: Tensor, size: Any) -> Tensor:
    """`input` sampled on a grid of `size` (height, width), each point of it moved by `flow` pixels."""
    rows, columns = paddle.meshgrid(paddle.linspace(-1.0, 1.0, size[0]), paddle.linspace(-1.0, 1.0, size[1]))
    grid = paddle.stack([columns, rows], axis=-1)
    return F.grid_sample(input, grid + flow.transpose([0, 2, 3, 1]) / size[::-1].astype(flow.dtype))
