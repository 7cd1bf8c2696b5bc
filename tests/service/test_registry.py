"""The store: leases are taken once, renewed by their owner, and run out; against a real Redis."""

import signal
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.service import registry as registry_module
from paddleseg_ext.service.messages import Lease, Report
from paddleseg_ext.service.registry import LeaseRefused, Registry, RegistryAway, RegistryError, StoreOptions, password
from tests.service.redis_server import free_port, redis_server, until
from tests.service.tls import certificates, tls_in_front_of

LEASE = Lease("seg", "127.0.0.1:9292", "toy", "d1", "token", 1.0, {"samples/s": 3.0})


@pytest.fixture(scope="module")
def server():
    with redis_server() as server:
        yield server


@pytest.fixture
def registry(server):
    server.client().flushall()
    with closing(Registry(StoreOptions((server.endpoint,), lease=0.6))) as registry:
        yield registry


def endpoints(registry, service="seg"):
    return [lease.endpoint for lease in registry.visit(service).teachers]


def test_a_lease_says_what_is_served_and_keeps_its_token_to_itself(registry):
    registry.take(LEASE)
    (found,) = registry.visit("seg").teachers
    assert found == replace(LEASE, token="")
    assert registry.services() == ["seg"]


def test_a_lease_runs_out_unless_it_is_renewed(registry):
    registry.take(LEASE)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        registry.take(LEASE)
        assert endpoints(registry) == [LEASE.endpoint]
        time.sleep(0.1)
    until(lambda: not endpoints(registry), 3)
    assert registry.services() == []


def test_only_its_owner_renews_or_removes_a_lease(registry):
    registry.take(LEASE)
    thief = replace(LEASE, token="another")
    with pytest.raises(LeaseRefused, match="127.0.0.1:9292 is registered for 'seg' by another process"):
        registry.take(thief)
    assert not registry.drop(thief)
    assert endpoints(registry) == [LEASE.endpoint]
    assert registry.drop(LEASE)
    assert endpoints(registry) == []
    registry.take(thief)


def test_a_lease_that_nobody_could_read_is_refused(registry):
    with pytest.raises(LeaseRefused, match="127.0.0.1:9292 cannot be registered: 'model' is a text"):
        registry.take(replace(LEASE, model="x\n"))


def test_of_many_at_once_one_takes_the_lease(registry):
    barrier = threading.Barrier(8)

    def attempt(number):
        barrier.wait()
        try:
            registry.take(replace(LEASE, token=f"t{number}"))
        except LeaseRefused:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1


def test_one_service_has_one_model_at_a_time(registry):
    other = replace(LEASE, endpoint="127.0.0.1:9293", digest="d2", model="wrong", token="b")
    registry.take(LEASE)
    with pytest.raises(LeaseRefused, match=r"'seg' is served by 127.0.0.1:9292 with another model .* use another"):
        registry.take(other)
    registry.take(replace(other, service="other"))
    registry.drop(LEASE)
    registry.take(other)
    assert endpoints(registry) == ["127.0.0.1:9293"]


def test_reports_are_stored_and_those_that_leave_are_forgotten(registry):
    reports = [Report("seg", "a", 2, "d1", ("127.0.0.1:9292",), {"127.0.0.1:9292": 4.5}), Report("seg", "b")]
    assert registry.visit("seg", reports).students == tuple(reports)
    assert registry.visit("seg", left=["b"]).students == tuple(reports[:1])
    until(lambda: not registry.visit("seg").students, 3)


def test_shares_change_only_from_what_was_expected(registry):
    assert registry.share("seg", "", "one")
    assert not registry.share("seg", "", "two")
    assert registry.visit("seg").shares == "one"
    assert registry.share("seg", "one", "two")


def test_prefixes_keep_users_of_one_redis_apart(registry, server):
    registry.take(LEASE)
    with closing(Registry(StoreOptions((server.endpoint,), prefix="team:b"))) as other:
        assert other.services() == [] and endpoints(other) == []
        other.take(replace(LEASE, token="b", digest="d2"))
        assert {key.split(b":")[0] for key in server.client().scan_iter()} == {b"paddleseg_ext", b"team"}


def test_what_others_wrote_below_the_prefix_is_passed_over(registry, server):
    registry.take(LEASE)
    client = server.client()
    client.sadd("paddleseg_ext:leases:seg", "x:1", b"\xff")
    client.hset("paddleseg_ext:lease:seg:x:1", "content", b'{"endpoint": "rm -rf"}')
    client.sadd("paddleseg_ext:reports:seg", "s")
    client.set("paddleseg_ext:report:seg:s", b"\xff[[")
    client.set("paddleseg_ext:shares:seg", b"\xff{")
    view = registry.visit("seg")
    assert [lease.endpoint for lease in view.teachers] == [LEASE.endpoint] and view.students == ()


