"""Stored outputs of a teacher, brought to where the student sees them, against a teacher that follows the image exactly."""

import json
import shutil
from collections import namedtuple

import numpy as np
import paddle
import pytest
from paddle import nn
from paddleseg import transforms as T
from paddleseg.datasets import Dataset
from paddleseg.transforms import transforms as T2
from PIL import Image

from paddleseg_ext import registry
from paddleseg_ext.data.file_marks import FileMark
from paddleseg_ext.data.geometry import KEY, follow
from paddleseg_ext.data.loader import TrainLoader
from paddleseg_ext.data.sampler import ResumableSampler
from paddleseg_ext.errors import CacheError
from paddleseg_ext.teachers import CachedTeacher
from paddleseg_ext.teachers.cached import kept, restored, stride_of
from paddleseg_ext.teachers.manifest import Manifest, Stored
from paddleseg_ext.teachers.store import Answer, OutputStore, begin, check_room, in_words, missing, write_shard

WIDTH, HEIGHT = 64, 48
IMAGES = 4
IGNORED = 255


class Linear(nn.Layer):
    """A linear function of each pixel's colours: it commutes with flips, crops and bilinear resizing."""

    def __init__(self, channels=5):
        super().__init__()
        paddle.seed(0)
        self.head = nn.Conv2D(3, channels, 1)

    def forward(self, x):
        return self.head(x)


class Averaged(Linear):
    """The same at a quarter of the size: means over squares, which on a slope are the value in the middle."""

    def forward(self, x):
        return nn.functional.avg_pool2d(super().forward(x), 4)


NETS = {"at stride 1": (Linear, 1), "at stride 4": (Averaged, 4)}
EXACT = {  # on any image, at stride 1: at most one resize
    "nothing": lambda: [],
    "flips": lambda: [T.RandomHorizontalFlip(), T.RandomVerticalFlip(0.5)],
    "larger": lambda: [T.Resize([96, 60])],
    "smaller": lambda: [T.Resize([40, 36])],
    "crop": lambda: [T.RandomPaddingCrop([40, 32])],
    "padding": lambda: [T.RandomPaddingCrop([80, 32])],
    "aspect": lambda: [T2.RandomScaleAspect(0.4, 0.6)],
    "usual": lambda: [T.ResizeStepScaling(0.5, 2.0, 0.25), T.RandomPaddingCrop([56, 56]), T.RandomHorizontalFlip()],
}
SMOOTH = {  # on slopes alone, where a resize of a resize is exact too
    **EXACT,
    "two resizes": lambda: [
        T.Resize([88, 66]),
        T.RandomHorizontalFlip(1.0),
        T.RandomPaddingCrop([64, 60]),
        T.RandomVerticalFlip(1.0),
        T.ResizeStepScaling(0.75, 1.5, 0.25),
        T.RandomPaddingCrop([56, 52]),
    ],
}


@pytest.fixture(autouse=True)
def mended_paddleseg():
    registry.names("transform")


def image(kind, index, width=WIDTH, height=HEIGHT):
    rng = np.random.default_rng(index)
    if kind == "random":
        return rng.integers(0, 256, (height, width, 3), np.uint8)
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.stack([3 * x + index, 4 * y + index, 2 * x + 2 * y], -1).astype(np.uint8)


def draw(folder, kind, sizes=((WIDTH, HEIGHT),) * IMAGES):
    lines = []
    for index, (width, height) in enumerate(sizes):
        Image.fromarray(image(kind, index, width, height)).save(folder / f"{index}.png")
        Image.fromarray(np.zeros((height, width), np.uint8)).save(folder / f"{index}_label.png")
        lines.append(f"{index}.png {index}_label.png\n")
    (folder / "list.txt").write_text("".join(lines))


def dataset(folder, transforms):
    found = Dataset("train", str(folder), [*transforms, T.Normalize()], 5, train_path=str(folder / "list.txt"))
    follow(found, "transforms")
    return found


def manifest(names, channels=5, stride=1, top_k=None, **other):
    tensors = (
        Stored("0", True, "head", channels, (stride, stride)),
        Stored("deep", False, "body", channels, (stride, stride)),
    )
    given = {"model": {"type": "Net"}, "weights": "0" * 64, "classes": channels, "outputs": 2, "tensors": tensors}
    return Manifest(
        **{**given, "top_k": top_k, "precision": "fp32", "view": [], "names": tuple(names), "versions": {}, **other}
    )


def said(net, data, described):
    """The net's answers for a data set's images; the output and the feature are the same."""
    for index, (path, _) in enumerate(data.file_list):
        sample = data[index]
        map_ = net(paddle.to_tensor(sample["img"][None]))[0].numpy()
        maps = {tensor.key: kept(map_, tensor, described, path) for tensor in described.tensors}
        yield Answer(sample[KEY], FileMark.of(path), maps)


