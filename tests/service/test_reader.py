"""DistillReader over teachers in memory: forms of readers, sizes, names, ends of epochs."""

import asyncio
import gc
import itertools
import threading
import traceback
from dataclasses import replace

import numpy as np
import pytest

from paddleseg_ext.errors import ConfigError, DataError, NoTeacherError
from paddleseg_ext.service.reader import DistillReader, ReaderSettings
from paddleseg_ext.service.samples import layout
from tests.service.teachers import AWAY, GOOD, SPEC, Teacher, World, at_work, moody, until


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    gc.collect()
    until(lambda: not at_work())


@pytest.fixture
def world():
    return World({"127.0.0.1:1": Teacher()})


def reader(world, predicts=("prediction",), ins=("img", "label"), **options):
    settings = ReaderSettings(connect=world.connect, teacher_timeout=options.pop("timeout", 20.0))
    made = DistillReader(list(ins), list(predicts), settings=settings, **options)
    made.set_fixed_teacher(list(world.teachers))
    return made


def samples(count):
    for number in range(count):
        yield np.array([number, number + 0.5], "float32"), number


def lists(count, size):
    source = samples(count)
    while some := list(itertools.islice(source, size)):
        yield some


def batches(count, size):
    for some in lists(count, size):
        yield np.stack([x for x, _ in some]), np.array([n for _, n in some])


def assert_right(img, label, prediction):
    np.testing.assert_array_equal(prediction, 2 * img)
    np.testing.assert_array_equal(np.asarray(img)[..., 0], label)


def test_lists_of_samples_become_batches_with_predictions(world):
    made = reader(world)
    train_reader = made.set_sample_list_generator(lambda: lists(50, 8))
    seen = []
    for img, label, prediction in train_reader():
        assert_right(img, label, prediction)
        seen += label.tolist()
    assert seen == list(range(50))


def test_batches_stay_batches(world):
    train_reader = reader(world, d_batch_size=3).set_batch_generator(lambda: batches(21, 8))
    sizes = []
    for img, label, prediction in train_reader():
        assert_right(img, label, prediction)
        sizes.append(len(label))
    assert sizes == [8, 8, 5]
    assert sorted(world.teachers["127.0.0.1:1"].rows) == [2] * 3 + [3] * 5


def test_samples_stay_samples(world):
    made = reader(world)
    made.set_teacher_batch_size(4)
    train_reader = made.set_sample_generator(lambda: samples(10))
    seen = []
    for img, label, prediction in train_reader():
        assert img.shape == (2,) and label.shape == () and prediction.shape == (2,)
        assert_right(img, label, prediction)
        seen.append(int(label))
    assert seen == list(range(10))
    assert sorted(world.teachers["127.0.0.1:1"].rows) == [2, 4, 4]


def test_loops_that_take_lists_of_samples_get_them(world):
    made = reader(world)
    made.set_sample_list_generator(lambda: lists(10, 4))
    given = list(made.sample_lists())
    assert [len(some) for some in given] == [4, 4, 2]
    for img, label, prediction in itertools.chain.from_iterable(given):
        assert_right(img, label, prediction)


@pytest.mark.parametrize("name", ["prediction", "fc_0.tmp_2"])
def test_an_output_answers_to_its_name_and_alias(world, name):
    train_reader = reader(world, predicts=[name, "sum"]).set_batch_generator(lambda: batches(4, 4))
    [(img, _, prediction, total)] = train_reader()
    np.testing.assert_array_equal(prediction, 2 * img)
    np.testing.assert_array_equal(total[:, 0], img.sum(axis=1))


def test_what_travels_in_16_bits_comes_as_float32_as_losses_need_it():
    made = layout(["img"], ["prediction"], SPEC, rows=None)
    image, said = made.with_answers((np.ones([2, 2], "float32"),), {"prediction": np.full([2, 2], 0.5, "float16")})
    assert said.dtype == np.float32 and (said == 0.5).all()


def test_a_file_of_paddle_serving_gives_names_that_the_teachers_do_not_know(world, tmp_path):
    variable = 'name: "%s" alias_name: "%s" is_lod_tensor: false %s_type: 1 shape: 2'
    lines = [
        f"feed_var {{ {variable % ('x', 'picture', 'feed')} }}",
        f"fetch_var {{ {variable % ('fc_0.tmp_2', 'soft', 'fetch')} }}",
    ]
    (tmp_path / "client.prototxt").write_text("\n".join(lines))
    made = reader(world, ins=["picture", "label"], predicts=["soft"])
    made.set_serving_conf_file(str(tmp_path / "client.prototxt"))
    [(img, _, prediction)] = made.set_batch_generator(lambda: batches(4, 4))()
    np.testing.assert_array_equal(prediction, 2 * img)


