"""Fills a store with what a teacher says of whole images."""

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from PIL import Image

from paddleseg_ext.cli.cached import ImageFiles, image_files
from paddleseg_ext.cli.teachers import Member
from paddleseg_ext.cli.training import Session, load_train_set
from paddleseg_ext.data.check import size_of
from paddleseg_ext.data.file_marks import FileMark
from paddleseg_ext.data.geometry import KEY, follow
from paddleseg_ext.distill.distiller import Pair, names
from paddleseg_ext.engine.evaluate import prefetched
from paddleseg_ext.engine.hooks import ProgressBar
from paddleseg_ext.engine.trainer import autocast
from paddleseg_ext.errors import ConfigError, DataError
from paddleseg_ext.inference.job import plain
from paddleseg_ext.models import without_pretrained
from paddleseg_ext.models.weights import digest
from paddleseg_ext.teachers import ModelTeacher
from paddleseg_ext.teachers.cached import kept, stride_of
from paddleseg_ext.teachers.manifest import Manifest, Stored
from paddleseg_ext.teachers.store import (
    Answer,
    OutputStore,
    begin,
    check_room,
    in_words,
    is_begun,
    missing,
    write_shard,
)
from paddleseg_ext.types import Batch

_log = logging.getLogger(__name__)
_SECONDS = 10.0  # between lines of the log that say how far it is

Sample = dict[str, Any]


@dataclass(frozen=True)
class Whole:
    """The training images as the teacher is to see them: whole, transformed as for evaluation."""

    dataset: Any
    files: ImageFiles
    view: Sequence[Any]  # the transforms, as plain values


def open_whole(session: Session) -> Whole:
    """The training images under the transforms of `val_dataset`.

    Raises:
        ConfigError: there are none, or they cannot be followed.
    """
    config = session.config
    assert config.train_dataset is not None
    if config.val_dataset is None:
        raise ConfigError(
            f"{config.path}: the key 'val_dataset' is missing, whose transforms say how the teacher sees a whole image"
        )
    transforms = config.val_dataset.params.get("transforms", [])
    without_edge = {"edge": False} if config.train_dataset.params.get("edge") else {}
    seen = config.train_dataset.with_params(transforms=transforms, **without_edge)
    dataset = load_train_set(replace(config, train_dataset=seen), with_unlabelled=True)
    follow(dataset, f"{config.val_dataset.where}.transforms")
    return Whole(dataset, image_files(session), plain(transforms))


def asked(pairs: Sequence[Pair]) -> tuple[list[int], list[str]]:
    """The numbers of the teacher's outputs, and the keys of its features, that pairs compare."""
    outputs = sorted({pair.teacher for pair in pairs if isinstance(pair.teacher, int)})
    features = [name for pair in pairs if not isinstance(pair.teacher, int) for name in names(pair.teacher)]
    return outputs, list(dict.fromkeys(features))


def describe(session: Session, member: Member, tensors: tuple[list[int], list[str]], whole: Whole) -> Manifest:
    """What the store is to hold, by one forward of the teacher.

    Raises:
        ConfigError: the teacher does not run on a whole image, or a tensor is no map.
    """
    layer, args = member.teacher, session.args
    assert isinstance(layer, ModelTeacher) and member.component is not None
    specs = layer.recorder.specs
    sources = {index: source.layer for index, source in layer.own.items()}
    outputs = [(str(index), True, sources.get(index, f"output {index}")) for index in tensors[0]]
    features = [(key, False, specs.get(key, key)) for key in tensors[1]]
    image = whole.dataset[0]["img"]
    try:
        said, count = _said(layer, image[None], args.precision)
    except Exception as error:
        reason = " ".join(str(error).split())[-200:]
        raise ConfigError(
            f"{args.teacher_config}: the teacher does not run on an image of {image.shape[1]}x{image.shape[2]}, as the "
            f"transforms of val_dataset in {session.config.path} give it: {reason}"
        ) from error
    found = []
    for key, is_output, where in (*outputs, *features):
        shape = said[key].shape[1:]
        stride = stride_of(image.shape[1:], shape[1:]) if len(shape) == 3 else None
        if stride is None:
            raise ConfigError(
                f"{args.teacher_config}: '{where}' is {list(shape)} for an image of {list(image.shape[1:])}: no map "
                "that flips, crops and scaling of the image could be applied to, so it cannot be stored"
            )
        found.append(Stored(key, is_output, where, shape[0], stride))
    return Manifest(
        model=plain(without_pretrained(member.component)),
        weights=digest(layer.model),
        classes=member.component.params["num_classes"],
        outputs=count,
        tensors=tuple(found),
        top_k=args.top_k,
        precision=args.precision,
        view=whole.view,
        names=tuple(whole.files.paths),
        versions={"paddlepaddle": paddle.__version__, "paddleseg": metadata.version("paddleseg")},
    )