def store(folder, net, view=(), **options):
    data = dataset(folder, view)
    described = manifest([f"{index}.png" for index in range(len(data))], **options)
    target = folder / "store"
    begin(target, described)
    answers = said(net, data, described)
    for number, shard in enumerate(described.shards()):
        write_shard(target, described, number, [next(answers) for _ in shard])
    return OutputStore(target)


def batches(folder, transforms, epochs=3, size=2):
    data = dataset(folder, transforms)
    return TrainLoader(data, ResumableSampler(len(data), size, 1, 0, epochs * len(data) // size))


def deep_inside(labels, stride, margin):
    """Positions whose surroundings hold no padding and no edge: float [N, 1, h, w]."""
    valid = (labels != IGNORED).astype("float32").unsqueeze(1)
    pad = nn.functional.pad(valid, [margin] * 4)
    whole = 1 - nn.functional.max_pool2d(1 - pad, 2 * margin + 1, stride=1)
    return whole if stride == 1 else (nn.functional.avg_pool2d(whole, stride) == 1).astype("float32")


def check_alike(live, told, labels, stride, margin, within):
    height, width = live.shape[2:]
    assert told.shape[2] in (height, height + 1) and told.shape[3] in (
        width,
        width + 1,
    )  # a rest of a stride is a position
    inside = deep_inside(labels, stride, margin)
    assert float(inside.sum()) > 20
    difference = ((told[:, :, :height, :width] - live).abs() * inside).max()
    assert float(difference) < within


@pytest.mark.parametrize("name", EXACT)
def test_at_stride_1_stored_outputs_are_what_the_teacher_says_of_the_transformed_image(tmp_path, name):
    draw(tmp_path, "random")
    teacher = CachedTeacher(store(tmp_path, Linear()), str(tmp_path))
    # RandomScaleAspect enlarges a part: beside its edge, OpenCV does not look at the pixels outside of it.
    margin = 4 if name == "aspect" else 1
    for batch in batches(tmp_path, EXACT[name]()):
        outputs = teacher(batch)
        live = Linear()(batch.images)
        check_alike(live, outputs.logits[0], batch.labels, 1, margin, 5e-3)
        assert np.array_equal(outputs.features["deep"].numpy(), outputs.logits[0].numpy())
        assert outputs.logits[0].stop_gradient and outputs.logits[0].dtype == paddle.float32


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", SMOOTH)
def test_on_slopes_they_follow_every_composition_at_every_stride(tmp_path, name, net):
    draw(tmp_path, "slopes")
    kind, stride = NETS[net]
    teacher = CachedTeacher(store(tmp_path, kind(), stride=stride), str(tmp_path))
    for batch in batches(tmp_path, SMOOTH[name]()):
        check_alike(kind()(batch.images), teacher(batch).logits[0], batch.labels, stride, 4 if stride == 1 else 8, 8e-3)


@pytest.mark.parametrize(
    "view", [[T.Resize([96, 72])], [T.ResizeByLong(80), T.Padding([80, 80])], [T.RandomVerticalFlip(1.0)]]
)
def test_the_teacher_may_have_seen_the_image_at_another_size(tmp_path, view):
    draw(tmp_path, "slopes", [(WIDTH, HEIGHT), (48, 56), (WIDTH, HEIGHT), (56, 40)])
    teacher = CachedTeacher(store(tmp_path, Linear(), view), str(tmp_path))
    for batch in batches(tmp_path, [T.RandomPaddingCrop([56, 52]), T.RandomHorizontalFlip()]):
        check_alike(Linear()(batch.images), teacher(batch).logits[0], batch.labels, 1, 4, 8e-3)


def test_padding_gets_the_nearest_value_of_the_image(tmp_path):
    draw(tmp_path, "random")
    teacher = CachedTeacher(store(tmp_path, Linear()), str(tmp_path))
    (batch,) = batches(tmp_path, [T.Padding([80, 60])], epochs=1, size=4)
    x = teacher(batch).logits[0].numpy()
    assert x.shape == (4, 5, 60, 80)
    assert np.array_equal(x[:, :, :, WIDTH:], np.repeat(x[:, :, :, WIDTH - 1 : WIDTH], 16, 3))
    assert np.array_equal(x[:, :, HEIGHT:], np.repeat(x[:, :, HEIGHT - 1 : HEIGHT], 12, 2))


def test_an_output_may_be_taken_at_the_size_of_the_image(tmp_path):
    draw(tmp_path, "slopes")
    teacher = CachedTeacher(store(tmp_path, Averaged(), stride=4), str(tmp_path), full_size=[0])
    (batch,) = batches(tmp_path, [T.RandomHorizontalFlip(1.0)], epochs=1, size=4)
    outputs = teacher(batch)
    assert outputs.logits[0].shape[2:] == [HEIGHT, WIDTH] and outputs.features["deep"].shape[2:] == [12, 16]
    check_alike(Linear()(batch.images), outputs.logits[0], batch.labels, 1, 4, 8e-3)


def test_an_output_that_is_not_stored_keeps_its_place(tmp_path):
    draw(tmp_path, "random")
    teacher = CachedTeacher(store(tmp_path, Linear()), str(tmp_path))
    (batch,) = batches(tmp_path, [], epochs=1, size=4)
    assert len(teacher(batch).logits) == 2 and teacher(batch).logits[1].shape == [0]


def test_workers_of_the_loader_make_no_difference(tmp_path):
    draw(tmp_path, "random")
    teacher = CachedTeacher(store(tmp_path, Linear()), str(tmp_path))
    here = batches(tmp_path, EXACT["usual"](), epochs=1)
    there = batches(tmp_path, EXACT["usual"](), epochs=1)
    there.num_workers = 2
    for a, b in zip(here, there, strict=True):
        assert np.array_equal(teacher(a).logits[0].numpy(), teacher(b).logits[0].numpy())


class Halved:
    """Says that it moves no pixel, and does."""

    keeps_pixels = True

    def __call__(self, data):
        for key in ("img", "label"):
            data[key] = data[key][:, : WIDTH // 2]
        return data


def test_a_transform_that_moves_pixels_against_its_word_is_noticed(tmp_path):
    draw(tmp_path, "random")
    teacher = CachedTeacher(store(tmp_path, Linear()), str(tmp_path))
    (batch,) = batches(tmp_path, [Halved()], epochs=1, size=4)
    with pytest.raises(CacheError, match=r"png: its image is 48x32, but 48x64 by the transforms that were followed"):
        teacher(batch)


def softmax(x):
    e = np.exp(x - x.max(0))
    return e / e.sum(0)


def test_of_the_largest_classes_the_probabilities_stay_and_the_others_share_the_rest():
    x = np.random.default_rng(0).normal(0, 3, (19, 6, 7)).astype("float32")
    described = manifest([], channels=19, top_k=4)
    tensor = described.tensors[0]
    arrays = kept(x, tensor, described, "a.png")
    assert [(a.dtype, a.shape) for a in arrays] == [(np.float16, (5, 6, 7)), (np.uint8, (4, 6, 7))]
    assert sum(a.nbytes for a in arrays) == described.bytes_of(tensor, 42)
    exact, found = softmax(x), softmax(restored(arrays, tensor, described).numpy())
    largest = np.argsort(-x, 0)[:4]
    np.testing.assert_allclose(np.take_along_axis(found, largest, 0), np.take_along_axis(exact, largest, 0), rtol=6e-3)
    others = np.sort(found, 0)[:15]
    np.testing.assert_allclose(others, np.broadcast_to(others[0], others.shape), rtol=1e-5)
    assert np.array_equal(found.argmax(0), exact.argmax(0))
    assert not described.is_sparse(described.tensors[1])  # a feature has no classes


def test_top_k_of_few_classes_keeps_all():
    described = manifest([], channels=3, top_k=2)
    assert described.parts(described.tensors[0]) == [("<f2", 3)]


def test_values_beyond_half_precision_are_refused():
    described = manifest([])
    for value in (7e4, np.nan):
        with pytest.raises(CacheError, match=r"a\.png: values up to .* of the teacher's 'head' do not fit fp16"):
            kept(np.full((5, 2, 2), value, "float32"), described.tensors[0], described, "a.png")


@pytest.mark.parametrize(
    ("image", "cells", "stride"),
    [
        ((64, 48), (64, 48), (1, 1)),
        ((360, 480), (45, 60), (8, 8)),
        ((100, 130), (13, 17), (8, 8)),
        ((512, 512), (65, 65), (8, 8)),
        ((64, 64), (32, 16), (2, 4)),
        ((128, 128), (1, 1), None),
        ((128, 128), (6, 6), None),
    ],
)
def test_strides_are_powers_of_two_and_what_has_none_is_no_map(image, cells, stride):
    assert stride_of(image, cells) == stride


def test_a_store_is_not_read_before_it_is_whole_and_goes_on_where_it_stopped(tmp_path):
    draw(tmp_path, "random")
    whole = store(tmp_path, Linear())
    kept_before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "store").iterdir()}
    (tmp_path / "store/00002.json").unlink()
    (tmp_path / "store/.00002.bin.123.partial").write_bytes(b"half")
    assert missing(tmp_path / "store", whole.manifest) == [2]
    with pytest.raises(CacheError, match="store: 1 of 4 images are still to be stored; run cache_teacher again"):
        OutputStore(tmp_path / "store")
    assert "2.png" not in OutputStore(tmp_path / "store", whole=False)
    begin(tmp_path / "store", whole.manifest)
    assert {p.name for p in (tmp_path / "store").iterdir()} == kept_before.keys() - {"00002.json"}
    data = dataset(tmp_path, [])
    write_shard(tmp_path / "store", whole.manifest, 2, [list(said(Linear(), data, whole.manifest))[2]])
    again = OutputStore(tmp_path / "store")
    for name in whole.manifest.names:
        assert all(
            np.array_equal(a, b) for a, b in zip(again.read(name).maps["0"], whole.read(name).maps["0"], strict=True)
        )


def test_a_shard_that_fails_half_way_leaves_nothing(tmp_path):
    draw(tmp_path, "random")
    data = dataset(tmp_path, [])
    described = manifest([f"{i}.png" for i in range(IMAGES)])
    begin(tmp_path / "store", described)

    def broken():
        yield next(said(Linear(), data, described))
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_shard(tmp_path / "store", described, 0, broken())
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["manifest.json"]


def changed_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "f" * 64}, "store holds a teacher with other weights; give another folder, or remove this one"),
        ({"top_k": 2}, "store holds outputs of another --top_k"),
        ({"precision": "bf16"}, "store holds outputs computed in another --precision"),
        ({"model": {"type": "Other"}}, "store holds another teacher's model"),
        ({"names": ["0.png"]}, "store holds another list of images"),
        ({"view": [{"type": "Resize"}]}, "store holds other transforms of val_dataset"),
    ],
)
def test_a_store_of_something_else_is_not_gone_on_with(tmp_path, change, message):
    draw(tmp_path, "random")
    described = store(tmp_path, Linear()).manifest
    begin(tmp_path / "store", described)
    changed_json(tmp_path / "store/manifest.json", **change)
    with pytest.raises(CacheError, match=message):
        begin(tmp_path / "store", described)


