"""The reader's older configuration file of three parts: conf, feed and fetch."""

import ast
import configparser
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddleseg_ext.errors import ConfigError, closest
from paddleseg_ext.service import addresses

_KEYS = {
    "conf": ("mode", "servers", "host", "port", "service_name", "require_num", "serving_conf_file"),
    "feed": ("feed_vars", "feed_types", "feed_shapes", "predict_feed_ids"),
    "fetch": ("fetch_vars", "fetch_types", "fetch_shapes"),
}
_MODES = {"fixed": ("servers",), "discover": ("host", "port", "service_name", "require_num")}


@dataclass(frozen=True)
class Variable:
    """What a sample or an answer has of one name. shape: of one sample; -1 where it may change."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ReaderConf:
    """A file, checked.

    servers: the teachers of mode `fixed`; empty in mode `discover`, which has `discovery` (`host:port`), `service_name` and
    `require_num`. feeds: what a sample has. sent: which of them teachers get. fetches: what teachers give. serving_conf_file:
    may be empty.
    """

    path: str
    servers: tuple[str, ...]
    discovery: str
    service_name: str
    require_num: int
    serving_conf_file: str
    feeds: tuple[Variable, ...]
    sent: tuple[int, ...]
    fetches: tuple[Variable, ...]


def read_conf(path: str) -> ReaderConf:
    """Read and check a file; lists, tuples and numbers in it are literals of Python.

    Raises:
        ConfigError: names the file and the line.
    """
    file = _File(path)
    mode = file.text("conf", "mode")
    if mode not in _MODES:
        raise file.error("conf", "mode", f"'fixed' or 'discover' is expected, but got {mode!r}")
    discovers = mode == "discover"
    servers: tuple[str, ...] = ()
    discovery = service = ""
    number = 0
    if discovers:
        host, port = file.text("conf", "host"), file.number("conf", "port")
        discovery, service = f"{host}:{port}", file.text("conf", "service_name")
        number = file.number("conf", "require_num")
        if not addresses.is_endpoint(discovery):
            raise file.error("conf", "host", f"host and port make no address: {discovery!r}")
        if not addresses.is_name(service):
            raise file.error(
                "conf", "service_name", f"letters, digits, '.', '_' and '-' are expected, but got {service!r}"
            )
    else:
        servers = tuple(file.strings("conf", "servers"))
        wrong = [server for server in servers if not addresses.is_endpoint(server)]
        if wrong:
            raise file.error("conf", "servers", f"a list of 'ip:port' is expected, but got {wrong[0]!r}")
    feeds = file.variables("feed", "feed")
    sent = file.literal("feed", "predict_feed_ids")
    if not (_is_list(sent, int) and sent and len(set(sent)) == len(sent) and all(0 <= i < len(feeds) for i in sent)):
        raise file.error(
            *("feed", "predict_feed_ids"),
            f"a list of different numbers from 0 to {len(feeds) - 1} is expected, but got {sent!r}",
        )
    fetches = file.variables("fetch", "fetch")
    serving = file.text("conf", "serving_conf_file") if file.has("conf", "serving_conf_file") else ""
    return ReaderConf(path, servers, discovery, service, number, serving, feeds, tuple(sent), fetches)


class _File:
    """A file's values, and where each of them stands."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            content = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: no text in UTF-8 ({error.reason} at byte {error.start})") from None
        self._lines = _lines(content)
        self._parser = configparser.ConfigParser(interpolation=None)
        try:
            self._parser.read_string(content)
        except configparser.MissingSectionHeaderError as error:
            raise ConfigError(f"{path}, line {error.lineno}: a section such as [conf] is expected first") from None
        except (configparser.DuplicateOptionError, configparser.DuplicateSectionError) as error:
            what = getattr(error, "option", None) or f"[{error.section}]"
            raise ConfigError(f"{path}, line {error.lineno}: '{what}' is there twice") from None
        except configparser.ParsingError as error:
            number, line = error.errors[0]
            raise ConfigError(f"{path}, line {number}: 'key = value' is expected, but got {_short(line)}") from None
        self._check_names()

    def error(self, section: str, key: str, text: str) -> ConfigError:
        """An error at the line of a key."""
        return ConfigError(f"{self.path}, line {self._lines.get((section, key), 1)}: {section}.{key}: {text}")

    def has(self, section: str, key: str) -> bool:
        """Whether a key has a value."""
        return bool(self._parser.get(section, key, fallback=""))

    def text(self, section: str, key: str) -> str:
        """A value as it is written, without quotation marks."""
        if not self.has(section, key):
            line = self._lines.get((section, key), self._lines.get((section, ""), 1))
            raise ConfigError(f"{self.path}, line {line}: [{section}] has no '{key}'")
        value = self._parser.get(section, key).strip()
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        return value[1:-1] if quoted else value

    def literal(self, section: str, key: str) -> Any:
        """A value as a literal of Python."""
        value = self.text(section, key)
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise self.error(
                section, key, f"a list or a number as Python writes it is expected, but got {_short(value)}"
            ) from None

    def number(self, section: str, key: str) -> int:
        """A whole number of at least 1."""
        value = self.literal(section, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(section, key, f"a whole number of at least 1 is expected, but got {_short(value)}")
        return value

    def strings(self, section: str, key: str) -> list[str]:
        """A list of different texts, at least one."""
        value = self.literal(section, key)
        if not _is_list(value, str) or not value or len(set(value)) != len(value):
            raise self.error(section, key, f"a list of different names is expected, but got {_short(value)}")
        return list(value)

    def variables(self, section: str, prefix: str) -> tuple[Variable, ...]:
        """The three lists of a section as one."""
        names = self.strings(section, f"{prefix}_vars")
        types, shapes = (self.literal(section, f"{prefix}_{what}") for what in ("types", "shapes"))
        for what, value in (("types", types), ("shapes", shapes)):
            if not isinstance(value, list | tuple) or len(value) != len(names):
                raise self.error(
                    section,
                    f"{prefix}_{what}",
                    f"a list of {len(names)}, one for each variable, is expected, but got {_short(value)}",
                )
        return tuple(
            Variable(
                name, self._dtype(section, f"{prefix}_types", kind), self._shape(section, f"{prefix}_shapes", shape)
            )
            for name, kind, shape in zip(names, types, shapes, strict=True)
        )

    def _dtype(self, section: str, key: str, kind: Any) -> np.dtype:
        try:
            dtype = np.dtype(kind) if isinstance(kind, str) else None
        except TypeError:
            dtype = None
        if dtype is None or dtype.kind not in "biuf":
            raise self.error(section, key, f"a type such as 'float32' or 'int64' is expected, but got {_short(kind)}")
        return dtype

    def _shape(self, section: str, key: str, shape: Any) -> tuple[int, ...]:
        if not _is_list(shape, int) or any(size < 1 and size != -1 for size in shape):
            hint = "; a shape of one number has a comma: (10,)" if isinstance(shape, int) else ""
            raise self.error(section, key, f"a tuple of sizes is expected, but got {_short(shape)}{hint}")
        return tuple(shape)

    def _check_names(self) -> None:
        for section in _KEYS:
            if not self._parser.has_section(section):
                raise ConfigError(f"{self.path}: no section [{section}]{closest(section, self._parser.sections())}")
        for section in self._parser.sections():
            if section not in _KEYS:
                line = self._lines.get((section, ""), 1)
                raise ConfigError(f"{self.path}, line {line}: unknown section [{section}]{closest(section, _KEYS)}")
            for key in self._parser.options(section):
                if key not in _KEYS[section]:
                    raise self.error(section, key, f"unknown{closest(key, _KEYS[section])}")


def _lines(content: str) -> dict[tuple[str, str], int]:
    """The line of each key, and of each section (key "")."""
    found, section = dict[tuple[str, str], int](), ""
    for number, line in enumerate(content.splitlines(), 1):
        if head := re.match(r"\[([^\]]+)\]", line):
            section = head[1]
            found[section, ""] = number
        elif key := re.match(r"([^\s#;=:][^=:]*?)\s*[=:]", line):
            found[section, key[1].lower()] = number
    return found


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(x, kind) and not isinstance(x, bool) for x in value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
