"""Students and balance servers as real processes on a real Redis: who dies, hangs or comes back moves no more than it must."""

import itertools
import signal
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import replace

import pytest

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.service.discovery import DiscoveredEndpoints, DiscoveryError, DiscoveryOptions
from paddleseg_ext.service.messages import Lease
from paddleseg_ext.service.registry import Registry, RegistryError, StoreOptions
from paddleseg_ext.service.security import Security
from tests.service.redis_server import commands, free_port, redis_server, until
from tests.service.test_assign import faults

LEASE = 2.0
BALANCE = ("-m", "paddleseg_ext.cli.balance_server")
ENDS = [f"10.0.0.{i}:9292" for i in range(9)]


class World:
    """Redis, two balance servers, leases that are kept up from here, and students."""

    def __init__(self, redis, start, stack):
        self.redis, self.start = redis, start
        self.ports = [free_port(), free_port()]
        self.addresses = [f"127.0.0.1:{port}" for port in self.ports]
        self.servers = [self.server(address) for address in self.addresses]
        for server in self.servers:
            server.says("listening at")
        self.registry = stack.enter_context(closing(Registry(StoreOptions((redis.endpoint,), lease=LEASE))))
        self.teachers, self.students, self.number = {}, {}, itertools.count()
        stop = threading.Event()
        thread = threading.Thread(target=self._renew, args=(stop,), daemon=True)
        thread.start()
        stack.callback(lambda: [stop.set(), thread.join(), *(s.close() for s in self.students.values())])

    def server(self, address):
        return self.start(*BALANCE, "--db_endpoints", self.redis.endpoint, "--server", address, "--lease", LEASE)

    def _renew(self, stop):
        while not stop.wait(0.2):
            for lease in list(self.teachers.values()):
                try:
                    self.registry.take(lease)
                except RegistryError:
                    continue

    def service(self):
        """A name nobody has used."""
        self.teachers.clear()
        for student in self.students.values():
            student.close()
        self.students.clear()
        self.name = f"seg{next(self.number)}"
        return self.name

    def join(self, *endpoints, digest="d"):
        for endpoint in endpoints:
            self.teachers[endpoint] = Lease(self.name, endpoint, "toy", digest, "token", 1.0)
            self.registry.take(self.teachers[endpoint])

    def leave(self, endpoint):
        self.registry.drop(self.teachers.pop(endpoint))

    def learn(self, name, require_num=4, servers=None):
        options = DiscoveryOptions(require_num, poll=0.2, student=name)
        self.students[name] = DiscoveredEndpoints(servers or self.addresses, self.name, options)
        return self.students[name]

    def shares(self):
        return {name: list(student.endpoints()) for name, student in self.students.items()}

    def faults(self):
        students = [_Wish(name, s._options.require_num) for name, s in self.students.items()]
        return faults(list(self.teachers), students, self.shares())

    def settled(self, seconds=10.0):
        """Wait until all is as it should be; who asks whom."""
        until(lambda: not self.faults(), seconds, f"balance: {self.faults()}")
        return self.shares()


class _Wish:
    def __init__(self, name, require_num):
        self.name, self.require_num = name, require_num


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server())
        yield World(redis, stack.enter_context(commands(tmp_path_factory.mktemp("logs"))), stack)


