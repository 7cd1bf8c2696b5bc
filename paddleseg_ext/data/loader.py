"""From data sets to batches on the device, with augmentation that depends on seed, epoch and sample alone."""

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import paddle
from paddle.io import DataLoader, Dataset

from paddleseg_ext.data.geometry import KEY as GEOMETRY
from paddleseg_ext.data.sampler import ResumableSampler, SampleKey
from paddleseg_ext.errors import DataError, UserError
from paddleseg_ext.types import Batch

Sample = dict[str, Any]
_LOOK = 1.0  # seconds between two looks of a worker whether its parent is there

Ahead = Callable[[Iterator[Sample], Callable[[], bool]], Iterator[Sample]]
"""Collated arrays in, the same with more arrays out; it may read ahead. Where it waits, it looks whether it is to stop."""


class SeededDataset(Dataset):
    """A data set whose random transforms are drawn anew from (seed, epoch, index): not from workers, order or timing."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        super().__init__()
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> Sample:
        epoch, index = key
        with _seeded(self.seed, epoch, index):
            try:
                return {**self.dataset[index], "index": index}
            except Exception as error:
                if isinstance(error, UserError) or _is_readable(self.dataset, index):
                    raise
                raise DataError(f"{files_of(self.dataset, [index])[0]}: the image cannot be read") from error


class _Told(Dataset):
    """A data set for workers, which gives what it would raise of errors that users can mend: a worker's end in tracebacks."""

    def __init__(self, dataset: SeededDataset) -> None:
        super().__init__()
        self.dataset = dataset

    def __getitem__(self, key: SampleKey) -> Sample | UserError:
        try:
            return self.dataset[key]
        except UserError as error:
            return error

    def __len__(self) -> int:
        return len(self.dataset)


@contextlib.contextmanager
def _seeded(*entropy: int) -> Iterator[None]:
    """PaddleSeg's transforms draw from the global generators of `random` and NumPy; leave those as they were found."""
    kept = random.getstate(), np.random.get_state()
    state = np.random.SeedSequence(entropy).generate_state(2)
    random.seed(int(state[0]))
    np.random.seed(state[1])
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])


class TrainLoader:
    """Iterates over the `Batch`es of a sampler. Each item is ready on the device.

    Args:
        num_workers: processes that read; 0 reads in this one.
        ahead: adds arrays to each batch, which end in `Batch.extra`.
        stopped: whether `ahead` is to stop waiting.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: ResumableSampler,
        num_workers: int = 0,
        ahead: Ahead | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.dataset, self.sampler, self.num_workers = dataset, sampler, num_workers
        self.ahead, self.stopped = ahead, stopped
        self._seeded = SeededDataset(dataset, sampler.seed)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        raw = self._raw()
        samples = raw if self.ahead is None else self.ahead(raw, self.stopped)
        for iteration, arrays in enumerate(samples, self.sampler.start):
            yield self._to_batch(arrays, iteration)

    def _raw(self) -> Iterator[Sample]:
        if self.num_workers == 0:
            # Not Paddle's single-process loader: its thread would share the global random generators with the model.
            for keys in self.sampler:
                yield self._collate([self._seeded[key] for key in keys])
        else:
            options = {"num_workers": self.num_workers, "worker_init_fn": _end_with_parent}
            for arrays in DataLoader(_Told(self._seeded), batch_sampler=self.sampler, collate_fn=self._told, **options):
                if "error" in arrays:
                    raise DataError(np.asarray(arrays["error"]).tobytes().decode())
                yield arrays

    def _told(self, samples: list[Sample | UserError]) -> Sample:
        try:
            for sample in samples:
                if isinstance(sample, UserError):
                    raise sample
            return self._collate(samples)  # type: ignore[arg-type]
        except UserError as error:
            return {"error": np.frombuffer(str(error).encode(), np.uint8)}

    def _collate(self, samples: list[Sample]) -> Sample:
        shapes = {sample["img"].shape for sample in samples}
        if len(shapes) > 1:
            files = ", ".join(f"{self.files([s['index']])[0]} {s['img'].shape[1:]}" for s in samples[:4])
            raise DataError(f"images of one batch differ in size after the transforms; add a Resize or a crop: {files}")
        batch: Sample = {}
        for key, value in samples[0].items():
            if isinstance(value, np.ndarray | np.number | int | float):
                values = [np.asarray(sample[key]) for sample in samples]
                if len({v.shape for v in values}) == 1:
                    batch[key] = np.stack(values)
        return batch

    def _to_batch(self, arrays: Sample, iteration: int = 0) -> Batch:
        # How images were transformed is read on the host: as a tensor, it would have to be waited for.
        tensors = {
            k: np.asarray(v) if k == GEOMETRY else paddle.to_tensor(v) for k, v in arrays.items() if k != "index"
        }
        images, labels = tensors.pop("img"), tensors.pop("label").astype("int64")
        return Batch(images, labels, self.files(np.asarray(arrays["index"]).tolist()), tensors, iteration)

    def files(self, indices: list[int]) -> tuple[str, ...]:
        """The image paths of samples, or their numbers where the data set has no list of files."""
        return files_of(self.dataset, indices)


def files_of(dataset: Dataset, indices: list[int]) -> tuple[str, ...]:
    """As `TrainLoader.files`."""
    listed = getattr(dataset, "file_list", None)
    return tuple(str(listed[i][0]) if listed else f"sample {i}" for i in indices)


def _is_readable(dataset: Dataset, index: int) -> bool:
    """Whether the image of a sample can be read; PaddleSeg's own error where it cannot does not name it."""
    listed = getattr(dataset, "file_list", None)
    return not listed or cv2.imread(str(listed[index][0])) is not None


def _end_with_parent(_worker: int) -> None:
    """In a worker: SIGTERM counts from its parent alone, and without a parent it ends.

    What ends a whole group of processes reaches both, and the parent has an iteration to finish, which needs its workers. Those
    of a parent that was killed would wait for it for ever.
    """
    parent = os.getppid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Paddle's own handler takes it before anybody can wait for it
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        told = None
        while os.getppid() == parent and (told is None or told.si_pid != parent):
            told = signal.sigtimedwait({signal.SIGTERM}, _LOOK)
        os._exit(0)  # what else it ends with, Paddle takes for a fault in the parent

    threading.Thread(target=wait, daemon=True).start()


def sample_images(dataset: Dataset, seed: int, count: int) -> Batch:
    """`count` copies of the first training sample as a batch: what a dry run needs."""
    sampler = ResumableSampler(len(dataset), 1, seed, 0, 1)
    loader = TrainLoader(dataset, sampler)
    arrays = loader._collate([loader._seeded[(0, 0)]] * count)
    return loader._to_batch(arrays)
