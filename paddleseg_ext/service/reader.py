"""A reader whose samples come with what teachers say of them, for any training loop."""

import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.service import addresses
from paddleseg_ext.service.conf import ReaderConf, read_conf
from paddleseg_ext.service.endpoints import FixedEndpoints, OpenSource, Rates, discovery
from paddleseg_ext.service.pipeline import Options, Pipeline
from paddleseg_ext.service.prototxt import read_prototxt
from paddleseg_ext.service.samples import Batch, Layout, Take, from_batches, from_lists, from_samples, layout, rows
from paddleseg_ext.service.security import Security
from paddleseg_ext.service.spec import ModelSpec
from paddleseg_ext.service.transport import Connect

_SERVERS, _SERVICE, _NUMBER = (f"PADDLE_DISTILL_{name}" for name in ("BALANCE_SERVER", "SERVICE_NAME", "MAX_TEACHER"))
_REQUEST = 32  # samples of a request where a reader gives single samples and nothing is said
_BEGIN = 10.0  # seconds that fixed teachers may take to be there

Reader = Callable[[], Iterable[Any]]


@dataclass(frozen=True)
class ReaderSettings:
    """What is rarely set.

    teacher_timeout: seconds without any answer after which a NoTeacherError ends the epoch. ordered: in the reader's order, or as
    answers come. model: which of a server's models; "": its only one. security: TLS files and token for teachers and balance
    servers. connect: how teachers are reached; default: over gRPC.
    """

    teacher_timeout: float = 300.0
    ordered: bool = True
    model: str = ""
    security: Security = field(default_factory=Security)
    connect: Connect | None = None