def test_slots_without_a_name_only_pass(world):
    ragged = [[(np.ones(2, "float32"), "a"), (np.zeros(2, "float32"), "bc"), (np.zeros(2, "float32"), [1, 2])]]
    train_reader = reader(world, ins=["img", None]).set_sample_list_generator(lambda: ragged)
    [(img, others, prediction)] = train_reader()
    assert [x.tolist() for x in others] == ["a", "bc", [1, 2]]
    np.testing.assert_array_equal(prediction, 2 * img)


def test_arrays_handed_out_are_the_callers_own(world):
    """The reader writes to one array again and again, and so does the caller."""
    buffer = np.zeros((4, 2), "float32"), np.zeros(4, "int64")

    def read():
        for number in range(12):
            buffer[0][:], buffer[1][:] = number, number
            yield buffer

    train_reader = reader(world).set_batch_generator(read)
    for number, (img, label, prediction) in enumerate(train_reader()):
        assert (img == number).all() and (label == number).all() and (prediction == 2 * number).all()
        for x in (img, label, prediction):
            assert x.flags.writeable and not np.shares_memory(x, buffer[0])
            x[:] = -1


def test_a_break_leaves_nothing_and_the_next_epoch_starts_clean(world):
    train_reader = reader(world).set_batch_generator(lambda: batches(400, 4))
    for _ in range(3):
        for number, (_, label, _) in enumerate(train_reader()):
            assert label[0] == 4 * number
            if number == 5:
                break
        until(lambda: not at_work())
        assert world.open == 0
    assert sum(1 for _ in train_reader()) == 100


def test_closing_stops_all_epochs(world):
    made = reader(world)
    made.set_batch_generator(lambda: batches(400, 4))
    first, second = made(), made()
    next(first), next(second)
    made.close()
    until(lambda: not at_work())
    with pytest.raises(RuntimeError, match="closed"):
        list(first)


def test_an_error_of_the_reader_is_raised_not_waited_for(world):
    def read():
        yield from batches(8, 4)
        raise OSError("a disk full of holes")

    train_reader, seen = reader(world).set_batch_generator(read), []
    with pytest.raises(OSError, match="full of holes"):
        for batch in train_reader():
            seen.append(batch)
    assert len(seen) == 2
    until(lambda: not at_work())


def test_the_readers_own_clean_up_runs_on_break(world):
    ended = []

    def read():
        try:
            yield from batches(400, 4)
        finally:
            ended.append(True)

    for _ in reader(world).set_batch_generator(read)():
        break
    assert ended == [True]


def test_two_readers_have_each_their_own_teachers():
    worlds = [World({f"127.0.0.1:{i}": Teacher()}) for i in (1, 2)]
    first, second = (reader(world).set_batch_generator(lambda: batches(20, 4)) for world in worlds)
    for one, two in zip(first(), second(), strict=True):
        np.testing.assert_array_equal(one[0], two[0])
    assert [sum(next(iter(world.teachers.values())).rows) for world in worlds] == [20, 20]


def test_wrong_and_failing_teachers_cost_no_sample():
    world = World({f"127.0.0.1:{i}": Teacher(moody(i, 0.3)) for i in range(1, 4)})
    train_reader = reader(world, d_batch_size=3).set_sample_list_generator(lambda: lists(90, 7))
    seen = []
    for img, label, prediction in train_reader():
        assert_right(img, label, prediction)
        seen += label.tolist()
    assert seen == list(range(90))


def test_an_epoch_without_samples_ends(world):
    made = reader(world)
    assert list(made.set_sample_list_generator(lambda: [[], []])()) == []
    assert list(made.set_sample_generator(lambda: [])()) == []


def test_the_model_of_the_first_epoch_is_that_of_later_ones(world):
    made = reader(world, timeout=0.5)
    train_reader = made.set_batch_generator(lambda: batches(4, 4))
    list(train_reader())
    world.put("127.0.0.1:1", Teacher(spec=replace(world.teachers["127.0.0.1:1"].spec, name="other")))
    with pytest.raises(NoTeacherError, match="serves 'other', but the others 'double'"):
        list(train_reader())


