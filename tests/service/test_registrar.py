"""A teacher is registered while it is alive and well, and not a moment longer than its lease."""

import signal
import time
from contextlib import ExitStack, closing, contextmanager

import pytest

from paddleseg_ext.cli import balance_server, server_register, service_status
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.service.client import ClientOptions, connector
from paddleseg_ext.service.liveness import NetworkTeacher
from paddleseg_ext.service.registrar import Registrar, RegistrarError, RegistrarOptions
from paddleseg_ext.service.registry import Registry, StoreOptions
from tests.service.redis_server import ROOT, commands, free_port, redis_server, until
from tests.service.tiny_teacher import TinyTeacher

LEASE = 1.2
REGISTER = ("-m", "paddleseg_ext.cli.server_register")


@pytest.fixture(scope="module")
def redis():
    with redis_server() as server:
        yield server


@pytest.fixture
def world(redis, tmp_path):
    """Redis without any content, a registry, and a way to start commands."""
    redis.client().flushall()
    with ExitStack() as stack:
        registry = stack.enter_context(closing(Registry(StoreOptions((redis.endpoint,), lease=LEASE))))
        yield registry, stack.enter_context(commands(tmp_path))


@pytest.fixture
def teacher():
    teacher = TinyTeacher()
    yield teacher
    teacher.close()


@contextmanager
def registrar(registry, endpoint, **options):
    options = RegistrarOptions(**{"check": 0.5, **options})
    with (
        NetworkTeacher(endpoint, connector(ClientOptions())) as asked,
        Registrar(registry, "seg", endpoint, asked, options) as one,
    ):
        yield one


def registered(registry):
    return [lease.endpoint for lease in registry.visit("seg").teachers]


def words(redis, endpoint, *more):
    return [
        *REGISTER,
        "--db_endpoints",
        redis.endpoint,
        "--service_name",
        "seg",
        "--server",
        endpoint,
        "--lease",
        LEASE,
        *more,
    ]


def test_a_teacher_is_registered_inside_the_block_and_longer_than_a_lease(world, teacher):
    registry, _ = world
    with registrar(registry, teacher.endpoint, rates=lambda: {"samples/s": 7.0, "x": float("inf")}) as one:
        one.wait(5)
        end = time.monotonic() + 1.3 * LEASE
        while time.monotonic() < end:
            (lease,) = registry.visit("seg").teachers
            time.sleep(0.05)
    assert (lease.endpoint, lease.model, lease.rates) == (teacher.endpoint, "toy", {"samples/s": 7.0})
    assert registered(registry) == []


@pytest.mark.parametrize("health_service", [True, False], ids=["health", "ServerReady"])
def test_one_that_says_it_does_not_serve_is_removed_at_once_and_comes_back(world, health_service):
    registry, _ = world
    teacher = TinyTeacher(health_service=health_service)
    try:
        with registrar(registry, teacher.endpoint) as one:
            one.wait(5)
            teacher.set_serving(False)
            until(lambda: not one.registered, 3)
            assert registered(registry) == []
            teacher.set_serving(True)
            one.wait(5)
            teacher.close()
            until(lambda: not registered(registry), 3)
    finally:
        teacher.close()


def test_it_registers_again_after_redis_was_killed(world, redis, teacher):
    registry, _ = world
    with registrar(registry, teacher.endpoint) as one:
        one.wait(5)
        redis.kill()
        until(lambda: not one.registered, 5)
        redis.start()
        until(lambda: registered(registry) == [teacher.endpoint], 5)


def test_a_killed_registrar_leaves_a_lease_that_runs_out_and_another_takes_over(world, redis, teacher):
    registry, start = world
    victim = start(*words(redis, teacher.endpoint))
    victim.says("is registered for 'seg'")
    with registrar(registry, teacher.endpoint) as one:
        until(lambda: "by another process" in one._problem, 5)
        victim.kill()
        assert registered(registry) == [teacher.endpoint]
        one.wait(LEASE + 3)
    assert registered(registry) == []


def test_a_registrar_that_is_asked_to_stop_removes_its_lease(world, redis, teacher):
    registry, start = world
    command = start(*words(redis, teacher.endpoint))
    command.says("is registered for 'seg'")
    command.signal(signal.SIGTERM)
    assert command.ends(5) == 0
    assert registered(registry) == []


def test_a_teacher_that_hangs_loses_its_lease_and_has_it_again_when_it_goes_on(world):
    registry, start = world
    port = free_port()
    teacher = start(ROOT / "tests/service/tiny_teacher.py", port)
    teacher.says("serving")
    with registrar(registry, f"127.0.0.1:{port}") as one:
        one.wait(5)
        teacher.signal(signal.SIGSTOP)
        until(lambda: not registered(registry), 2 * LEASE + 2)
        teacher.signal(signal.SIGCONT)
        until(lambda: registered(registry), 5)
        teacher.kill()
        until(lambda: not registered(registry), LEASE)


