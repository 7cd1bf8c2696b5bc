"""Which samples make up the batch of an iteration, as a function of the iteration alone: resuming needs no state."""

from collections.abc import Iterator

import numpy as np

from paddleseg_ext.errors import DataError

SampleKey = tuple[int, int]  # (epoch, index of the sample)


class ResumableSampler:
    """Batches of shuffled sample keys for the iterations `start` to `stop` of one rank.

    Each epoch is a permutation drawn from (seed, epoch). The global batch of an iteration is a slice of it and each rank
    takes an equal part of that slice, so N ranks of batch B see what one process sees at batch N*B. The samples that
    fill no whole batch at the end of an epoch are left out, as in PaddleSeg.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, start: int, stop: int, rank: int = 0, ranks: int = 1
    ) -> None:
        if length < batch_size * ranks:
            raise DataError(
                f"the training set has {length} samples, fewer than one batch: batch_size {batch_size} x {ranks} processes"
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start, self.stop, self.rank, self.ranks = start, stop, rank, ranks

    @property
    def batches_per_epoch(self) -> int:
        """Iterations that one pass over the data takes."""
        return self.length // (self.batch_size * self.ranks)

    def __len__(self) -> int:
        return max(self.stop - self.start, 0)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order_of, order = -1, np.empty(0, np.int64)
        for iteration in range(self.start, self.stop):
            epoch, position = divmod(iteration, self.batches_per_epoch)
            if epoch != order_of:
                order_of, order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.length)
            first = (position * self.ranks + self.rank) * self.batch_size
            yield [(epoch, int(index)) for index in order[first : first + self.batch_size]]