def test_a_model_that_is_of_no_use_is_not_what_all_must_serve_though_it_is_reached_first():
    class Later(World):
        def connect(self, endpoint):
            connection = super().connect(endpoint)
            describe = connection.describe

            async def described(seconds):
                await asyncio.sleep(0.1 if endpoint == "127.0.0.1:2" else 0)
                return await describe(seconds)

            connection.describe = described
            return connection

    other = Teacher(spec=replace(SPEC, inputs=(replace(SPEC.inputs[0], name="image", alias="image"),)))
    world = Later({"127.0.0.1:1": other, "127.0.0.1:2": Teacher()})
    assert len(list(reader(world).set_batch_generator(lambda: batches(40, 4))())) == 10
    assert not other.asked


def test_an_address_where_nobody_is_ends_the_epoch_at_its_start():
    made = reader(World({"127.0.0.1:1": Teacher(lambda: AWAY)}), timeout=0.3)
    with pytest.raises(NoTeacherError, match="127.0.0.1:1: away"):
        next(made.set_batch_generator(lambda: batches(4, 4))())


def test_a_hundred_short_epochs_end(world):
    """None waits for something that has happened already."""
    for size in range(100):
        train_reader = reader(world, d_batch_size=1).set_batch_generator(lambda size=size: batches(size % 5, 2))
        assert sum(len(label) for _, label, _ in train_reader()) == size % 5


@pytest.mark.parametrize(("occupied", "held"), [(0, 6), (2, 4), (5, 1)])
def test_what_the_caller_keeps_counts_towards_the_capacity(world, occupied, held):
    read = []

    def note():
        for batch in batches(400, 4):
            read.append(True)
            yield batch

    train_reader = reader(world, capacity=6, occupied_capacity=occupied).set_batch_generator(note)
    for taken, _ in enumerate(train_reader(), 1):
        assert len(read) - taken <= held
        if taken == 30:
            break
    assert len(read) - 30 >= held - 1


