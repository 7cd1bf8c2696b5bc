"""TLS and tokens: who may not talk does not, and files that are wrong are named."""

import subprocess

import grpc
import numpy as np
import pytest
import tritonclient.grpc as stock
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.service.client import ClientOptions, connector
from paddleseg_ext.service.security import Security
from paddleseg_ext.service.transport import TeacherUnavailable, TeacherWrong
from tests.service.servers import served, toy
from tests.service.test_client import IMAGES, ask


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """A folder with two authorities, and certificates that the first signed for a server and a student."""
    folder = tmp_path_factory.mktemp("pki")

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=60)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for name in ("ca", "other"):
        openssl("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("server", "student"):
        openssl("req", *key[:-2], "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "san", "-days", "2")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    (folder / "no.pem").write_text("nothing")
    return folder


def pair(pki, name):
    return {"tls_cert": pki / f"{name}.pem", "tls_key": pki / f"{name}.key"}


def test_over_tls_a_student_finds_the_server_that_it_trusts_and_no_other(pki):
    with served(security=Security(**pair(pki, "server"))) as server:
        given = ask(
            server.endpoint, {"x": IMAGES}, ["label"], options=ClientOptions(security=Security(tls_ca=pki / "ca.pem"))
        )
        np.testing.assert_array_equal(given["label"], toy([IMAGES])[1])
        for security in (Security(tls_ca=pki / "other.pem"), Security()):
            with pytest.raises(TeacherUnavailable):
                ask(server.endpoint, {"x": IMAGES}, ["label"], 5.0, ClientOptions(security=security))


def test_a_server_with_an_authority_asks_students_for_certificates(pki):
    with served(security=Security(**pair(pki, "server"), tls_ca=pki / "ca.pem")) as server:
        known = Security(**pair(pki, "student"), tls_ca=pki / "ca.pem")
        ask(server.endpoint, {"x": IMAGES}, ["label"], options=ClientOptions(security=known))
        with pytest.raises(TeacherUnavailable):
            ask(server.endpoint, {"x": IMAGES}, ["label"], 5.0, ClientOptions(security=Security(tls_ca=pki / "ca.pem")))


def test_without_the_token_nothing_but_health_is_answered():
    with served(security=Security(token="open sesame")) as server:
        ask(server.endpoint, {"x": IMAGES}, ["label"], options=ClientOptions(security=Security(token="open sesame")))
        for token in ("", "open", "open sesame2"):
            with pytest.raises(TeacherWrong, match="UNAUTHENTICATED: the token is missing or wrong"):
                ask(
                    server.endpoint,
                    {"x": IMAGES},
                    ["label"],
                    options=ClientOptions("toy", security=Security(token=token)),
                )
        with stock.InferenceServerClient(server.endpoint) as client:
            assert client.is_server_live(headers={"authorization": "Bearer open sesame"})
            with pytest.raises(InferenceServerException, match="token"):
                client.is_server_live()
        with grpc.insecure_channel(server.endpoint) as channel:
            said = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert said.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tls_cert": "server.pem"}, "--tls_cert needs --tls_key too"),
        ({"tls_key": "server.key"}, "--tls_key needs --tls_cert too"),
        (
            {"tls_cert": "no.pem", "tls_key": "server.key"},
            "no.pem, --tls_key .*server.key: no PEM certificate with its",
        ),
        (
            {"tls_cert": "server.pem", "tls_key": "student.key"},
            r"no PEM certificate with its unencrypted key \(KEY_VALUES",
        ),
        ({"tls_cert": "nowhere", "tls_key": "server.key"}, "--tls_cert .*nowhere: No such file or directory"),
        (
            {"tls_cert": "server.pem", "tls_key": "server.key", "tls_ca": "no.pem"},
            "--tls_ca .*no.pem: no PEM certificates",
        ),
    ],
)
def test_files_that_are_wrong_are_named(pki, files, message):
    security = Security(**{flag: pki / name for flag, name in files.items()})
    with pytest.raises(ConfigError, match=message):
        security.server_credentials()
    with pytest.raises(ConfigError, match=message):
        connector(ClientOptions(security=security))


def test_an_authority_alone_does_not_protect_a_server(pki):
    with pytest.raises(ConfigError, match="--tls_ca: a server needs --tls_cert and --tls_key too"):
        Security(tls_ca=pki / "ca.pem").server_credentials()


def test_a_token_is_one_line(tmp_path):
    path = tmp_path / "token"
    path.write_text("abc\n")
    assert Security.of(None, None, None, path).token == "abc"
    for text in ("", "\n", "a b", "ä"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="token: one line of visible ASCII characters is expected"):
            Security.of(None, None, None, path)
    with pytest.raises(ConfigError, match="--token_file .*nowhere: No such file"):
        Security.of(None, None, None, tmp_path / "nowhere")
