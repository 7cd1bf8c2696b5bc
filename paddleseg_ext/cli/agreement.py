"""How near stored outputs, brought to where the student sees an image, come to what the teacher itself says of it there."""

from collections import defaultdict

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from paddleseg_ext.cli.training import Session
from paddleseg_ext.data.loader import TrainLoader
from paddleseg_ext.data.sampler import ResumableSampler
from paddleseg_ext.engine.trainer import autocast
from paddleseg_ext.losses.functional import resize, valid_mask
from paddleseg_ext.teachers import CachedTeacher, ModelTeacher

_IMAGES = 64


@paddle.no_grad()
def agreement(session: Session, layer: ModelTeacher, stored: CachedTeacher) -> list[str]:
    """A line for each stored tensor, over augmented training images of which no more than 64 are looked at.

    Of outputs: the share of positions of equal class, and half the mean sum of the differences of probabilities (0: equal,
    1: nothing in common), where the label is not ignored. Of features: the mean cosine of the vectors of a position.
    """
    data, size = session.data.train, min(session.config.batch_size, len(session.data.train))
    sampler = ResumableSampler(len(data), size, session.state.seed, 0, max(min(_IMAGES, len(data)) // size, 1))
    figures: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for batch in TrainLoader(data, sampler):
        with autocast(session.args.precision):
            live = layer(batch)
        told = stored(batch)
        for tensor in stored.store.manifest.tensors:
            of = [x.logits[int(tensor.key)] if tensor.is_output else x.features[tensor.key] for x in (live, told)]
            computed, taken = of[0].astype("float32"), of[1]
            if tensor.is_output:
                found = _of_outputs(computed, taken, batch.labels, session.data.facts.ignore_index)
            else:
                found = _of_features(computed, taken)
            figures[tensor.key].append(found)
    lines = []
    for tensor in stored.store.manifest.tensors:
        count, first, second = map(sum, zip(*figures[tensor.key], strict=True))
        if tensor.is_output:
            lines.append(
                f"output {tensor.key}: same class {first / count:.2%}, probabilities differ by {second / count:.4f}"
            )
        else:
            lines.append(f"feature {tensor.key}: cosine {first / count:.4f}")
    return lines


def _of_outputs(live: Tensor, told: Tensor, labels: Tensor, ignore_index: int) -> tuple[float, float, float]:
    """Positions that count, those of equal class, and the sum of the distances."""
    size = (live.shape[2], live.shape[3])
    told = resize(told, size)
    counts = valid_mask(labels, size, ignore_index).squeeze(1).astype("float32")
    same = (live.argmax(1) == told.argmax(1)).astype("float32")
    apart = (F.softmax(live, 1) - F.softmax(told, 1)).abs().sum(1) / 2
    return float(counts.sum()), float((same * counts).sum()), float((apart * counts).sum())


def _of_features(live: Tensor, told: Tensor) -> tuple[float, float, float]:
    """Positions, and the sum of the cosines."""
    cosine = F.cosine_similarity(live, resize(told, (live.shape[2], live.shape[3])), axis=1)
    return float(cosine.size), float(cosine.sum()), 0.0
