"""CIRKDLoss: its three parts by their formulas, and what its memories hold."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from formulas import IGNORED, kl

from paddleseg_ext.config import Component
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.losses.build import build_distill_loss
from paddleseg_ext.losses.cross_image import ClassQueue

CLASSES, SHAPE = 3, (2, 5, 4, 6)
ONLY = {part: {"batch": 0, "pixel": 0, "region": 0, part: 1} for part in ("batch", "pixel", "region")}


def make(**arguments):
    loss = build_distill_loss(Component("CIRKDLoss", arguments, "test"), IGNORED, CLASSES)
    loss.prepare(SHAPE, SHAPE)
    paddle.seed(0)
    return loss


@pytest.fixture
def example():
    rng = np.random.default_rng(0)
    student, teacher = (rng.normal(0, 1, SHAPE).astype("float32") for _ in range(2))
    label = rng.integers(0, CLASSES, (SHAPE[0], *SHAPE[2:]))
    label[rng.random(label.shape) < 0.2] = IGNORED
    return student, teacher, label


def tensors(student, teacher, label):
    s, t = paddle.to_tensor(student), paddle.to_tensor(teacher)
    s.stop_gradient = t.stop_gradient = False
    return s, t, paddle.to_tensor(label)


def pixels(x, label, image):
    """Unit vectors of an image's valid pixels, float64."""
    found = np.moveaxis(x[image], 0, -1)[label[image] != IGNORED].astype("float64")
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def batch_formula(student, teacher, label, t=0.1):
    """Every pixel of image i looks at all of image j; the mean over pixels i and partners j."""
    rows = []
    for i in range(len(student)):
        for j in range(len(student)):
            s = pixels(student, label, i) @ pixels(student, label, j).T
            rows.append(kl(s / t, pixels(teacher, label, i) @ pixels(teacher, label, j).T / t, axis=1))
    return np.concatenate(rows).mean()


def test_the_batch_part_is_the_formula_where_every_pixel_is_taken(example):
    loss = make(**ONLY["batch"], samples=24)
    np.testing.assert_allclose(float(loss(*tensors(*example))), batch_formula(*example), rtol=1e-5)


def test_the_batch_parts_gradient_is_that_of_the_formula(example):
    student, teacher, label = (x[..., :2, :2] for x in example)
    loss = make(**ONLY["batch"], samples=24)
    s, t, y = tensors(student, teacher, label)
    loss(s, t, y).backward()
    assert t.grad is None
    wanted, step = np.zeros(student.shape), 1e-6
    for index in np.ndindex(student.shape):
        for sign in (1, -1):
            moved = student.astype("float64")
            moved[index] += sign * step
            wanted[index] += sign * batch_formula(moved, teacher, label) / (2 * step)
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(s.grad.numpy(), wanted, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("part", "queue"), [("pixel", "pixels"), ("region", "regions")])
def test_a_memory_part_is_the_formula_over_what_the_memory_holds(example, part, queue):
    student, teacher, label = example
    loss = make(**ONLY[part], samples=24, pixel_memory=1, region_memory=1, contrast=CLASSES)
    assert float(loss(*tensors(*example))) == 0  # nothing is remembered yet
    held = getattr(loss, queue).vectors().numpy()[:, 0].astype("float64")  # one vector of each class
    np.testing.assert_allclose(np.linalg.norm(held, axis=1), 1, rtol=1e-5)
    ours, theirs = (
        np.concatenate([pixels(x, label, i) @ held.T / 0.1 for i in range(len(x))]) for x in (student, teacher)
    )
    np.testing.assert_allclose(float(loss(*tensors(*example))), kl(ours, theirs, axis=1).mean(), rtol=1e-5)


def test_a_student_equal_to_its_teacher_costs_nothing(example):
    _, teacher, label = example
    loss = make()
    loss(*tensors(*example))
    s, t, y = tensors(teacher, teacher, label)
    value = loss(s, t, y)
    value.backward()
    assert abs(float(value)) < 1e-6 and np.abs(s.grad.numpy()).max() < 1e-5


