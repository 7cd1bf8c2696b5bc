"""The pipeline over teachers in memory: every sample once, in order, with its own prediction, whatever teachers do."""

import gc
import itertools
import logging
import threading
import time
import traceback
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paddleseg_ext.errors import NoTeacherError, StoppedWaiting
from paddleseg_ext.service import health, pool
from paddleseg_ext.service.answers import finite
from paddleseg_ext.service.pipeline import Options, Pipeline, Task
from paddleseg_ext.service.spec import ModelSpec
from paddleseg_ext.service.teacher import IN_FLIGHT
from tests.service.teachers import (
    AWAY,
    GOOD,
    LATE,
    SPEC,
    WRONG,
    Teacher,
    World,
    at_work,
    moody,
    predictions,
    tasks,
    until,
)


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch):
    """No work outlives a test; and what takes seconds in earnest takes less here."""
    monkeypatch.setattr(health, "_FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(health, "_LAST_BACKOFF", 0.05)
    monkeypatch.setattr(health, "_LEFT_OUT", 0.2)
    monkeypatch.setattr(pool, "_FOLLOW", 0.01)
    monkeypatch.setattr(pool, "_TICK", 0.01)
    yield
    gc.collect()
    until(lambda: not at_work())


OUTPUTS = ["prediction", "sum"]


def pipeline(world, **options):
    return Pipeline(world, world.connect, Options(**{"timeout": 20.0, **options}))


def check(results, count, ordered=True):
    """Every task once, with its own predictions."""
    numbers = []
    for (number, x), said in results:
        numbers.append(number)
        np.testing.assert_array_equal(said["prediction"], 2 * x)
        np.testing.assert_array_equal(said["sum"], x.sum(axis=1, keepdims=True))
        assert set(said) == {"prediction", "sum"}
    assert (numbers if ordered else sorted(numbers)) == list(range(count))
    return numbers


def run(world, count, rows=4, part=4, ordered=True, **options):
    with pipeline(world, ordered=ordered, **options) as line:
        return check(line.run(tasks(count, rows, part), OUTPUTS), count, ordered)


def test_one_teacher_gives_every_task_its_own_prediction_in_order():
    world = World({"a:1": Teacher()})
    run(world, 50)
    assert world.closed and world.open == 0


def test_parts_that_do_not_divide_the_rows_come_back_as_one():
    teacher = Teacher()
    run(World({"a:1": teacher}), 9, rows=7, part=3)
    assert sorted(teacher.rows) == [1] * 9 + [3] * 18


@given(
    teachers=st.lists(
        st.tuples(st.integers(0, 10**6), st.floats(0, 0.7), st.sampled_from([0.0, 0.001, 0.003])),
        min_size=1,
        max_size=4,
    ),
    count=st.integers(0, 25),
    rows=st.integers(1, 7),
    part=st.integers(1, 8),
    capacity=st.integers(1, 9),
    ordered=st.booleans(),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_sample_comes_once_with_its_own_prediction_through_any_failures(
    teachers, count, rows, part, capacity, ordered
):
    world = World({f"t:{i}": Teacher(moody(seed, share), seconds) for i, (seed, share, seconds) in enumerate(teachers)})
    run(world, count, rows, part, ordered, capacity=capacity)
    assert world.open == 0


def test_twenty_joins_and_leaves_in_an_epoch_lose_nothing():
    world = World({"t:0": Teacher(seconds=0.002), "keep:1": Teacher(seconds=0.004)})
    served = dict(world.teachers)

    def read():
        for number, task in enumerate(tasks(200)):
            if number % 10 == 5:
                world.take(f"t:{number // 10}")
                served[f"t:{number // 10 + 1}"] = Teacher(seconds=0.002)
                world.put(f"t:{number // 10 + 1}", served[f"t:{number // 10 + 1}"])
            yield task

    with pipeline(world, capacity=8) as line:
        results = []
        for result in line.run(read(), OUTPUTS):
            results.append(result)
            time.sleep(0.003)  # the student's step
        check(results, 200)
    assert sum(bool(t.rows) for t in served.values()) >= 18
    assert world.open == 0


@pytest.mark.parametrize("act", WRONG)
def test_a_wrong_answer_never_arrives_and_a_teacher_that_is_always_wrong_is_left_out(act, caplog):
    bad, good = Teacher(lambda: act), Teacher(seconds=0.01)
    with caplog.at_level(logging.WARNING):
        run(World({"bad:1": bad, "good:2": good}), 100)
    assert "bad:1 is left out" in caplog.text
    assert bad.asked < 12 and sum(good.rows) == 400


def test_a_teacher_of_another_model_gets_no_work():
    other = Teacher(spec=ModelSpec("triple", "1", SPEC.inputs, SPEC.outputs))
    world = World({"good:1": Teacher(), "other:2": other})
    run(world, 30, spec=SPEC)
    assert other.asked == 0


def test_of_teachers_of_two_models_those_of_one_are_asked():
    other = ModelSpec("triple", "1", SPEC.inputs, SPEC.outputs)
    world = World({f"t:{i}": Teacher(spec=other if i % 2 else SPEC) for i in range(4)})
    run(world, 60)
    asked = [bool(teacher.asked) for teacher in world.teachers.values()]
    assert asked in ([True, False, True, False], [False, True, False, True])


def test_a_teacher_that_hangs_holds_nothing_up_for_more_than_seconds():
    hung = iter([GOOD] * 8)
    world = World({"hung:1": Teacher(lambda: next(hung, LATE)), "good:2": Teacher(seconds=0.002)})
    began = time.monotonic()
    run(world, 100)
    assert time.monotonic() - began < 2.5


def test_a_teacher_that_hangs_from_the_start_holds_nothing_up_for_more_than_seconds():
    class Silent(Teacher):
        pass

    acts = iter([GOOD])  # it describes itself
    began = time.monotonic()
    run(World({"hung:1": Silent(lambda: next(acts, LATE)), "good:2": Teacher(seconds=0.002)}), 50)
    assert time.monotonic() - began < 4


def test_a_faster_teacher_gets_more_and_all_are_used():
    slow, fast = Teacher(seconds=0.04), Teacher(seconds=0.004)
    run(World({"slow:1": slow, "fast:2": fast}), 150)
    assert len(fast.rows) > 3 * len(slow.rows) > 0


def test_each_teacher_has_several_requests_at_once_but_not_all():
    teachers = {f"t:{i}": Teacher(seconds=0.01) for i in range(2)}
    run(World(teachers), 60, capacity=32)
    assert all(1 < teacher.most <= IN_FLIGHT for teacher in teachers.values())


def test_a_failed_teacher_comes_back():
    state = {"away": False}
    teacher = Teacher(lambda: AWAY if state["away"] else GOOD, seconds=0.001)
    world = World({"a:1": teacher, "b:2": Teacher(seconds=0.001)})
    with pipeline(world) as line:
        results = line.run(tasks(4000), OUTPUTS)
        check(itertools.islice(results, 20), 20)
        state["away"] = True
        for _ in range(20):
            next(results)
        state["away"] = False
        before = len(teacher.rows)
        end = time.monotonic() + 5
        while len(teacher.rows) < before + 5:
            next(results)
            assert time.monotonic() < end


def test_without_a_teacher_it_waits_says_so_and_goes_on_when_one_appears(monkeypatch, caplog):
    monkeypatch.setattr("paddleseg_ext.service.pipeline._SAY", 0.05)
    monkeypatch.setattr("paddleseg_ext.service.pipeline._LOOK", 0.05)
    world = World({"a:1": Teacher()})
    with pipeline(world) as line, caplog.at_level(logging.WARNING):
        results = line.run(tasks(30), OUTPUTS)
        first = list(itertools.islice(results, 3))
        world.take("a:1")
        threading.Timer(0.3, lambda: world.put("b:2", Teacher())).start()
        check([*first, *results], 30)
    assert "waiting for teachers" in caplog.text and "no teacher is known" in caplog.text


def test_without_a_teacher_for_too_long_an_error_says_why():
    world = World({"a:1": Teacher(lambda: AWAY)})
    with pipeline(world, timeout=0.4) as line, pytest.raises(NoTeacherError, match="0.4 s.*0 of 1 teachers.*a:1: away"):
        list(line.run(tasks(3), OUTPUTS))


def test_waiting_ends_when_it_is_told_to():
    world = World({"a:1": Teacher(lambda: AWAY)})
    stopped = threading.Event()
    threading.Timer(0.1, stopped.set).start()
    began = time.monotonic()
    with pipeline(world, stopped=stopped.is_set) as line, pytest.raises(StoppedWaiting, match="a:1: away"):
        list(line.run(tasks(3), OUTPUTS))
    assert time.monotonic() - began < 3


def test_a_teacher_grown_slow_beyond_its_deadline_is_not_asked_in_vain_for_ever(monkeypatch):
    monkeypatch.setattr(health, "_LEAST", 0.02)
    teacher = Teacher(seconds=0.001)
    world = World({"a:1": teacher})
    with pipeline(world) as line:
        results = line.run(tasks(12), OUTPUTS)
        first = [next(results) for _ in range(6)]
        teacher.seconds = 0.3
        check([*first, *results], 12)


@pytest.mark.parametrize("act", [GOOD, AWAY, LATE, "nan"])
def test_no_more_is_read_than_the_capacity_whatever_teachers_do(act):
    acts = itertools.chain([GOOD], itertools.repeat(act))
    read, taken = [], 0
    world = World({"a:1": Teacher(lambda: next(acts)), "b:2": Teacher(lambda: LATE, 0.01)})
    with pipeline(world, capacity=5, timeout=0.5) as line:
        results = line.run(tasks(40, read=read), OUTPUTS)
        try:
            for _ in results:
                taken += 1
                assert len(read) <= taken + 5
        except NoTeacherError:
            assert act != GOOD
        assert len(read) <= taken + 5 and line.held <= 5


def test_an_error_of_the_reader_arrives_with_its_traceback_after_what_was_read_before_it():
    def read():
        yield from tasks(7)
        raise KeyError("a broken file")

    with pipeline(World({"a:1": Teacher()})) as line:
        results = line.run(read(), OUTPUTS)
        check(itertools.islice(results, 7), 7)
        with pytest.raises(KeyError, match="a broken file") as caught:
            next(results)
    assert "in read" in "".join(traceback.format_exception(caught.value))


def test_an_error_in_the_pipeline_arrives_with_its_traceback():
    class Broken(World):
        def connect(self, endpoint):
            connection = super().connect(endpoint)

            async def infer(inputs, outputs, seconds):
                raise ZeroDivisionError("a mistake of ours")

            connection.infer = infer
            return connection

    with pipeline(Broken({"a:1": Teacher()})) as line, pytest.raises(ZeroDivisionError) as caught:
        list(line.run(tasks(3), OUTPUTS))
    assert "in infer" in "".join(traceback.format_exception(caught.value))


def test_an_error_of_the_list_of_teachers_arrives():
    class Broken(World):
        def endpoints(self):
            raise OSError("the list is gone")

    with pipeline(Broken({})) as line, pytest.raises(OSError, match="the list is gone"):
        list(line.run(tasks(1), OUTPUTS))


def test_a_pipeline_that_is_forgotten_stops():
    world = World({"a:1": Teacher()})

    def epoch():
        with pipeline(world) as line:
            yield from line.run(tasks(1000), OUTPUTS)

    for _ in epoch():
        break
    until(lambda: world.closed and world.open == 0)
    line = pipeline(world)
    line.spec()
    del line
    gc.collect()
    until(lambda: not at_work())


def test_closing_does_not_wait_for_a_teacher_that_hangs():
    acts = iter([GOOD])
    world = World({"a:1": Teacher(lambda: next(acts, LATE))})
    line = pipeline(world)
    results = line.run(tasks(5), OUTPUTS)
    threading.Timer(0.1, line.close).start()
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="closed"):
        next(results)
    assert time.monotonic() - began < 1.5
    assert world.open == 0


def test_two_pipelines_in_one_process_have_each_their_own_teachers():
    worlds = [World({"a:1": Teacher(seconds=0.001)}), World({"b:2": Teacher(seconds=0.001)})]
    with pipeline(worlds[0]) as first, pipeline(worlds[1]) as second:
        both = zip(first.run(tasks(30), OUTPUTS), second.run(tasks(30), OUTPUTS), strict=True)
        check([results[0] for results in both], 30)
    assert [sum(t.rows) for world in worlds for t in world.teachers.values()] == [120, 120]


def test_unordered_results_do_not_wait_for_a_slow_one():
    times = iter([0.002] * 5 + [0.5])

    class Uneven(Teacher):
        @property
        def seconds(self):
            return next(times, 0.002)

        @seconds.setter
        def seconds(self, _):
            pass

    numbers = run(World({"a:1": Uneven()}), 30, ordered=False)
    assert numbers[-1] < 12


def test_the_answers_of_one_batch_fit_together_where_the_description_leaves_sizes_open():
    """The odd one out of three is wrong, even if it was the first."""
    spec = replace(SPEC, outputs=tuple(replace(o, shape=(-1, -1)) for o in SPEC.outputs))
    odd = iter([GOOD])
    world = World(
        {"odd:1": Teacher(lambda: next(odd, "shape"), seconds=0.003, spec=spec)}
        | {f"t:{i}": Teacher(seconds=0.003, spec=spec) for i in range(2)}
    )
    with pipeline(world) as line:
        results = list(line.run(tasks(100), OUTPUTS))
    wide = [said["prediction"].shape[1] == 2 for _, said in results]
    assert len(wide) == 100 and all(wide[30:])


@pytest.mark.parametrize("ordered", [True, False])
def test_the_parts_of_one_batch_fit_together_when_most_teachers_answer_otherwise_meanwhile(ordered):
    """The odd one answers first, so that its form is that of most for a while."""
    spec = replace(SPEC, outputs=tuple(replace(o, shape=(-1, -1)) for o in SPEC.outputs))
    odd = iter([GOOD])
    world = World(
        {"odd:1": Teacher(lambda: next(odd, "shape"), seconds=0.01, spec=spec)}
        | {f"t:{i}": Teacher(seconds=0.05, spec=spec) for i in range(2)}
    )
    with pipeline(world, ordered=ordered) as line:
        results = list(line.run(tasks(50, rows=8, part=2), OUTPUTS))
    assert sorted(number for (number, _), _ in results) == list(range(50))
    for (_, x), said in results:
        np.testing.assert_array_equal(said["prediction"], (2 * x)[:, : said["prediction"].shape[1]])
    assert all(said["prediction"].shape == (8, 2) for _, said in results[20:])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_every_kind_of_value_that_is_not_finite_is_found(dtype, value):
    x = np.array([0, -1.5, 3, np.finfo(dtype).max, np.finfo(dtype).min, np.finfo(dtype).tiny], dtype).reshape(2, 3)
    assert finite(x) and finite(x[:, ::2]) and finite(x[:0])
    x[1, 0] = value
    assert not finite(x) and not finite(x[:, ::2]) and finite(x[:1])


def test_nothing_is_read_twice_for_an_empty_reader():
    with pipeline(World({"a:1": Teacher()})) as line:
        assert list(line.run(iter(()), OUTPUTS)) == []


def test_predictions_are_those_of_the_twin():
    x = np.ones((3, 2), "float32")
    with pipeline(World({"a:1": Teacher()})) as line:
        [(_, said)] = line.run([Task(None, [{"x": x}])], OUTPUTS)
    np.testing.assert_array_equal(said["prediction"], predictions(x)["prediction"])