class DistillReader:
    """Wraps a reader, a function that returns an iterable, so that what teachers say is appended to what it gives.

    Samples come once each, in the reader's order and with their own predictions, whatever teachers do; arrays are the caller's
    own. Everything stops at the end of an epoch, on `break`, an error, `close()` or the end of the process.

    Teachers are those of `set_fixed_teacher` or `set_dynamic_teacher`, or those that the environment names:
    PADDLE_DISTILL_BALANCE_SERVER, PADDLE_DISTILL_SERVICE_NAME and, if wanted, PADDLE_DISTILL_MAX_TEACHER.

    Args:
        ins: the name of each slot of a sample. Those that are inputs of the teachers' model, by name or alias, are sent; others
            only pass, and may be None. Or the path of a configuration file (see `read_conf`), for the older form.
        predicts: the outputs that are wanted, by name or alias. In the older form: batch_size, the samples of a batch.
        d_batch_size: how many samples go to a teacher at a time, at most; default: a whole batch, 32 of single samples.
        capacity: batches that are held, from being read until the caller is done with them.
        occupied_capacity: how many of those the caller keeps at a time.
        conf_file, batch_size: of the older form, by name.
        settings: default ReaderSettings().

    Raises:
        ConfigError: a file, a name or a number that cannot be used.
    """

    def __init__(
        self,
        ins: Sequence[str | None] | str = (),
        predicts: Sequence[str] | int = (),
        d_batch_size: int | None = None,
        capacity: int = 16,
        occupied_capacity: int = 0,
        *,
        conf_file: str | None = None,
        batch_size: int | None = None,
        settings: ReaderSettings | None = None,
    ) -> None:
        self.settings = settings or ReaderSettings()
        self._rows = None if d_batch_size is None else _positive("d_batch_size", d_batch_size)
        if not 0 <= occupied_capacity < _positive("capacity", capacity):
            raise ConfigError(f"occupied_capacity: 0 to capacity - 1 = {capacity - 1}, but got {occupied_capacity!r}")
        self._capacity = capacity - occupied_capacity
        self._open_source: OpenSource | None = None
        self._begin = self.settings.teacher_timeout
        self._conf: ReaderConf | None = None
        self._reader: Reader | None = None
        self._take: Take = from_lists()
        self._one_by_one = False
        self._batch_size: int | None = None  # as it comes
        self._spec: ModelSpec | None = None  # of the first epoch, which later ones must have too
        self._names: dict[str, str] = {}
        self._epochs: weakref.WeakSet[Pipeline] = weakref.WeakSet()
        file = ins if isinstance(ins, str) else conf_file
        if file is not None:
            self._batch_size = _positive("batch_size", predicts if isinstance(predicts, int) else batch_size)
            self._use(read_conf(file))
            return
        if isinstance(predicts, int | str) or not any(ins) or not predicts or batch_size is not None:
            raise ConfigError(
                "DistillReader: ins and predicts are lists of names (or a conf_file comes with a batch_size), "
                f"but got {ins!r} and {predicts!r}"
            )
        self._ins, self._predicts = tuple(ins), tuple(predicts)

    def set_fixed_teacher(self, teachers: str | Sequence[str]) -> None:
        """Teachers by address, `host:port[,host:port...]` or a list. Raises ConfigError."""
        listed = addresses.endpoints("set_fixed_teacher", teachers)
        self._open_source = lambda _: FixedEndpoints(listed)
        self._begin = min(_BEGIN, self.settings.teacher_timeout)

    def set_dynamic_teacher(
        self, discovery_servers: str | Sequence[str], teacher_service_name: str, require_max_teacher: int = 4
    ) -> None:
        """Teachers that balance servers give for the name of a service, at most so many at a time. Raises ConfigError."""
        servers = addresses.endpoints("set_dynamic_teacher", discovery_servers)
        service = addresses.service_name("set_dynamic_teacher", teacher_service_name)
        self._open_source = discovery(servers, service, require_max_teacher, self.settings.security)
        self._begin = self.settings.teacher_timeout

    def set_teacher_batch_size(self, teacher_batch_size: int) -> None:
        """How many samples go to a teacher at a time, at most."""
        self._rows = _positive("teacher_batch_size", teacher_batch_size)

    def set_serving_conf_file(self, conf_file: str) -> None:
        """A `serving_client_conf.prototxt` of Paddle Serving, for names that the teachers do not know. Raises ConfigError."""
        inputs, outputs = read_prototxt(Path(conf_file))
        self._names = {tensor.alias: tensor.name for tensor in (*inputs, *outputs)}

    def set_sample_generator(self, reader: Reader) -> "DistillReader":
        """Wrap a reader of samples, `(img, label)`. It then gives samples, `(img, label, prediction)`."""

        def take(samples: Iterable[Any], form: Layout) -> Iterator[Batch]:
            return from_samples(self._batch_size or form.rows or _REQUEST)(samples, form)

        return self._wrap(reader, take, one_by_one=self._batch_size is None)

    def set_sample_list_generator(self, reader: Reader) -> "DistillReader":
        """Wrap a reader of lists of samples. It then gives batches, a tuple of arrays `(img, label, prediction)`:
        the same lists, or in the older form batches of batch_size.

        For loops that take lists of samples, there is `sample_lists`.
        """
        return self._wrap(reader, from_lists(self._batch_size))

    def set_batch_generator(self, reader: Reader) -> "DistillReader":
        """Wrap a reader of batches, a tuple of arrays `(img, label)`. It then gives `(img, label, prediction)`."""
        return self._wrap(reader, from_batches(self._batch_size))

    def distill_reader(self) -> "DistillReader":
        """The wrapped reader: a function that starts an epoch."""
        return self

    def __call__(self) -> Iterator[tuple[Any, ...]]:
        """An epoch.

        Raises:
            ConfigError: no reader, no teacher, or one that does not fit.
            DataError: a sample that does not fit.
            NoTeacherError: no answer for too long.
            Exception: what the reader raised.
        """
        for batch in self._batches():
            if self._one_by_one:
                yield from rows(batch)
            else:
                yield batch

    def sample_lists(self) -> Iterator[list[tuple[Any, ...]]]:
        """An epoch as lists of samples, `[(img, label, prediction), ...]`."""
        for batch in self._batches():
            yield list(rows(batch))

    def close(self) -> None:
        """Stop all epochs that have not ended."""
        for pipeline in list(self._epochs):
            pipeline.close()

    def _batches(self) -> Iterator[Batch]:
        if self._reader is None:
            raise ConfigError("DistillReader: no reader; call set_sample_list_generator or one of its like first")
        self._teachers_of_environment()
        with self._open() as pipeline:
            self._spec = pipeline.spec()
            form = self._layout(self._spec)
            tasks = (form.task(batch) for batch in self._take(self._reader(), form))
            for batch, answers in pipeline.run(tasks, form.outputs):
                yield form.with_answers(batch, answers)
                del batch, answers  # they are the caller's now

    def _open(self) -> Pipeline:
        assert self._open_source is not None
        settings, rates = self.settings, Rates()
        # Whether addresses are right at all shows at the first start; later, teachers may be away for longer.
        begin = self._begin if self._spec is None else None
        options = Options(
            *(self._capacity, settings.ordered, settings.teacher_timeout, self._spec, begin, rates),
            usable=self._layout,
        )
        pipeline = Pipeline(self._open_source(rates), self._connect(), options)
        self._epochs.add(pipeline)
        return pipeline

    def _connect(self) -> Connect:
        if self.settings.connect is not None:
            return self.settings.connect
        from paddleseg_ext.service.client import ClientOptions, connector

        return connector(ClientOptions(self.settings.model, security=self.settings.security))

    def _layout(self, spec: ModelSpec) -> Layout:
        if self._conf is None:
            return layout(self._ins, self._predicts, spec, self._rows, others=self._names)
        variables = (*self._conf.feeds, *self._conf.fetches)
        return layout(self._ins, self._predicts, spec, self._rows, variables, self._conf.sent, self._names)

    def _use(self, conf: ReaderConf) -> None:
        self._conf = conf
        self._ins = tuple(variable.name for variable in conf.feeds)
        self._predicts = tuple(variable.name for variable in conf.fetches)
        if Path(conf.serving_conf_file).is_file():  # teachers know their names themselves, so that it may be missing
            self.set_serving_conf_file(conf.serving_conf_file)
        if conf.servers:
            self.set_fixed_teacher(conf.servers)
        else:
            self.set_dynamic_teacher(conf.discovery, conf.service_name, conf.require_num)

    def _wrap(self, reader: Reader, take: Take, one_by_one: bool = False) -> "DistillReader":
        if not callable(reader):
            raise ConfigError(f"DistillReader: a function that returns an iterable is expected, but got {reader!r:.80}")
        self._reader, self._take, self._one_by_one = reader, take, one_by_one
        return self

    def _teachers_of_environment(self) -> None:
        """What is set in code comes first."""
        if self._open_source is not None:
            return
        servers, service = os.environ.get(_SERVERS), os.environ.get(_SERVICE)
        if not servers or not service:
            raise ConfigError(
                "DistillReader: no teacher; call set_fixed_teacher or set_dynamic_teacher "
                f"(the environment has no {_SERVERS} with {_SERVICE} either)"
            )
        number = os.environ.get(_NUMBER, "4")
        if not number.isdecimal():
            raise ConfigError(f"{_NUMBER}: a number of teachers is expected, but got {number!r}")
        self.set_dynamic_teacher(servers, service, int(number))


def _positive(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name}: a whole number of at least 1 is expected, but got {value!r}")
    return value