def stays(world, shares, seconds):
    """Nothing moves for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert world.shares() == shares
        time.sleep(0.02)


def test_students_get_their_share_and_joins_and_leaves_reach_them_within_seconds(world):
    world.service()
    for i in range(5):
        world.learn(f"s{i}", servers=[world.addresses[i % 2]])  # some ask one server, some the other
    for student in world.students.values():
        student.wait(10)
    assert not any(world.shares().values())
    world.join(*ENDS[:3])
    assert sorted(map(len, world.settled(5).values())) == [1, 1, 1, 1, 1]
    world.join(*ENDS[3:8])
    before = world.settled(5)
    assert sorted(itertools.chain(*before.values())) == ENDS[:8], "with 5 students and 8 teachers none is idle"
    world.leave(ENDS[0])
    after = world.settled(5)
    moved = sum(len(set(after[name]) - set(before[name])) for name in after)
    assert moved <= 1
    world.students.pop("s4").close()
    world.settled(2)  # its goodbye is heard; nobody waits for a lease to run out


def test_services_do_not_meet(world):
    other = world.service()
    world.join(*ENDS[:2], digest="of another model")
    strangers = dict(world.teachers)
    world.service()
    world.join(*ENDS[2:5])
    world.learn("a")
    with DiscoveredEndpoints(world.addresses, other, DiscoveryOptions(student="a", poll=0.2)) as same_name:
        until(lambda: sorted(same_name.endpoints()) == ENDS[:2], 5)
        assert world.settled(5) == {"a": ENDS[2:5]}
    for lease in strangers.values():
        world.registry.drop(lease)


def test_one_server_that_refuses_is_no_reason_to_give_up(world, tmp_path):
    world.service()
    (tmp_path / "token").write_text("s3cret")
    words = ("--db_endpoints", world.redis.endpoint, "--server", "127.0.0.1:0", "--token_file", tmp_path / "token")
    refuses = world.start(*BALANCE, *words).says("listening at").split("listening at ")[1].split()[0]
    world.learn("a", servers=[refuses, world.addresses[0]]).wait(10)


def test_a_student_that_is_killed_frees_its_teachers(world):
    name = world.service()
    world.join(*ENDS[:4])
    code = "import sys, time; from paddleseg_ext.service.discovery import *\n"
    code += "d = DiscoveredEndpoints(sys.argv[1], sys.argv[2]); d.wait(10); print('has', *d.endpoints(), flush=True); time.sleep(60)"
    victim = world.start("-c", code, world.addresses[0], name)
    victim.says("has 10.0.0.0:9292 10.0.0.1:9292 10.0.0.2:9292 10.0.0.3:9292")
    world.learn("a")
    until(lambda: len(world.shares()["a"]) == 2, 5)
    victim.kill()
    assert world.settled(LEASE + 3) == {"a": ENDS[:4]}


def test_a_killed_balance_server_costs_nobody_a_teacher(world):
    world.service()
    world.join(*ENDS[:4])
    world.learn("a"), world.learn("b")
    shares = world.settled()
    world.servers[0].kill()
    stays(world, shares, 0.5)
    world.join(ENDS[4])
    assert sorted(map(len, world.settled(5).values())) == [2, 3], "the other server has taken over"
    world.servers[1].kill()
    shares = world.shares()
    stays(world, shares, 0.5)
    for i in (0, 1):
        world.servers[i] = world.server(world.addresses[i])
    world.servers[0].says("listening at")
    world.servers[1].says("listening at")
    world.join(ENDS[5])
    after = world.settled(12)
    assert sum(len(set(after[name]) - set(shares[name])) for name in after) == 1


def test_a_killed_redis_moves_nothing(world):
    world.service()
    world.join(*ENDS[:6])
    for i in range(3):
        world.learn(f"s{i}", servers=[world.addresses[i % 2]])
    shares = world.settled()
    world.redis.kill()
    stays(world, shares, 0.5)
    world.redis.start()
    stays(world, shares, LEASE + 1.5)
    assert {name for name, student in world.students.items() if student._problem} == set(), "all have reconnected"
    world.join(ENDS[6])
    assert sorted(map(len, world.settled(5).values())) == [2, 2, 3]


def test_all_at_once_may_be_restarted(world):
    world.service()
    world.join(*ENDS[:4])
    world.learn("a"), world.learn("b")
    shares = world.settled()
    for victim in (world.redis, *world.servers):
        victim.kill()
    stays(world, shares, 0.5)
    world.redis.start()
    for i in (0, 1):
        world.servers[i] = world.server(world.addresses[i])
    for server in world.servers:
        server.says("listening at")
    stays(world, shares, LEASE + 1)
    world.leave(shares["a"][0])
    assert sorted(map(len, world.settled(12).values())) == [1, 2]


def test_a_balance_server_that_hangs_is_left_for_the_other(world, monkeypatch):
    monkeypatch.setattr("paddleseg_ext.service.discovery._CALL", 0.5)
    world.service()
    world.join(*ENDS[:2])
    world.learn("a")
    world.settled()
    world.servers[0].signal(signal.SIGSTOP)
    try:
        world.join(ENDS[2])
        assert world.settled(6) == {"a": ENDS[:3]}
    finally:
        world.servers[0].signal(signal.SIGCONT)


def test_a_teacher_killed_with_its_registrar_is_taken_away_when_its_lease_runs_out(world):
    name, port = world.service(), free_port()
    register = (
        "-m",
        "paddleseg_ext.cli.server_register",
        "--db_endpoints",
        world.redis.endpoint,
        "--service_name",
        name,
    )
    teacher = world.start("tests/service/tiny_teacher.py", port)
    teacher.says("serving")
    registrar = world.start(*register, "--server", f"127.0.0.1:{port}", "--lease", LEASE)
    student = world.learn("a")
    until(lambda: list(student.endpoints()) == [f"127.0.0.1:{port}"], 15)
    registrar.kill(), teacher.kill()
    until(lambda: not student.endpoints(), LEASE + 3)


def test_a_model_learnt_from_is_never_exchanged_for_another(world):
    world.service()
    world.join(ENDS[0])
    student = world.learn("a")
    world.settled()
    assert student.digest == "d"
    world.leave(ENDS[0])
    until(lambda: not student.endpoints(), 5)
    world.join(ENDS[1], digest="other")
    newcomer = world.learn("b")
    until(lambda: newcomer.endpoints() == (ENDS[1],), 5)
    stays(world, {"a": [], "b": [ENDS[1]]}, 0.5)


def test_two_servers_give_the_same_answer_through_joins_and_leaves(world):
    world.service()
    for i in range(4):
        world.learn(f"s{i}", 2, servers=[world.addresses[i % 2]])
    for joins in (3, 6, 8, 2, 5):
        for endpoint in [e for e in world.teachers if e not in ENDS[:joins]]:
            world.leave(endpoint)
        world.join(*(e for e in ENDS[:joins] if e not in world.teachers))
        world.settled(6)


@pytest.mark.parametrize(
    ("servers", "service", "num", "reason"),
    [
        ("nowhere", "seg", 1, "--discovery: host:port.*'nowhere'"),
        ("127.0.0.1:1", "a b", 1, "--teacher_service: letters"),
        ("127.0.0.1:1", "seg", 0, "require_num: 1 to 1024"),
    ],
)
def test_what_cannot_be_is_refused_at_once(servers, service, num, reason):
    with pytest.raises(ConfigError, match=reason):
        DiscoveredEndpoints(servers, service, DiscoveryOptions(num))


def test_nobody_there_at_the_start_is_a_clear_error_and_ends_nothing():
    away = f"127.0.0.1:{free_port()}"
    with DiscoveredEndpoints(away, "seg") as student:
        with pytest.raises(DiscoveryError, match=f"--discovery {away}: no balance server gives teachers .*UNAVAILABLE"):
            student.wait(0.7)
        assert student.endpoints() == ()
        started = time.monotonic()
    assert time.monotonic() - started < 1.0
    assert not [t for t in threading.enumerate() if t.name == "discovery of seg"]


def test_close_does_not_wait_for_a_server_that_hangs(world):
    world.service()
    world.servers[0].signal(signal.SIGSTOP)
    try:
        student = world.learn("a", servers=[world.addresses[0]])
        time.sleep(0.3)  # it is in the middle of a call
        started = time.monotonic()
        student.close()
        assert time.monotonic() - started < 1.0
        until(lambda: not student._thread.is_alive(), 2)
    finally:
        world.servers[0].signal(signal.SIGCONT)


def test_a_token_that_is_missing_is_said_at_once(world, tmp_path):
    (tmp_path / "token").write_text("s3cret\n")
    words = ("--db_endpoints", world.redis.endpoint, "--server", "127.0.0.1:0", "--token_file", tmp_path / "token")
    address = world.start(*BALANCE, *words).says("listening at").split("listening at ")[1].split()[0]
    with DiscoveredEndpoints(address, "seg") as student:
        started = time.monotonic()
        with pytest.raises(DiscoveryError, match="UNAUTHENTICATED: a token is needed"):
            student.wait(20)
        assert time.monotonic() - started < 10
    with DiscoveredEndpoints(address, "seg", DiscoveryOptions(security=Security(token="s3cret"))) as student:
        student.wait(10)


def test_rates_reach_the_store_and_a_fault_in_them_costs_nothing(world):
    world.service()
    world.join(ENDS[0])
    good = replace(DiscoveryOptions(poll=0.1, student="a"), rates=lambda: {ENDS[0]: 41.5, "x": float("nan")})
    bad = replace(DiscoveryOptions(poll=0.1, student="b"), rates=lambda: 1 / 0)
    for options in (good, bad):
        world.students[options.student] = DiscoveredEndpoints(world.addresses, world.name, options)
    world.settled()
    rates = {report.student: report.rates for report in world.registry.visit(world.name).students}
    assert rates == {"a": {ENDS[0]: 41.5}, "b": {}}
