"""`serve --register`: a server that registers itself, as another program would register it."""

import asyncio
import time
from contextlib import closing

import numpy as np
import pytest

from paddleseg_ext.cli import args as flags
from paddleseg_ext.cli.registration import add_registration, registration
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.service.client import ClientOptions, connector
from paddleseg_ext.service.liveness import NetworkTeacher, NotServing, OwnTeacher
from paddleseg_ext.service.registry import Registry, RegistryAway, StoreOptions
from paddleseg_ext.service.server import ServerOptions, running
from paddleseg_ext.service.spec import ModelSpec, TensorSpec
from paddleseg_ext.service.transport import TeacherUnavailable
from tests.service.redis_server import free_port, redis_server

SPEC = ModelSpec(
    "double", "1", (TensorSpec("x", "FP32", (-1, 2), "img"),), (TensorSpec("y", "FP32", (-1, 2), "prediction"),)
)


def twice(inputs):
    return [2 * np.asarray(inputs[0])]


def parsed(*words):
    parser = flags.parser("test")
    parser.add_argument("--host", default="127.0.0.1")
    add_registration(parser)
    return parser.parse_args(list(words))


async def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


def test_it_is_registered_while_it_takes_requests_and_like_any_other(tmp_path):
    with redis_server() as redis, closing(Registry(StoreOptions((redis.endpoint,)))) as registry:
        registered = registration(parsed("--register", "--db_endpoints", redis.endpoint))

        def leases(service="double"):
            return registry.visit(service).teachers

        async def serve():
            async with running(SPEC, [twice], ServerOptions(port=0)) as server:
                async with registered(server):
                    await until(leases)
                    (lease,) = leases()
                    with NetworkTeacher(server.endpoint, connector(ClientOptions())) as teacher:
                        described = await asyncio.to_thread(teacher.describe, 5)
                assert leases() == (), "off the list while what was accepted is finished"
                return lease, described, server.endpoint

        lease, described, endpoint = asyncio.run(serve())
        assert (lease.endpoint, lease.model) == (endpoint, "double")
        assert lease.digest == described.digest(), "both ways to register say the same of a model"

        elsewhere = parsed(
            *("--register", "--db_endpoints", redis.endpoint, "--host", "0.0.0.0"),
            *("--advertise", "teacher-1:9292", "--service_name", "seg"),
        )

        async def advertise():
            async with running(SPEC, [twice], ServerOptions(port=0)) as server, registration(elsewhere)(server):
                await until(lambda: leases("seg"))
                return leases("seg")[0].endpoint

        assert asyncio.run(advertise()) == "teacher-1:9292"


def test_without_the_flag_nothing_happens():
    async def serve():
        async with registration(parsed())(None):
            return True

    assert asyncio.run(serve())


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "--register needs --db_endpoints"),
        (["--db_endpoints", "h:1", "--host", "0.0.0.0"], "nobody reaches 0.0.0.0; .*--advertise T:P"),
        (["--db_endpoints", "h:1", "--advertise", "h"], "--advertise: host:port is expected"),
        (["--db_endpoints", "h:1", "--service_name", "a b"], "--service_name: letters"),
    ],
)
def test_flags_that_cannot_be_are_refused_at_the_start(words, reason):
    with pytest.raises(ConfigError, match=reason):
        registration(parsed("--register", *words))


def test_redis_away_is_said_at_the_start():
    with pytest.raises(RegistryAway, match="no use of Redis"):
        registration(parsed("--register", "--db_endpoints", f"127.0.0.1:{free_port()}"))


def test_a_server_whose_loop_or_model_hangs_is_not_well():
    async def hang():
        teacher = OwnTeacher(SPEC, asyncio.get_running_loop())
        assert await asyncio.to_thread(teacher.describe, 5) == SPEC
        asked = asyncio.get_running_loop().run_in_executor(None, teacher.describe, 0.1)
        time.sleep(0.4)  # in the loop's own thread
        with pytest.raises(TeacherUnavailable, match="double: the server's loop does not run"):
            await asked
        teacher = OwnTeacher(SPEC, asyncio.get_running_loop(), lambda: "it hangs")
        with pytest.raises(NotServing, match="double: it hangs"):
            await asyncio.to_thread(teacher.describe, 5)

    asyncio.run(hang())
