"""Teachers in memory for the tests of what sits above them: a Transport whose behaviour a test chooses."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from paddleseg_ext.service.event_loop import event_loop
from paddleseg_ext.service.pipeline import Task
from paddleseg_ext.service.spec import ModelSpec, TensorSpec
from paddleseg_ext.service.transport import TeacherUnavailable, TeacherWrong

SPEC = ModelSpec(
    "double",
    "1",
    (TensorSpec("x", "FP32", (-1, 2), "img"),),
    (TensorSpec("fc_0.tmp_2", "FP32", (-1, 2), "prediction"), TensorSpec("sum", "FP32", (-1, 1), "sum")),
)

GOOD, AWAY, LATE = "good", "away", "late"
WRONG = ("rows more", "rows less", "nan", "shape", "missing")


def predictions(x):
    """What a right teacher says."""
    return {"prediction": 2 * x, "fc_0.tmp_2": 2 * x, "sum": x.sum(axis=1, keepdims=True)}


class Teacher:
    """One endpoint. `acts` gives what each call does; `seconds` how long a good answer takes."""

    def __init__(self, acts: Callable[[], str] = lambda: GOOD, seconds: float = 0.0, spec: ModelSpec = SPEC) -> None:
        self.acts, self.seconds, self.spec = acts, seconds, spec
        self.rows: list[int] = []  # of each request that was answered rightly
        self.asked = 0
        self.most = 0  # requests at once
        self._now = 0


class World:
    """Teachers by endpoint: what an EndpointSource and a Connect see of them. Endpoints may come and go at any time."""

    def __init__(self, teachers: dict[str, Teacher]) -> None:
        self.teachers = dict(teachers)
        self.listed = list(teachers)
        self.open = 0  # connections
        self.closed = False
        self.lock = threading.Lock()

    def endpoints(self) -> list[str]:
        return list(self.listed)

    def problem(self) -> str:
        return ""

    def close(self) -> None:
        self.closed = True

    def connect(self, endpoint: str) -> "_Connection":
        with self.lock:
            self.open += 1
        return _Connection(self, endpoint)

    def put(self, endpoint: str, teacher: Teacher) -> None:
        self.teachers[endpoint] = teacher
        if endpoint not in self.listed:
            self.listed.append(endpoint)

    def take(self, endpoint: str) -> None:
        self.listed.remove(endpoint)
        del self.teachers[endpoint]


class _Connection:
    def __init__(self, world: World, endpoint: str) -> None:
        self.world, self.endpoint = world, endpoint

    async def describe(self, seconds):
        teacher = self._teacher()
        if teacher.acts() in (AWAY, LATE):
            raise TeacherUnavailable(f"{self.endpoint}: away")
        return teacher.spec

    async def infer(self, inputs, outputs, seconds):
        teacher = self._teacher()
        teacher.asked += 1
        teacher._now += 1
        teacher.most = max(teacher.most, teacher._now)
        try:
            return await self._answer(
                teacher, teacher.acts(), inputs["x" if "x" in inputs else "img"], outputs, seconds
            )
        finally:
            teacher._now -= 1

    async def _answer(self, teacher, act, x, outputs, seconds):
        if act == LATE:
            await asyncio.sleep(seconds)
            raise TeacherUnavailable(f"{self.endpoint}: no answer within {seconds} s")
        await asyncio.sleep(teacher.seconds)
        if self.world.teachers.get(self.endpoint) is not teacher or act == AWAY:
            raise TeacherUnavailable(f"{self.endpoint}: away")
        if act == "refused":
            raise TeacherWrong(f"{self.endpoint}: refused")
        said = {name: predictions(x)[name].copy() for name in outputs}
        name = outputs[0]
        if act == "rows more":
            said[name] = np.concatenate([said[name], said[name][:1]])
        elif act == "rows less":
            said[name] = said[name][1:]
        elif act == "nan":
            said[name][0, 0] = np.nan
        elif act == "shape":
            said[name] = said[name][:, :1]
        elif act == "missing":
            del said[name]
        else:
            teacher.rows.append(len(x))
        return said

    async def close(self):
        with self.world.lock:
            self.world.open -= 1

    def _teacher(self) -> Teacher:
        teacher = self.world.teachers.get(self.endpoint)
        if teacher is None:
            raise TeacherUnavailable(f"{self.endpoint}: nobody there")
        return teacher


def moody(seed: int, share: float, kinds=(AWAY, *WRONG)) -> Callable[[], str]:
    """Bad in a share of the calls, at random."""
    chance = random.Random(seed)
    return lambda: chance.choice(kinds) if chance.random() < share else GOOD


def tasks(count: int, rows: int = 4, part: int = 4, read: list | None = None) -> Iterator[Task]:
    """Numbered samples in tasks; `read` notes the numbers of the tasks that were read."""
    for number in range(count):
        x = (np.arange(rows * 2, dtype="float32") + 1000 * number).reshape(rows, 2)
        if read is not None:
            read.append(number)
        yield Task((number, x), [{"x": x[i : i + part]} for i in range(0, rows, part)])


def at_work() -> bool:
    """Whether anything runs in the event loop."""
    return bool(asyncio.all_tasks(event_loop().loop))


def until(done: Callable[[], bool], seconds: float = 5.0) -> None:
    """Poll, with an end."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