def test_the_memories_hold_pixels_of_the_class_they_say_and_nothing_else(example):
    """The published code draws positions among a class's pixels and then looks them up in the whole image."""
    _, _, label = example
    teacher = np.zeros(SHAPE, "float32")  # a pixel's vector tells its class, an ignored one's that it is ignored
    for number in (*range(CLASSES), IGNORED):
        teacher[:, min(number, 4)] += (label == number) * 3
    loss = make(updates=5, pixel_memory=7)
    for _ in range(4):
        loss(*tensors(teacher, teacher, label))
    for queue, size in ((loss.pixels, 7), (loss.regions, 8)):
        assert queue.filled.tolist() == [size] * CLASSES
        for number in range(CLASSES):
            np.testing.assert_array_equal(queue.vectors().numpy()[number, :size], np.eye(5)[[number] * size])


def test_a_region_is_the_mean_of_its_pixels_unit_vectors(example):
    _, teacher, label = example
    loss = make()
    loss(*tensors(*example))
    own = np.moveaxis(teacher[1], 0, -1)[label[1] == 2].astype("float64")
    mean = (own / np.linalg.norm(own, axis=1, keepdims=True)).mean(0)
    np.testing.assert_allclose(loss.regions.vectors().numpy()[2, 1], mean / np.linalg.norm(mean), rtol=1e-5)


def test_a_full_queue_forgets_its_oldest():
    queue = ClassQueue(2, 3, 1)
    for start in (0, 2, 4):
        vectors = paddle.arange(start, start + 4).astype("float32").reshape([4, 1])
        queue.put(vectors, paddle.to_tensor([0, 1, 0, -1]))
    assert queue.written.tolist() == [6, 3]
    assert sorted(queue.vectors().numpy()[0, :, 0].tolist()) == [4, 4, 6]
    assert sorted(queue.vectors().numpy()[1, :, 0].tolist()) == [1, 3, 5]


def test_more_than_a_queue_holds_at_once_leaves_the_last_of_them():
    queue = ClassQueue(1, 3, 1)
    queue.put(paddle.arange(8).astype("float32").reshape([8, 1]), paddle.zeros([8], "int64"))
    assert sorted(queue.vectors().numpy()[0, :, 0].tolist()) == [5, 6, 7]
    assert queue.filled.tolist() == [3]


def test_a_sample_is_of_what_was_put_in_and_says_what_is_missing():
    queue = ClassQueue(3, 5, 1)
    queue.put(paddle.to_tensor([[7.0], [8.0], [9.0]]), paddle.to_tensor([0, 0, 2]))
    vectors, exist = queue.sample(50)
    drawn = vectors.numpy().reshape(3, 50)
    assert set(drawn[0]) == {7, 8} and set(drawn[2]) == {9}
    assert exist.numpy().reshape(3, 50).all(1).tolist() == [True, False, True]
    assert not exist.numpy().reshape(3, 50)[1].any()


@pytest.mark.parametrize("garbage", [1e4, np.inf, np.nan])
def test_ignored_pixels_change_nothing_bit_for_bit(example, garbage):
    student, teacher, label = example
    ignored = np.broadcast_to((label == IGNORED)[:, None], student.shape)
    results = []
    for s, t in ((student, teacher), [np.where(ignored, np.float32(garbage), x) for x in (student, teacher)]):
        loss = make()
        for _ in range(2):
            s_, t_, y = tensors(s, t, label)
            value = loss(s_, t_, y)
            value.backward()
        results.append((value.numpy().tobytes(), s_.grad.numpy().tobytes(), loss.pixels.rows.numpy().tobytes()))
    assert results[0] == results[1]


def test_a_batch_without_valid_pixels_gives_zero_and_is_not_remembered(example):
    student, teacher, label = example
    loss = make()
    s, t, y = tensors(student, teacher, np.full_like(label, IGNORED))
    value = loss(s, t, y)
    value.backward()
    assert float(value) == 0 and not s.grad.numpy().any()
    assert not loss.pixels.written.numpy().any() and not loss.regions.written.numpy().any()


