"""What reaches a balance server from anybody costs its sender a call or a connection, and nothing else."""

import asyncio
import json
import os
import random
import socket
import threading
import time
from contextlib import ExitStack, closing, contextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paddleseg_ext.errors import ConfigError, NoTeacherError
from paddleseg_ext.service.balance_server import SERVICE, BalanceServer
from paddleseg_ext.service.discovery import DiscoveredEndpoints, DiscoveryError, DiscoveryOptions
from paddleseg_ext.service.messages import Lease, Report, Share
from paddleseg_ext.service.reader import DistillReader, ReaderSettings
from paddleseg_ext.service.registry import Registry, StoreOptions
from paddleseg_ext.service.security import Security
from tests.service.redis_server import commands, free_port, redis_server
from tests.service.tls import certificates


@contextmanager
def running(registry, security=None, address="127.0.0.1:0"):
    """A server in a thread of its own; gives its endpoint."""
    ready, found = threading.Event(), {}

    async def serve():
        found["loop"], found["stop"] = asyncio.get_running_loop(), asyncio.Event()

        def started(endpoint):
            found["endpoint"] = endpoint
            ready.set()

        await BalanceServer(registry, security).run(address, found["stop"], started)

    def run():
        try:
            asyncio.run(serve())
        except Exception as error:
            found["error"] = error
            ready.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    if "error" in found:
        raise found["error"]
    try:
        yield found["endpoint"]
    finally:
        found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join(10)
        assert not thread.is_alive() and "error" not in found


@pytest.fixture(scope="module")
def redis():
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def registry(redis):
    with closing(Registry(StoreOptions((redis.endpoint,), lease=5))) as registry:
        yield registry


@pytest.fixture(scope="module")
def endpoint(registry):
    with running(registry) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def call(endpoint):
    with grpc.insecure_channel(endpoint, options=[("grpc.max_send_message_length", -1)]) as channel:
        yield lambda method, body: channel.unary_unary(f"/{SERVICE}/{method}")(body, timeout=10)


def answers(call, registry, name):
    """Whether a student in good order is still given its teacher."""
    registry.take(Lease(name, "h:1", "toy", "d", "t", 1.0))
    return Share.parse(call("Poll", Report(name, "honest", 1).text().encode())) == Share(("h:1",), "d")


@pytest.mark.parametrize("method", ["Poll", "Leave"])
@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"\x00" * 1000, b"[" * 200_000, b"null", Report("seg", "s", 0).text().encode(), os.urandom(5000)],
    ids=["empty", "no fields", "zeros", "deep", "null", "require_num 0", "random"],
)
def test_a_malformed_body_is_refused_with_a_reason(call, registry, method, body):
    with pytest.raises(grpc.RpcError) as caught:
        call(method, body)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT and caught.value.details()
    assert answers(call, registry, "malformed")


def test_an_oversized_body_and_an_unknown_method_are_refused(call, registry):
    for method, body, code in (
        ("Poll", b" " * 1_000_000, grpc.StatusCode.RESOURCE_EXHAUSTED),
        ("Nonsense", b"{}", grpc.StatusCode.UNIMPLEMENTED),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(method, body)
        assert caught.value.code() == code
    assert answers(call, registry, "oversized")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=300))
def test_random_bodies_never_end_the_server(call, body):
    with pytest.raises(grpc.RpcError) as caught:
        call("Poll", body)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_raw_garbage_costs_its_sender_the_connection_only(call, registry, endpoint):
    rng = random.Random(0)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    host, port = endpoint.split(":")
    first = [b"", b"\x00", b"GET / HTTP/1.1\r\n\r\n", preface, preface + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"]
    with ExitStack() as stack:
        for n in range(40):
            raw = stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
            raw.sendall(first[n % 5] + rng.randbytes(rng.choice([0, 1, 9, 100, 5000])))
            if n % 2:
                raw.close()
        # Half of them are still open, and some have said nothing at all.
        assert answers(call, registry, "raw")
    assert answers(call, registry, "raw")


def test_garbage_in_the_store_is_replaced(call, registry, redis):
    redis.client().set("paddleseg_ext:shares:garbage", b"\xff{\x00")
    assert answers(call, registry, "garbage")


def test_a_poll_before_redis_is_there_is_an_error_of_that_poll_only(redis, tmp_path):
    with redis_server() as own, closing(Registry(StoreOptions((own.endpoint,)))) as registry:
        own.kill()
        with running(registry) as endpoint, grpc.insecure_channel(endpoint) as channel:
            poll = channel.unary_unary(f"/{SERVICE}/Poll")
            with pytest.raises(grpc.RpcError) as caught:
                poll(Report("seg", "a").text().encode(), timeout=10)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE and "no use of Redis" in caught.value.details()
            own.start()
            with DiscoveredEndpoints(endpoint, "seg") as student:
                student.wait(10)


def test_the_standard_health_service_answers_without_a_token(registry):
    with running(registry, Security(token="s3cret")) as endpoint, grpc.insecure_channel(endpoint) as channel:
        said = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10)
        assert health_pb2.HealthCheckResponse.FromString(said).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/{SERVICE}/Poll")(Report("seg", "a").text().encode(), timeout=10)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def learn(servers, **settings):
    """An epoch of a reader that finds its teachers."""
    made = DistillReader(["x"], ["prediction"], settings=ReaderSettings(**settings))
    made.set_dynamic_teacher(servers, "seg")
    return next(made.set_batch_generator(list)())