def test_redis_may_be_restarted_or_hang(server, registry):
    registry.take(LEASE)
    server.kill()
    with pytest.raises(RegistryAway, match=f"no use of Redis at {server.endpoint}"):
        registry.take(LEASE)
    server.start()
    registry.take(LEASE)
    server.signal(signal.SIGSTOP)
    started = time.monotonic()
    try:
        with pytest.raises(RegistryAway, match="Timeout"):
            registry.take(LEASE)
    finally:
        server.signal(signal.SIGCONT)
    assert time.monotonic() - started < 4
    registry.take(LEASE)


def test_the_next_endpoint_is_used_when_one_is_away(server):
    options = StoreOptions((f"127.0.0.1:{free_port()}", server.endpoint))
    with closing(Registry(options)) as registry:
        registry.take(replace(LEASE, service="second"))
        assert endpoints(registry, "second") == [LEASE.endpoint]
        assert registry._current == 1, "the one that works is asked first from then on"


def test_all_come_back_to_the_first_endpoint_when_it_is_back(server, monkeypatch):
    monkeypatch.setattr(registry_module, "_AGAIN", 0.2)
    with redis_server() as first, closing(Registry(StoreOptions((first.endpoint, server.endpoint)))) as registry:
        lease = replace(LEASE, service="order")
        registry.take(lease)
        first.kill()
        registry.take(lease)
        first.start()
        until(lambda: registry.take(lease) or first.client().exists("paddleseg_ext:services"), 3)


def test_a_password_is_needed_and_never_shown(tmp_path, monkeypatch):
    monkeypatch.delenv(registry_module.PASSWORD_VARIABLE, raising=False)
    (tmp_path / "secret").write_text("s3cret\n")
    with redis_server("--requirepass", "s3cret") as server:
        for wrong in ("", "wr0ng"):
            with closing(Registry(StoreOptions((server.endpoint,), wrong))) as registry:
                with pytest.raises(RegistryError, match="password is refused or missing.*--redis_password") as caught:
                    registry.ping()
                assert not isinstance(caught.value, RegistryAway)
                assert "s3cret" not in str(caught.value) and "wr0ng" not in str(caught.value)
        monkeypatch.setenv(registry_module.PASSWORD_VARIABLE, "s3cret")
        assert password("given", tmp_path / "secret") == "given"
        for right in (password(None, tmp_path / "secret"), password(None, None)):
            with closing(Registry(StoreOptions((server.endpoint,), right))) as registry:
                registry.ping()
        urls = (f"redis://:s3cret@{server.endpoint}/2", f"redis://{server.endpoint}?password=s3cret")
        registries = [Registry(StoreOptions((url,))) for url in urls]
        for registry in registries:
            registry.ping()
        server.kill()
        for registry in registries:
            with pytest.raises(RegistryAway) as caught:
                registry.ping()
            assert "s3cret" not in str(caught.value) and server.endpoint in str(caught.value)
            registry.close()


def test_redis_over_tls(server, tmp_path):
    ca, cert, key = certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with tls_in_front_of(server.port, context) as port:
        with closing(Registry(StoreOptions((f"rediss://localhost:{port}?ssl_ca_certs={ca}",)))) as registry:
            registry.take(replace(LEASE, service="tls"))
            assert endpoints(registry, "tls") == [LEASE.endpoint]
        distrustful = Registry(StoreOptions((f"rediss://localhost:{port}",)))
        with closing(distrustful), pytest.raises(RegistryError, match="certificate"):
            distrustful.ping()


@pytest.mark.parametrize(
    "endpoint",
    ["", "nowhere", "host:port", "host:99999", "http://host:1", "redis://", "redis://h:1?nonsense=1", "h:1/x"],
)
def test_an_endpoint_that_cannot_be_is_refused_at_once(endpoint):
    with pytest.raises(ConfigError, match="--db_endpoints"):
        Registry(StoreOptions((endpoint,)))


def test_options_that_cannot_be_are_refused_at_once():
    with pytest.raises(ConfigError, match="--key_prefix"):
        Registry(StoreOptions(("h:1",), prefix="a b"))
    with pytest.raises(ConfigError, match="--lease"):
        Registry(StoreOptions(("h:1",), lease=0))
    with pytest.raises(ConfigError, match="--db_endpoints"):
        Registry(StoreOptions(()))
