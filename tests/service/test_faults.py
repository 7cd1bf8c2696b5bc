"""Teachers and students as real processes that are killed, halted, wrong, and come and go in mid-epoch."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from paddleseg_ext.service import health, pool
from paddleseg_ext.service.client import connector
from paddleseg_ext.service.pipeline import Options, Pipeline
from paddleseg_ext.service.reader import DistillReader, ReaderSettings
from tests.service.processes import Listed, Teachers, free_port
from tests.service.teachers import at_work, predictions, tasks, until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def teachers():
    started = Teachers()
    yield started
    started.close()
    until(lambda: not at_work())


def reader(teachers, count, size=8, **settings):
    """Batches of numbered samples, and the numbers that were read."""
    made = DistillReader(["img", "label"], ["prediction"], 4, settings=ReaderSettings(teacher_timeout=30, **settings))
    made.set_fixed_teacher([teacher.endpoint for teacher in teachers])

    def read():
        for start in range(0, count, size):
            label = np.arange(start, min(start + size, count))
            yield np.stack([label, label / 2], 1).astype("float32"), label

    return made.set_batch_generator(read)


def assert_all(epoch, count, at=lambda number: None):
    """Every sample once, in order, each with the prediction of local inference."""
    seen = []
    for number, (img, label, prediction) in enumerate(epoch):
        np.testing.assert_array_equal(prediction, predictions(img)["prediction"])
        seen += label.tolist()
        at(number)
    assert seen == list(range(count))


def when(number, act):
    """Do something once, at a batch."""
    return lambda now: act() if now == number else None


def test_killing_one_of_three_teachers_in_mid_epoch_costs_nothing(teachers):
    three = teachers.start(3)
    assert_all(reader(three, 1600)(), 1600, when(60, three[1].kill))


def test_when_all_are_killed_it_waits_for_a_new_one(teachers):
    old = teachers.start(2, seconds=0.005)
    port = old[0].endpoint.rpartition(":")[2]

    def kill():
        for teacher in old:
            teacher.kill()
        threading.Thread(target=lambda: teachers.start(port=port)).start()

    assert_all(reader(old, 800)(), 800, when(30, kill))


def test_a_halted_teacher_holds_up_nothing_for_long_and_comes_back(teachers):
    two = teachers.start(2, seconds=0.005)
    slowest, last = [0.0], [time.monotonic()]

    def look(number):
        slowest[0], last[0] = max(slowest[0], time.monotonic() - last[0]), time.monotonic()
        if number == 40:
            two[0].halt()
        if number == 300:
            two[0].go_on()

    assert_all(reader(two, 4000)(), 4000, look)
    assert slowest[0] < 5


def test_garbage_and_another_model_are_never_seen(teachers):
    wrong = [*teachers.start(kind="nan"), *teachers.start(kind="other")]
    right = teachers.start(2)
    assert_all(reader([right[0], *wrong, right[1]], 1600)(), 1600)


def test_teachers_that_come_and_go_twenty_times_lose_nothing(teachers, monkeypatch):
    monkeypatch.setattr(pool, "_FOLLOW", 0.02)
    four = teachers.start(4, seconds=0.003)
    source = Listed([four[0].endpoint])
    with Pipeline(source, connector(), Options(capacity=8, timeout=30)) as line:
        numbers = []
        for number, ((read, x), said) in enumerate(line.run(tasks(410), ["prediction"])):
            np.testing.assert_array_equal(said["prediction"], 2 * x)
            numbers.append(read)
            if number % 20 == 10:
                step = number // 20
                source.listed = [four[i].endpoint for i in {step % 4, (step + step // 4 + 1) % 4}]
    assert numbers == list(range(410))


def test_a_teacher_killed_and_started_again_works_again_within_seconds(teachers, monkeypatch):
    monkeypatch.setattr(health, "_LAST_BACKOFF", 0.5)
    port = free_port()
    first, other = teachers.start(port=port)[0], teachers.start(seconds=0.01)[0]
    source = Listed([first.endpoint, other.endpoint])
    with Pipeline(source, connector(), Options(timeout=30)) as line:
        results = line.run(tasks(100000), ["prediction"])
        for _ in range(40):
            next(results)
        first.kill()
        threading.Thread(target=lambda: teachers.start(port=port)).start()
        back, end = line._engine.pool.rates, time.monotonic() + 15
        back()
        while first.endpoint not in back():
            for _ in range(20):
                next(results)
            assert time.monotonic() < end


STUDENT = """
import sys, time
sys.path.insert(0, {root!r})
from paddleseg_ext.service.reader import DistillReader
import numpy as np
made = DistillReader(["img"], ["prediction"])
made.set_fixed_teacher({endpoint!r})
epoch = made.set_batch_generator(lambda: ((np.ones((4, 2), "float32"),) for _ in iter(int, 1)))()
next(epoch)
print("GOING", flush=True)
{end}
"""


def student(teacher, end):
    code = STUDENT.format(root=str(ROOT), endpoint=teacher.endpoint, end=end)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def assert_gone(process):
    """Nobody of its session is left."""
    until(lambda: not any(_session(pid) == process.pid for pid in _processes()), 10)


def _processes():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _session(pid):
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_student_leaves_nobody(teachers, number):
    process = student(teachers.start()[0], "time.sleep(60)")
    assert process.stdout.readline() == "GOING\n", process.stderr.read()
    process.send_signal(number)
    assert process.wait(10) == -number
    assert_gone(process)
    process.communicate()


def test_a_student_that_ends_in_mid_epoch_ends_at_once_and_without_a_word(teachers):
    process = student(teachers.start()[0], "")
    began = time.monotonic()
    said, complaints = process.communicate(timeout=30)
    assert (said, process.returncode) == ("GOING\n", 0) and not complaints
    assert time.monotonic() - began < 20
    assert_gone(process)


SEVERAL = """
for _ in range(20):  # what is under way is cancelled, and its end comes after that of the epoch
    for number, _ in enumerate(made()):
        if number == 3:
            break