def test_a_later_epoch_waits_for_teachers_longer_than_the_first(monkeypatch):
    """An address that never answered may be wrong; one that did may be away for a while."""
    monkeypatch.setattr("paddleseg_ext.service.reader._BEGIN", 0.2)
    state = {"away": False}
    world = World({"127.0.0.1:1": Teacher(lambda: AWAY if state["away"] else GOOD)})
    train_reader = reader(world).set_batch_generator(lambda: batches(8, 4))
    assert len(list(train_reader())) == 2
    state["away"] = True
    timer = threading.Timer(0.6, state.update, [{"away": False}])
    timer.start()
    assert len(list(train_reader())) == 2
    timer.join()


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        (
            {"predicts": ["predicton"]},
            [],
            "predicts: the teachers' model 'double' has no output 'predicton'; closest: 'prediction'",
        ),
        (
            {"ins": ["image", "label"]},
            [],
            "ins: the teachers' model 'double' takes 'x' .or 'img'., but ins are image, label",
        ),
        ({}, [[(np.ones(2), 1, 2)]], "a sample of 3, but there are 2 ins: img, label"),
        ({}, [[np.ones(2)]], "ndarray for a sample"),
        ({}, [[(np.ones(2), 1), (np.ones(3), 1)]], "samples of one batch differ in 'img'"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(world, options, given, message):
    train_reader = reader(world, **options).set_sample_list_generator(lambda: given)
    with pytest.raises((ConfigError, DataError), match=message):
        list(train_reader())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DistillReader([], ["prediction"]), "ins and predicts"),
        (lambda: DistillReader(["img"], "prediction"), "ins and predicts"),
        (lambda: DistillReader(["img"], ["p"], d_batch_size=0), "d_batch_size: .* got 0"),
        (
            lambda: DistillReader(["img"], ["p"], capacity=2, occupied_capacity=2),
            "occupied_capacity: 0 to capacity - 1 = 1",
        ),
        (lambda: DistillReader(["img"], ["p"]).set_fixed_teacher("nowhere"), "host:port"),
        (lambda: DistillReader(["img"], ["p"]).set_fixed_teacher([]), "host:port"),
        (lambda: DistillReader(["img"], ["p"]).set_batch_generator(iter([])), "a function"),
        (lambda: next(DistillReader(["img"], ["p"])()), "no reader"),
        (lambda: next(DistillReader(["img"], ["p"]).set_batch_generator(list)()), "no teacher; call set_fixed_teacher"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_settings_in_code_win_over_the_environment(world, monkeypatch):
    monkeypatch.setenv("PADDLE_DISTILL_BALANCE_SERVER", "127.0.0.1:9")
    monkeypatch.setenv("PADDLE_DISTILL_SERVICE_NAME", "elsewhere")
    train_reader = reader(world).set_batch_generator(lambda: batches(4, 4))
    assert len(list(train_reader())) == 1


CONF = """
[conf]
mode = fixed
servers = ['127.0.0.1:1']
serving_conf_file = ./serving_conf/serving_client_conf.prototxt

[feed]
feed_vars = ['img', 'label']
feed_types = ['float32', 'int64']
feed_shapes = [(1, 2), (1,)]
predict_feed_ids = [0]

[fetch]
fetch_vars = ['prediction']
fetch_types = ['float64']
fetch_shapes = [(2,)]
"""


@pytest.fixture
def conf(tmp_path, monkeypatch):
    from tests.service import teachers

    spec = teachers.SPEC
    wide = type(spec.inputs[0])("x", "FP32", (-1, 1, 2), "img")
    monkeypatch.setattr(teachers, "predictions", lambda x: {"prediction": 2 * x[:, 0], "sum": x[:, 0].sum(1)})
    path = tmp_path / "x.conf"
    path.write_text(CONF)
    return str(path), World({"127.0.0.1:1": Teacher(spec=type(spec)("double", "1", (wide,), spec.outputs))})


@pytest.mark.parametrize("wrap", ["samples", "lists", "batches"])
@pytest.mark.parametrize("d_batch_size", [4, 5])
def test_the_older_form_gives_batches_of_its_size_in_the_declared_types(conf, wrap, d_batch_size):
    path, world = conf
    settings = ReaderSettings(connect=world.connect, teacher_timeout=5)
    made = DistillReader(path, 32, d_batch_size, capacity=4, occupied_capacity=2, settings=settings)
    if wrap == "samples":
        made.set_sample_generator(lambda: samples(70))
    elif wrap == "lists":
        made.set_sample_list_generator(lambda: lists(70, 8))
    else:
        made.set_batch_generator(lambda: batches(70, 9))
    distill_reader = made.distill_reader()
    for _ in range(2):
        given = list(distill_reader())
        assert [len(batch[0]) for batch in given] == [32, 32, 6]
        img, label, prediction = (np.concatenate(slot) for slot in zip(*given, strict=True))
        assert (img.shape, label.shape, prediction.shape) == ((70, 1, 2), (70, 1), (70, 2))
        assert (img.dtype, label.dtype, prediction.dtype) == (np.float32, np.int64, np.float64)
        assert_right(img[:, 0], label[:, 0], prediction)
    assert max(world.teachers["127.0.0.1:1"].rows) == d_batch_size


@pytest.mark.parametrize("wrap", ["sample", "sample_list", "batch"])
def test_what_was_read_before_an_error_of_the_reader_comes_before_it(conf, wrap):
    """Also what does not fill a batch or a list."""
    path, world = conf
    made = DistillReader(path, 32, settings=ReaderSettings(connect=world.connect))
    source = {"sample": samples(70), "sample_list": lists(70, 7), "batch": batches(70, 7)}[wrap]

    def read():
        yield from source
        raise OSError("a disk full of holes")

    train_reader, seen = getattr(made, f"set_{wrap}_generator")(read), []
    with pytest.raises(OSError, match="full of holes") as caught:
        for _, label, _ in train_reader():
            seen += label[:, 0].tolist()
    assert seen == list(range(70))
    assert "in read" in "".join(traceback.format_exception(caught.value))


def test_the_older_form_refuses_samples_of_another_shape(conf):
    path, world = conf
    made = DistillReader(path, 4, 2, settings=ReaderSettings(connect=world.connect))
    made.set_sample_generator(lambda: [(np.ones(3), 0)])
    with pytest.raises(DataError, match=r"'img' as \[3\], but the file says \[1, 2\]"):
        list(made.distill_reader()())


def test_a_thread_of_the_caller_may_take_the_batches(world):
    train_reader, given = reader(world).set_batch_generator(lambda: batches(40, 4)), []
    thread = threading.Thread(target=lambda: given.extend(train_reader()))
    thread.start()
    thread.join(10)
    assert len(given) == 10 and world.teachers["127.0.0.1:1"].acts() == GOOD
