"""Certificates for tests, and TLS in front of a plain server."""

import contextlib
import socket
import ssl
import subprocess
import threading


def certificates(folder):
    """Paths of a CA, and of a certificate for localhost that it signed with its key."""
    ca, ca_key, cert, key = (folder / name for name in ("ca.pem", "ca.key", "cert.pem", "cert.key"))
    new = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    _run(*new, "-subj", "/CN=test CA", "-keyout", ca_key, "-out", ca)
    signed = ["-CA", ca, "-CAkey", ca_key, "-addext", "basicConstraints=critical,CA:FALSE"]
    _run(*new, *signed, "-subj", "/CN=localhost", *names, "-keyout", key, "-out", cert)
    return ca, cert, key


def _run(*words):
    subprocess.run(list(map(str, words)), check=True, capture_output=True, timeout=30)


@contextlib.contextmanager
def tls_in_front_of(port, context):
    """A port that speaks TLS and passes all on to a port that does not."""
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                outer, _ = listener.accept()
                try:
                    outer = context.wrap_socket(outer, server_side=True)
                except (ssl.SSLError, OSError):
                    outer.close()
                    continue
                inner = socket.create_connection(("127.0.0.1", port))
                for pair in ((outer, inner), (inner, outer)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
