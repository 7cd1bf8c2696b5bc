"""How the weight of a distillation loss changes in the course of training."""

import math
from dataclasses import dataclass

from paddleseg_ext.config import Schedule


@dataclass(frozen=True)
class WeightFactor:
    """The factor, 0 to 1, of a weight by iteration, counted from 0, for a training of `iters`.

    It is 0 before `start` and from `end` (-1: `iters`) on, rises linearly for `warmup` iterations, and then stays at 1
    (decay 'none') or falls to 0 at `end` along a line or half a cosine wave.
    """

    schedule: Schedule
    iters: int

    @property
    def end(self) -> int:
        """The first iteration after the last that counts."""
        return self.iters if self.schedule.end == -1 else self.schedule.end

    def __call__(self, iteration: int) -> float:
        start, warmup, decay = self.schedule.start, self.schedule.warmup, self.schedule.decay
        if not start <= iteration < self.end:
            return 0.0
        since = iteration - start
        if since < warmup:
            return (since + 1) / (warmup + 1)
        share = (since - warmup) / max(self.end - start - warmup, 1)
        if decay == "linear":
            return 1 - share
        if decay == "cosine":
            return 0.5 * (1 + math.cos(math.pi * share))
        return 1.0

    def __str__(self) -> str:
        parts = [f"iterations {self.schedule.start} to {self.end}"]
        parts += [f"warm-up {self.schedule.warmup}"] if self.schedule.warmup else []
        parts += [f"{self.schedule.decay} decay"] if self.schedule.decay != "none" else []
        return ", ".join(parts)
