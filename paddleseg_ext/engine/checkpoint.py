"""Checkpoints that are either whole or not there."""

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import paddle
from paddle import nn

from paddleseg_ext.errors import CheckpointError
from paddleseg_ext.models.safe_load import safe_load
from paddleseg_ext.models.weights import load_weights

_MODEL, _OPTIMIZER, _STATE = "model.pdparams", "model.pdopt", "state.json"
_EXTRAS = "extras.pdparams"
RECORDS = "metrics.jsonl"


@dataclass
class RunState:
    """What resuming needs besides weights and optimizer. Random numbers and data order follow from seed and iteration."""

    run_id: str
    iteration: int
    seed: int
    batch_size: int  # over all ranks
    best_miou: float | None = None
    best_iteration: int | None = None
    scaler: dict[str, Any] | None = None


class CheckpointStore:
    """The `iter_N/` and `best_model/` folders of a save_dir.

    A checkpoint is written to a hidden folder beside and renamed when it is complete, so a kill at any moment leaves only
    whole ones.
    """

    def __init__(self, save_dir: str, keep: int = 5) -> None:
        self.folder, self.keep = Path(save_dir), keep
        self._claim: IO[str] | None = None

    def prepare(self, alone: bool = True) -> None:
        """Make the folder, take it for this process until it ends, and clear away what a killed run left half-written.

        `alone`: false for a process that trains together with the one that writes.

        Raises:
            CheckpointError: it cannot be written to, or another run is at work there.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".write_test_{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise CheckpointError(f"--save_dir {self.folder}: cannot be written to: {error.strerror}") from None
        if not alone:
            return
        self._take()
        for left in (*self.folder.glob(".partial_*"), *self.folder.glob(".old_*")):
            shutil.rmtree(left, ignore_errors=True)

    def _take(self) -> None:
        """Lock a file, which the system unlocks when the process ends, however it ends, and which children do not inherit."""
        self._claim = (self.folder / ".running").open("a+")
        try:
            fcntl.lockf(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self._claim.seek(0)
            raise CheckpointError(
                f"--save_dir {self.folder}: another run is at work there (process {self._claim.read() or 'unknown'}); "
                "wait until it has ended, or give another folder"
            ) from None
        except OSError:  # a file system without locks
            return
        self._claim.truncate(0)
        self._claim.write(str(os.getpid()))
        self._claim.flush()

    def save(
        self,
        model: nn.Layer,
        optimizer: paddle.optimizer.Optimizer,
        state: RunState,
        extras: nn.Layer | None = None,
    ) -> Path:
        """Write `iter_N/` and delete this run's oldest beyond `keep`; keep 0 or less keeps all.

        `extras`, what trains with the model without being part of it, go to a file of their own.
        """
        final = self.folder / f"iter_{state.iteration}"
        partial = self.folder / f".partial_{final.name}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        paddle.save(model.state_dict(), str(partial / _MODEL))
        if extras is not None:
            paddle.save(extras.state_dict(), str(partial / _EXTRAS))
        paddle.save(optimizer.state_dict(), str(partial / _OPTIMIZER))
        (partial / _STATE).write_text(json.dumps(asdict(state), indent=1))
        for file in partial.iterdir():
            _sync(file)
        if final.exists():
            old = self.folder / f".old_{final.name}"
            os.rename(final, old)
            os.rename(partial, final)
            shutil.rmtree(old)
        else:
            os.rename(partial, final)
        _sync(self.folder)
        if self.keep > 0:
            for path in [path for path in self._of_run(state.run_id) if path != final][: 1 - self.keep or None]:
                # Out of sight first: a kill while deleting must not leave half a checkpoint under its name.
                old = self.folder / f".old_{path.name}"
                os.rename(path, old)
                shutil.rmtree(old)
        return final

    def save_best(self, model: nn.Layer) -> None:
        """Write `best_model/model.pdparams`."""
        folder = self.folder / "best_model"
        folder.mkdir(exist_ok=True)
        partial = folder / f".{_MODEL}.partial"
        paddle.save(model.state_dict(), str(partial))
        _sync(partial)
        os.replace(partial, folder / _MODEL)

    def begin_run(self, run_id: str) -> None:
        """Say which run this folder now belongs to, a new one or one that is resumed.

        `--resume_model auto` looks for the checkpoints of this run alone, not for an older run's in the same folder.
        """
        write_atomically(self.folder / "run.json", json.dumps({"run_id": run_id}))

    def part_from(self, state: RunState) -> list[Path]:
        """Make the checkpoints beyond the one that a run goes on from those of another run; returns them.

        They stay and can be resumed from by name, but are no longer what `auto` takes or what is counted for `keep`.
        """
        beyond = [path for path in self._of_run(state.run_id) if read_state(path).iteration > state.iteration]
        run_id = uuid.uuid4().hex
        for path in beyond:
            write_atomically(path / _STATE, json.dumps({**asdict(read_state(path)), "run_id": run_id}, indent=1))
        return beyond

    def adopt(self, checkpoint: Path, state: RunState) -> bool:
        """Bring here what lies beside a checkpoint that a run goes on from: its records, and its best model.

        Returns whether `best_model/` holds the one that the checkpoint's state speaks of.
        """
        beside, model = checkpoint.parent, self.folder / "best_model" / _MODEL
        if beside.resolve() == self.folder.resolve():
            return model.is_file()
        latest = CheckpointStore(str(beside)).latest()
        newest = read_state(latest) if latest is not None else None
        same_run = newest is not None and newest.run_id == state.run_id
        records = beside / RECORDS
        write_atomically(self.folder / RECORDS, records.read_text() if same_run and records.is_file() else "")
        source = beside / "best_model" / _MODEL
        same_best = newest is not None and newest.best_iteration == state.best_iteration
        if not (same_run and same_best and source.is_file()):
            return False
        model.parent.mkdir(exist_ok=True)
        partial = model.with_name(f".{_MODEL}.partial")
        shutil.copyfile(source, partial)
        _sync(partial)
        os.replace(partial, model)
        return True

    def latest(self) -> Path | None:
        """The newest checkpoint of the run that was last begun in this folder."""
        try:
            run_id = json.loads((self.folder / "run.json").read_text())["run_id"]
        except (OSError, ValueError, KeyError):
            return None
        found = self._of_run(run_id)
        return found[-1] if found else None

    def _of_run(self, run_id: str) -> list[Path]:
        found = []
        for path in self.folder.glob("iter_*"):
            with contextlib.suppress(CheckpointError):
                state = read_state(path)
                if state.run_id == run_id:
                    found.append((state.iteration, path))
        return [path for _, path in sorted(found)]


def read_state(folder: Path) -> RunState:
    """Read a checkpoint's state.

    Raises:
        CheckpointError: the folder is no whole checkpoint.
    """
    if not folder.is_dir():
        raise CheckpointError(f"--resume_model {folder}: no such folder")
    missing = [name for name in (_MODEL, _OPTIMIZER, _STATE) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"--resume_model {folder}: not a whole checkpoint, {', '.join(missing)} is missing")
    try:
        return RunState(**json.loads((folder / _STATE).read_text()))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"--resume_model {folder}: {_STATE} cannot be read: {error}") from None


def restore(
    folder: Path, model: nn.Layer, optimizer: paddle.optimizer.Optimizer, extras: nn.Layer | None = None
) -> None:
    """Load a checkpoint's weights and optimizer state; all of it must fit.

    Raises:
        WeightsError, CheckpointError
    """
    load_weights(model, str(folder / _MODEL), strict=True)
    saved = safe_load(str(folder / _OPTIMIZER))
    saved.pop("StructuredToParameterName@@", None)
    trained = list(model.parameters())
    if extras is not None:
        if not (folder / _EXTRAS).is_file():
            raise CheckpointError(
                f"--resume_model {folder}: it has no {_EXTRAS}, but what distils now has weights or a state of its own"
            )
        load_weights(extras, str(folder / _EXTRAS), strict=True)
        trained += extras.parameters()
    names = {p.name for p in trained if not p.stop_gradient}
    accumulators = [key for key in saved if key not in ("LR_Scheduler", "master_weights")]
    strange = [key for key in accumulators if not any(key.startswith(f"{name}_") for name in names)]
    if strange:
        raise CheckpointError(
            f"--resume_model {folder}: {len(strange)} tensors in {_OPTIMIZER} belong to another model, such as '{strange[0]}'"
        )
    optimizer.set_state_dict(saved)


def write_atomically(path: Path, text: str) -> None:
    """Replace a small text file in one go."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    _sync(partial)
    os.replace(partial, path)


def _sync(path: Path) -> None:
    """Bring a file or folder to the disk, so that a rename never overtakes its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
