"""Something that happens after one iteration of a run."""

from collections.abc import Callable

from paddleseg_ext.engine.trainer import Progress
from paddleseg_ext.types import Batch


class OnceHook:
    """Calls `action` with the batch of the iteration with this number, counted from 1."""

    def __init__(self, iteration: int, action: Callable[[Batch], None]) -> None:
        self.iteration, self.action = iteration, action

    def before_run(self, progress: Progress) -> None:
        pass

    def after_step(self, progress: Progress) -> None:
        if progress.iteration == self.iteration and progress.batch is not None:
            self.action(progress.batch)

    def close(self) -> None:
        pass