def test_an_image_without_valid_pixels_is_no_partner(example):
    student, teacher, label = example
    both = make(**ONLY["batch"], samples=24)
    one = np.array(label)
    one[1] = IGNORED
    value = both(*tensors(student, teacher, one))
    alone = both(*tensors(student[:1], teacher[:1], label[:1]))
    np.testing.assert_allclose(float(value), float(alone), rtol=1e-5)


def test_large_features_stay_finite_and_low_precision_is_computed_in_float32(example):
    student, teacher, label = example
    loss = make()
    for _ in range(2):
        s, t, y = tensors(1e4 * student, -1e4 * teacher, label)
        value = loss(s, t, y)
        value.backward()
    assert np.isfinite(float(value)) and np.isfinite(s.grad.numpy()).all()
    value = loss(paddle.to_tensor(student).astype("bfloat16"), paddle.to_tensor(teacher).astype("bfloat16"), y)
    assert value.dtype == paddle.float32


def test_a_scale_of_the_features_is_not_seen(example):
    student, teacher, label = example
    values = []
    for scale in (1, 7):
        loss = make()
        for _ in range(2):
            value = loss(*tensors(scale * student, teacher, label))
        values.append(float(value))
    np.testing.assert_allclose(*values, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 1, 5), (3, 5, 1, 1)])
def test_sides_of_one_stay_finite(shape):
    loss = build_distill_loss(Component("CIRKDLoss", {}, "test"), IGNORED, CLASSES)
    loss.prepare(shape, shape)
    rng = np.random.default_rng(0)
    for _ in range(2):
        s, t, y = tensors(
            *(rng.normal(0, 1, shape).astype("float32") for _ in range(2)), np.zeros((shape[0], 2, 2), "int64")
        )
        value = loss(s, t, y)
        value.backward()
        assert np.isfinite(float(value)) and np.isfinite(s.grad.numpy()).all()


def test_the_memories_are_part_of_the_saved_state(example):
    loss, other = make(), make()
    loss(*tensors(*example))
    other.set_state_dict(loss.state_dict())
    paddle.seed(1)
    value = loss(*tensors(*example))
    paddle.seed(1)
    assert float(other(*tensors(*example))) == float(value)


def test_evaluation_does_not_write_into_the_memories(example):
    loss = make()
    loss.eval()
    loss(*tensors(*example))
    assert not loss.pixels.written.numpy().any()


TWO = """
import sys, numpy as np, paddle, paddle.distributed as dist
from paddleseg_ext.losses.cross_image import ClassQueue, gathered
dist.init_parallel_env()
rank = dist.get_rank()
queue = ClassQueue(2, 4, 1)
queue.put(*gathered(paddle.to_tensor([[10.0 * rank], [10.0 * rank + 1]]), paddle.to_tensor([rank, -1 if rank else 0])))
np.save(f"{sys.argv[1]}/{rank}.npy", queue.vectors().numpy())
assert queue.written.tolist() == [2, 1], queue.written
"""


def test_all_processes_hold_the_same_memory(tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(tmp_path)]
    environment = {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PATH": "/usr/bin:/bin",
        "PADDLE_DISTRI_BACKEND": "gloo",
    }
    done = subprocess.run(
        [*command, str(tmp_path / "two.py"), str(tmp_path)], env=environment, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (np.load(tmp_path / f"{rank}.npy") for rank in (0, 1))
    assert np.array_equal(first, second)
    assert first[0, :2, 0].tolist() == [0, 1] and first[1, 0, 0] == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, "CIRKDLoss: temperature must be above 0, but got 0"),
        ({"pixel": -1}, "CIRKDLoss: batch, pixel and region are not below 0, but got 1.0, -1, 0.1"),
        ({"pixel_memory": 0}, "CIRKDLoss: pixel_memory must be above 0, but got 0"),
    ],
)
def test_arguments_that_cannot_be_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        make(**arguments)


def test_it_says_that_it_needs_labels(example):
    student, teacher, _ = example
    with pytest.raises(ValueError, match="CIRKDLoss compares by class and needs labels"):
        make()(paddle.to_tensor(student), paddle.to_tensor(teacher))