def test_its_end_does_not_wait_for_a_teacher_that_hangs(world):
    """The teacher may be the very thread that ends the block, as in `serve --register`."""
    registry, start = world
    port = free_port()
    teacher = start(ROOT / "tests/service/tiny_teacher.py", port)
    teacher.says("serving")
    with registrar(registry, f"127.0.0.1:{port}", check=30) as one:
        one.wait(5)
        teacher.signal(signal.SIGSTOP)
        time.sleep(LEASE / 2)  # by now it asks the teacher
        started = time.monotonic()
    assert time.monotonic() - started < 1
    assert registered(registry) == []


def test_a_teacher_with_another_model_is_not_let_in(world, redis, teacher):
    registry, start = world
    other = TinyTeacher(model="wrong")
    try:
        with registrar(registry, teacher.endpoint) as one:
            one.wait(5)
            command = start(*words(redis, other.endpoint, "--wait", "1"))
            assert command.ends() == 2
            assert "error: " in command.text() and "with another model or other outputs than 'wrong'" in command.text()
            assert registered(registry) == [teacher.endpoint]
    finally:
        other.close()


def test_a_teacher_restarted_with_another_model_is_known_by_it(world, teacher):
    registry, _ = world
    with registrar(registry, teacher.endpoint) as one:
        one.wait(5)
        (before,) = registry.visit("seg").teachers
        teacher.model = "newer"
        (after,) = until(lambda: [t for t in registry.visit("seg").teachers if t.model == "newer"], 5)
    assert after.digest != before.digest


def test_what_cannot_be_is_refused_at_once(world, teacher):
    registry, _ = world
    for service, endpoint, flag in (("a b", teacher.endpoint, "--service_name"), ("seg", "nowhere", "--server")):
        with pytest.raises(ConfigError, match=flag):
            Registrar(registry, service, endpoint, None)
    away = f"127.0.0.1:{free_port()}"
    with (
        registrar(registry, away) as one,
        pytest.raises(RegistrarError, match=f"{away} is not registered .*UNAVAILABLE"),
    ):
        one.wait(0.3)


@pytest.fixture
def signals():
    """A command run in this process leaves the signals as they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_bad_input_of_the_commands_is_one_line_and_exit_code_2(redis, teacher, tmp_path, capfd, signals):
    away, bad = f"127.0.0.1:{free_port()}", str(tmp_path / "bad.pem")
    (tmp_path / "bad.pem").write_text("nothing")
    (tmp_path / "two").write_text("two words")
    good = ["--db_endpoints", redis.endpoint]
    register = [*good, "--service_name", "seg", "--server"]
    cases = [
        (balance_server, ["--db_endpoints", away], f"no use of Redis at {away}"),
        (service_status, ["--db_endpoints", away], f"no use of Redis at {away}"),
        (server_register, [*register, "h:1", "--db_endpoints", away], f"no use of Redis at {away}"),
        (balance_server, ["--db_endpoints", "nowhere"], "--db_endpoints nowhere: host:port"),
        (balance_server, [*good, "--server", "nowhere"], "--server: host:port is expected"),
        (balance_server, [*good, "--host", "a b"], "--host: host:port is expected"),
        (balance_server, [*good, "--server", teacher.endpoint], "cannot listen there (Address already in use)"),
        (balance_server, [*good, "--server", "192.0.2.1:1"], "cannot listen there (Cannot assign requested address)"),
        (balance_server, [*good, "--tls_cert", bad, "--tls_key", bad], f"--tls_cert {bad}, --tls_key {bad}: no PEM"),
        (balance_server, [*good, "--tls_cert", bad], "--tls_cert needs --tls_key"),
        (balance_server, [*good, "--token_file", "gone"], "--token_file gone: No such file"),
        (balance_server, [*good, "--token_file", str(tmp_path / "two")], "one line of visible ASCII characters"),
        (balance_server, [*good, "--redis_password_file", "gone"], "--redis_password_file gone: No such file"),
        (balance_server, [*good, "--lease", "0"], "--lease: seconds from 0.5"),
        (service_status, [*good, "--key_prefix", ""], "--key_prefix: letters"),
        (server_register, [*register, "h:1", "--tls_ca", bad], f"--tls_ca {bad}: no PEM"),
        (server_register, [*register, "h"], "--server: host:port is expected"),
        (server_register, [*register, away, "--wait", "0.3"], f"{away} is not registered for 'seg'"),
        (server_register, [*register, teacher.endpoint, "--model_name", "x", "--wait", "1"], "asked for the model 'x'"),
    ]
    for command, words, expected in cases:
        with pytest.raises(SystemExit) as ended:
            command.main(words)
        assert ended.value.code == 2
        (line,) = capfd.readouterr().err.strip().splitlines()
        assert line.startswith("error: ") and expected in line
