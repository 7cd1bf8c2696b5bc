"""A reader, discovery, balance servers, Redis and teachers together, while what they stand on is killed."""

import threading
from contextlib import ExitStack, closing

import numpy as np
import pytest

from paddleseg_ext.service.client import ClientOptions, connector
from paddleseg_ext.service.liveness import NetworkTeacher
from paddleseg_ext.service.reader import DistillReader, ReaderSettings
from paddleseg_ext.service.registrar import Registrar
from paddleseg_ext.service.registry import Registry, StoreOptions
from tests.service.processes import Teachers
from tests.service.redis_server import commands, free_port, redis_server, until
from tests.service.teachers import predictions

LEASE = 2.0


class Pool:
    """Teachers as processes, each with a registrar; and two balance servers."""

    def __init__(self, stack, folder):
        self.stack, self.redis = stack, stack.enter_context(redis_server())
        self.start = stack.enter_context(commands(folder))
        self.registry = stack.enter_context(closing(Registry(StoreOptions((self.redis.endpoint,), lease=LEASE))))
        words = ["-m", "paddleseg_ext.cli.balance_server", "--db_endpoints", self.redis.endpoint, "--lease", LEASE]
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        self.balancers = [self.start(*words, "--server", address) for address in self.addresses]
        self.processes = Teachers()
        stack.callback(self.processes.close)
        for balancer in self.balancers:
            balancer.says("listening at")

    def add(self, **options):
        """A new teacher, registered; gives its process."""
        (teacher,) = self.processes.start(**options)
        asked = self.stack.enter_context(NetworkTeacher(teacher.endpoint, connector(ClientOptions())))
        self.stack.enter_context(Registrar(self.registry, "double", teacher.endpoint, asked)).wait(10)
        return teacher

    def epoch(self, count, at):
        """Reads an epoch of numbered samples; each must come once, in order, with the prediction of local inference."""
        made = DistillReader(["img", "label"], ["prediction"], 4, settings=ReaderSettings(teacher_timeout=30))
        made.set_dynamic_teacher(self.addresses, "double", 8)

        def read():
            for start in range(0, count, 8):
                label = np.arange(start, start + 8)
                yield np.stack([label, label / 2], 1).astype("float32"), label

        seen = []
        for number, (img, label, prediction) in enumerate(made.set_batch_generator(read)()):
            np.testing.assert_array_equal(prediction, predictions(img)["prediction"])
            seen += label.tolist()
            at(number)
        assert seen == list(range(count))


@pytest.fixture
def pool(tmp_path):
    with ExitStack() as stack:
        yield Pool(stack, tmp_path)


def test_killing_a_teacher_a_balance_server_and_redis_in_one_epoch_costs_nothing(pool):
    teachers = [pool.add(seconds=0.005) for _ in range(3)]

    def kill_redis():
        pool.redis.kill()
        pool.redis.start()

    acts = {20: teachers[0].kill, 50: pool.balancers[0].kill, 80: kill_redis, 110: pool.add}
    pool.epoch(8 * 150, lambda number: acts.get(number, int)())


def test_when_all_teachers_are_killed_it_waits_for_one_that_registers(pool):
    teachers = [pool.add(seconds=0.005) for _ in range(2)]

    def kill():
        for teacher in teachers:
            teacher.kill()
        until(lambda: not pool.registry.visit("double").teachers, 5)
        threading.Thread(target=pool.add).start()

    pool.epoch(8 * 60, lambda number: kill() if number == 20 else None)