def test_what_is_no_store_is_said_to_be_none(tmp_path):
    draw(tmp_path, "random")
    with pytest.raises(CacheError, match=r"nowhere: no stored outputs of a teacher \(manifest.json is missing\)"):
        OutputStore(tmp_path / "nowhere")
    with pytest.raises(CacheError, match="holds other files; give a new folder"):
        begin(tmp_path, manifest(["0.png"]))
    described = store(tmp_path, Linear()).manifest
    with pytest.raises(CacheError, match=r"nothing is stored of 9\.png; closest: '3\.png'"):
        OutputStore(tmp_path / "store").read("9.png")
    cut = tmp_path / "store/00001.bin"
    cut.write_bytes(cut.read_bytes()[:-2])
    with pytest.raises(CacheError, match=r"00001\.json: cannot be used: 00001\.bin has another size"):
        OutputStore(tmp_path / "store")
    for text in ('{"format": 1}', "[]", "{", '{"format": 2}'):
        (tmp_path / "store/manifest.json").write_text(text)
        with pytest.raises(CacheError, match=r"manifest\.json: cannot be read"):
            begin(tmp_path / "store", described)


def test_what_does_not_fit_the_disk_is_refused_before_it_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 10**6) if path.exists() else 1 / 0)
    check_room(tmp_path / "not/yet", 10**6)
    with pytest.raises(CacheError, match=r"yet: 1\.5 GB are needed, but the disk has 1 MB left"):
        check_room(tmp_path / "not/yet", 15 * 10**8)


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (5.6e13, "56 TB"), (999_900, "1 MB")]
)
def test_sizes_are_said_in_words(count, words):
    assert in_words(count) == words


def test_many_images_share_a_shard_and_each_has_its_own_place():
    names = [f"{i}.png" for i in range(1000)]
    shards = manifest(names).shards()
    assert [len(s) for s in shards[:2]] == [16, 16] and sum(shards, ()) == tuple(names)
    assert max(map(len, manifest([str(i) for i in range(10_000)]).shards())) == 64
    assert manifest(["a"]).shards() == [("a",)]


def test_a_file_is_known_by_size_and_time_or_by_its_content(tmp_path):
    file, copy = tmp_path / "a.png", tmp_path / "b.png"
    file.write_bytes(b"x" * 100)
    mark = FileMark.of(str(file))
    copy.write_bytes(b"x" * 100)
    assert mark.fits(str(file)) and mark.fits(str(copy))
    copy.write_bytes(b"y" * 100)
    assert not mark.fits(str(copy))
    copy.write_bytes(b"x" * 99)
    assert not mark.fits(str(copy))
