"""The table of docs/losses.md: a weight that was published with another definition, as a weight here, row by row.

The other toolkits' definitions are written out in NumPy; no pixel is ignored, since most of them do not know of any.
"""

from pathlib import Path

import numpy as np
import paddle
import pytest
from formulas import attention, channelwise, ifvd, pixelwise_kl, pooled, rowwise, softmax

from paddleseg_ext.config import Component
from paddleseg_ext.losses.build import build_distill_loss

N, C, H, W = SHAPE = (2, 3, 4, 6)


def batchmean_over_channels(s, t, y, temperature=1.0):
    """Softmax over C of maps, summed over everything and divided by N alone."""
    p, q = softmax(t / temperature, 1), softmax(s / temperature, 1)
    return temperature**2 * (p * (np.log(p) - np.log(q))).sum() / N


def mean_attention(s, t, y):
    return attention(s, t, y) / (H * W)


def batch_pixels(s, t, y):
    """Row by row over all pairs of images, similarities over 0.1, the mean over pairs and rows."""
    total = 0.0
    for i in range(N):
        for j in range(N):
            p, q = ([], [])
            for x, rows in ((t, p), (s, q)):
                a, b = (x[n].reshape(C, -1) / np.linalg.norm(x[n].reshape(C, -1), axis=0) for n in (i, j))
                rows.append(softmax(a.T @ b / 0.1, 1))
            total += (p[0] * (np.log(p[0]) - np.log(q[0]))).sum(1).mean()
    return total / N**2


def squared_mean(s, t, y):
    return ((s - t) ** 2).mean()


# Row of the table: the other's formula, our loss with its arguments, and our weight for their weight 1.
ROWS = {
    "PaddleSeg `KLLoss`": (lambda *x: pixelwise_kl(*x) / C, "KLLoss", {}, 1),
    "PaddleSeg `KLLoss` as PixelwiseKLLoss": (lambda *x: pixelwise_kl(*x) / C, "PixelwiseKLLoss", {}, 1 / C),
    "PaddleSlim `SegChannelwiseLoss`": (rowwise, "SegChannelwiseLoss", {"compat": "paddleslim"}, 1),
    "PaddleSlim `SegPairWiseLoss`": (pooled, "SegPairWiseLoss", {"compat": "paddleslim"}, 1),
    "PaddleSlim `l2`": (squared_mean, "HintLoss", {}, 1),
    "CIRKD `CriterionKD`": (lambda *x: pixelwise_kl(*x), "PixelwiseKLLoss", {}, 1),
    "CIRKD `CriterionCWD` (channel, kl)": (lambda *x: channelwise(*x, 4.0), "SegChannelwiseLoss", {}, 1),
    "CIRKD `CriterionIFV`": (ifvd, "IFVDLoss", {}, 1),
    "CIRKD `CriterionAT`": (mean_attention, "AttentionTransferLoss", {}, 1 / (H * W)),
    "CIRKD `CriterionFitNet`": (squared_mean, "HintLoss", {}, 1),
    "CIRKD `CriterionMiniBatchCrossImagePair`": (
        *(batch_pixels, "CIRKDLoss", {"pixel": 0, "region": 0, "samples": H * W}),
        1,
    ),
    "MMRazor `ChannelWiseDivergence`": (lambda *x: channelwise(*x, 1.0), "SegChannelwiseLoss", {"temperature": 1}, 1),
    "MMRazor `KLDivergence`": (batchmean_over_channels, "PixelwiseKLLoss", {}, H * W),
}


@pytest.mark.parametrize("row", ROWS)
def test_a_published_weight_has_the_effect_that_the_table_says(row):
    theirs, name, arguments, weight = ROWS[row]
    rng = np.random.default_rng(0)
    student, teacher = (rng.normal(0, 1, SHAPE).astype("float32") for _ in range(2))
    label = rng.integers(0, C, (N, H, W))
    loss = build_distill_loss(Component(name, arguments, "test"), 255, C)
    loss.prepare(SHAPE, SHAPE)
    value = float(loss(*map(paddle.to_tensor, (student, teacher, label))))
    wanted = theirs(student.astype("float64"), teacher.astype("float64"), label)
    assert weight * value == pytest.approx(wanted, rel=1e-4)


def test_every_row_of_the_page_is_tested():
    text = (Path(__file__).parents[2] / "docs/losses.md").read_text()
    table = text[text.index("## Weights of other toolkits") :]
    written = {line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ") and "`" in line}
    elsewhere = {"MMRazor `MGDLoss`"}  # in test_trained_losses.py
    assert written == {row for row in ROWS if " as " not in row} | elsewhere