def test_an_epoch_whose_balance_servers_all_refuse_ends_at_once_and_says_why(registry):
    with running(registry, Security(token="right")) as one, running(registry, Security(token="right")) as other:
        began = time.monotonic()
        with pytest.raises(NoTeacherError, match="no balance server gives teachers .*UNAUTHENTICATED: a token"):
            learn([one, other], teacher_timeout=20, security=Security(token="wrong"))
        assert time.monotonic() - began < 10


def test_an_epoch_without_a_teacher_says_what_balance_servers_say(registry, endpoint):
    away = f"127.0.0.1:{free_port()}"
    with pytest.raises(NoTeacherError, match=f"no teacher is known .{away}: UNAVAILABLE"):
        learn(away, teacher_timeout=1.0)
    with pytest.raises(NoTeacherError, match="no teacher is known .the balance servers have none of 'seg'"):
        learn(endpoint, teacher_timeout=1.5)


def test_tls_both_ways_and_nobody_without_it(registry, tmp_path):
    ca, cert, key = certificates(tmp_path)
    with running(registry, Security(cert, key, ca), "localhost:0") as endpoint:
        options = DiscoveryOptions(security=Security(cert, key, ca))
        with DiscoveredEndpoints(endpoint, "tls", options) as student:
            student.wait(10)
        for security in (Security(), Security(tls_ca=ca)):
            stranger = DiscoveredEndpoints(endpoint, "tls", DiscoveryOptions(security=security))
            with stranger, pytest.raises(DiscoveryError):
                stranger.wait(0.7)


def test_a_port_in_use_is_said(registry, endpoint):
    with (
        pytest.raises(ConfigError, match=f"--server {endpoint}: cannot listen there"),
        running(registry, None, endpoint),
    ):
        pass


def test_status_shows_who_asks_whom_and_how_fast(redis, registry, endpoint, tmp_path):
    with commands(tmp_path) as start, ExitStack() as stack:
        for number in (1, 2):
            registry.take(Lease("shown", f"10.0.0.{number}:9292", "toy", "d", "t", 1.0))
        students = []
        for name in ("alice", "bob"):
            options = DiscoveryOptions(1, 0.1, name, rates=lambda: {"10.0.0.1:9292": 41.5, "10.0.0.2:9292": 0.5})
            students.append(stack.enter_context(DiscoveredEndpoints(endpoint, "shown", options)))
            students[-1].wait(10)
        words = ("-m", "paddleseg_ext.cli.service_status", "--db_endpoints", redis.endpoint)
        table, as_json = start(*words), start(*words, "--json")
        assert table.ends() == as_json.ends() == 0
    found = json.loads(as_json.text())["shown"]
    assert [t["endpoint"] for t in found["teachers"]] == ["10.0.0.1:9292", "10.0.0.2:9292"]
    assert sorted(t["students"][0] for t in found["teachers"]) == ["alice", "bob"]
    assert [t["rate"] for t in found["teachers"]] == [83.0, 1.0]
    assert {s["name"]: s["require_num"] for s in found["students"]} == {"alice": 1, "bob": 1}
    assert "shown: teachers 2, students 2" in table.text()
    for student in students:
        assert any(student.student in line and student.endpoints()[0] in line for line in table.text().splitlines())
