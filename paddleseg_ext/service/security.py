"""TLS files and tokens, read and checked once at start."""

import hmac
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from paddleseg_ext.errors import ConfigError

HEADER = "authorization"


@dataclass(frozen=True)
class Security:
    """How a connection is protected; nothing given: neither encrypted nor authorised.

    tls_cert, tls_key: PEM files with the own certificate and its key; a server needs them, a client where the server asks
    for one. tls_ca: a PEM file with whom to trust; a server with it takes only clients whose certificate it signed. token:
    a secret that comes with every call.
    """

    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    token: str = ""

    def server_credentials(self) -> grpc.ServerCredentials | None:
        """Of a server, None for plain connections. Raises ConfigError."""
        if self.tls_cert is None and self.tls_key is None:
            if self.tls_ca is not None:
                raise ConfigError("--tls_ca: a server needs --tls_cert and --tls_key too")
            return None
        pair = self._pair()
        assert pair is not None
        ca = _certificates(self.tls_ca) if self.tls_ca else None
        return grpc.ssl_server_credentials([pair], ca, require_client_auth=ca is not None)

    def channel_credentials(self, always: bool = False) -> grpc.ChannelCredentials | None:
        """Of a client, None for plain connections, which it has without any TLS file. Raises ConfigError."""
        if self.tls_ca is None and self.tls_cert is None and self.tls_key is None and not always:
            return None
        key, cert = self._pair() or (None, None)
        return grpc.ssl_channel_credentials(_certificates(self.tls_ca) if self.tls_ca else None, key, cert)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a client sends with every call."""
        return ((HEADER, f"Bearer {self.token}"),) if self.token else ()

    def admits(self, metadata: Sequence[tuple[str, str | bytes]]) -> bool:
        """Whether a call with this metadata has the token; in a time that does not depend on it."""
        given = next((value for key, value in metadata if key == HEADER), "")
        given = given.encode() if isinstance(given, str) else given
        return not self.token or hmac.compare_digest(given, f"Bearer {self.token}".encode())

    def _pair(self) -> tuple[bytes, bytes] | None:
        """Key and certificate, proved to belong together."""
        if self.tls_cert is None and self.tls_key is None:
            return None
        if self.tls_cert is None or self.tls_key is None:
            missing, given = ("cert", "key") if self.tls_cert is None else ("key", "cert")
            raise ConfigError(f"--tls_{given} needs --tls_{missing} too")
        key, cert = _read("--tls_key", self.tls_key), _read("--tls_cert", self.tls_cert)
        try:
            # A password makes an encrypted key fail here, where it would ask on the terminal.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.tls_cert, self.tls_key, password=lambda: "")
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise ConfigError(
                f"--tls_cert {self.tls_cert}, --tls_key {self.tls_key}: no PEM certificate with its unencrypted key ({reason})"
            ) from None
        return key, cert


def read_token(path: Path) -> str:
    """The secret of a `--token_file`: its only line. Raises ConfigError."""
    try:
        token = _read("--token_file", path).decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    if not token or len(token.split()) != 1:
        raise ConfigError(f"--token_file {path}: one line of visible ASCII characters is expected")
    return token


def _read(flag: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}") from None


def _certificates(path: Path) -> bytes:
    content = _read("--tls_ca", path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        raise ConfigError(f"--tls_ca {path}: no PEM certificates ({error.reason or error})") from None
    return content