def fill(session: Session, folder: Path, manifest: Manifest, layer: ModelTeacher, whole: Whole) -> None:
    """Store what is not stored yet.

    Raises:
        CacheError: the folder holds something else, or the disk is too small.
    """
    left = missing(folder, manifest)
    if is_begun(folder, manifest):
        whole.files.check(OutputStore(folder, whole=False), all_of_them=False)
    to_do = [name for number in left for name in manifest.shards()[number]]
    needed = _bytes(manifest, whole, to_do)
    _log.info(
        "[CACHE] %d of %d images are to be stored in %s, %s: %s",
        *(len(to_do), len(manifest.names), folder, in_words(needed), "; ".join(map(str, manifest.tensors))),
    )
    check_room(folder, needed)
    begin(folder, manifest)
    bar, progress = ProgressBar("storing", "image"), _Progress(len(to_do))
    bar.start(0, len(to_do))
    try:
        for number in left:
            tasks = (manifest.shards()[number], layer, whole, session)
            write_shard(folder, manifest, number, _shown(_answers(manifest, *tasks), bar, progress))
    finally:
        bar.close()


def _answers(
    manifest: Manifest, shard: Sequence[str], layer: ModelTeacher, whole: Whole, session: Session
) -> Iterator[Answer]:
    """The teacher's answers for the images of a shard, in order; images of one size beside each other go through it together."""
    args, indices = session.args, [whole.files.numbers[name] for name in shard]
    waiting: list[tuple[str, Sample]] = []
    for name, (_, sample) in zip(shard, prefetched(whole.dataset, indices, args.num_workers), strict=True):
        if waiting and (len(waiting) == args.batch_size or waiting[0][1]["img"].shape != sample["img"].shape):
            yield from _told(manifest, layer, waiting, whole.files, args.precision)
            waiting = []
        waiting.append((name, sample))
    yield from _told(manifest, layer, waiting, whole.files, args.precision)


def _told(
    manifest: Manifest, layer: ModelTeacher, images: Sequence[tuple[str, Sample]], files: ImageFiles, precision: str
) -> Iterator[Answer]:
    """The answers for images of one size."""
    said, _ = _said(layer, np.stack([sample["img"] for _, sample in images]), precision)
    for position, (name, sample) in enumerate(images):
        path = files.paths[name]
        try:
            mark = FileMark.of(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        maps = {t.key: kept(said[t.key][position], t, manifest, path) for t in manifest.tensors}
        yield Answer(sample[KEY], mark, maps)


@paddle.no_grad()
def _said(layer: ModelTeacher, images: np.ndarray, precision: str) -> tuple[dict[str, np.ndarray], int]:
    """Outputs, by their numbers, and features of a teacher, float32, and how many outputs it has."""
    with autocast(precision):
        said = layer(Batch(paddle.to_tensor(images), paddle.zeros([len(images), 1, 1], "int64")))
    tensors = {**{str(index): x for index, x in enumerate(said.logits)}, **said.features}
    arrays = {key: x.astype("float32").numpy() for key, x in tensors.items() if isinstance(x, paddle.Tensor)}
    return arrays, len(said.logits)


def _bytes(manifest: Manifest, whole: Whole, names: Sequence[str]) -> int:
    """How many bytes the maps of images take, without computing them: by the sizes that the transforms give each.

    Of a network that rounds the sizes of its maps down, or adds a position, they are as many less or more.
    """
    counts: Counter[tuple[int, int]] = Counter()
    for name in names:
        with Image.open(whole.files.paths[name]) as opened:
            counts[size_of(opened)] += 1
    total = 0
    for (width, height), count in counts.items():
        view = _view_size(whole.dataset, height, width)
        for tensor in manifest.tensors:
            cells = math.prod(math.ceil(pixels / stride) for pixels, stride in zip(view, tensor.stride, strict=True))
            total += count * manifest.bytes_of(tensor, cells)
    return total


def _view_size(dataset: Any, height: int, width: int) -> tuple[int, int]:
    """The size that an image of some size has after the transforms: those of an empty one."""
    compose = getattr(dataset, "dataset", dataset).transforms
    shape = (height, width) if compose.img_channels == 1 else (height, width, compose.img_channels)
    empty = {"img": np.zeros(shape, "float32"), "label": np.zeros((height, width), "uint8")}
    after = compose({**empty, "gt_fields": ["label"], "trans_info": []})["img"].shape
    return after[1], after[2]


def _shown(answers: Iterator[Answer], bar: ProgressBar, progress: "_Progress") -> Iterator[Answer]:
    """The same, counted on the screen."""
    for answer in answers:
        yield answer
        bar.advance()
        progress.advance()


class _Progress:
    """Says in the log, now and then, how far it is and how long it will take."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.started = self.said = time.monotonic()

    def advance(self) -> None:
        self.done, now = self.done + 1, time.monotonic()
        if now - self.said >= _SECONDS:
            self.said = now
            seconds = (now - self.started) / self.done * (self.total - self.done)
            _log.info("[CACHE] %d of %d images, %.0f s left", self.done, self.total, seconds)