def read(number):
    for _ in range(4):
        seen.append((number, sum(1 for _ in zip(made(), range(50)))))
import threading
seen, threads = [], [threading.Thread(target=read, args=[i]) for i in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert sorted(seen) == sorted((i, 50) for i in range(3) for _ in range(4)), seen
assert sum(thread.name == "event loop" for thread in threading.enumerate()) == 1
"""


def test_epochs_that_break_off_and_several_at_once_are_without_a_word(teachers):
    process = student(teachers.start(seconds=0.001)[0], SEVERAL)
    said, complaints = process.communicate(timeout=60)
    assert (said, process.returncode, complaints) == ("GOING\n", 0, "")


FORKED = """
import multiprocessing, sys
sys.path.insert(0, {root!r})
from paddleseg_ext.service.pipeline import Pipeline
from tests.service.teachers import Teacher, World, tasks

def epoch():
    world = World({{"a:1": Teacher()}})
    with Pipeline(world, world.connect) as line:
        assert len(list(line.run(tasks(20), ["prediction"]))) == 20

epoch()
world = World({{"a:1": Teacher()}})
with Pipeline(world, world.connect) as line:
    results = line.run(tasks(20), ["prediction"])
    next(results)
    child = multiprocessing.get_context("fork").Process(target=epoch)
    child.start()
    child.join(20)
    assert len(list(results)) == 19
assert child.exitcode == 0, child.exitcode
"""


def test_a_process_that_was_forked_talks_to_teachers_by_itself():
    code = FORKED.format(root=str(ROOT))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_several_readers_in_one_process_do_not_meet(teachers):
    two = teachers.start(2)
    readers = [reader([teacher], 400)() for teacher in two]
    for one, other in zip(*readers, strict=True):
        np.testing.assert_array_equal(one[2], other[2])
