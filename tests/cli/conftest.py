"""A small world for the commands: real files, real processes, toy models."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = [sys.executable, str(ROOT / "tests/cli/launch.py")]
TRAIN, DISTILL = str(ROOT / "train.py"), str(ROOT / "slim/distill/distill_train.py")


class World:
    """A folder with data and configurations, and a way to run commands in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rng = np.random.default_rng(0)
        for part, count in (("train", 8), ("val", 3)):
            lines = []
            for i in range(count):
                label = np.zeros([32, 40], np.uint8)
                label[: rng.integers(8, 24)] = 1
                label[:, rng.integers(24, 36) :] = 2
                image = 60 * label[..., None] + rng.integers(0, 60, [32, 40, 3])
                cv2.imwrite(str(folder / f"{part}_{i}.png"), image.astype(np.uint8))
                cv2.imwrite(str(folder / f"{part}_{i}_label.png"), label)
                lines.append(f"{part}_{i}.png {part}_{i}_label.png\n")
            (folder / f"{part}.txt").write_text("".join(lines))
        self.student = self._config()
        self.student["distill_loss"] = {"types": [{"type": "KLLoss"}], "coef": [3]}
        self.teacher = {"model": {"type": "ToyNet", "num_classes": 3, "width": 16, "norm": True, "dropout": 0.5}}
        self.write()

    def _config(self):
        def dataset(mode, augmented):
            random = [{"type": "RandomHorizontalFlip"}, {"type": "RandomDistort"}] if augmented else []
            return {
                **{"type": "Dataset", "dataset_root": ".", f"{mode}_path": f"{mode}.txt", "num_classes": 3},
                **{"mode": mode, "transforms": [*random, {"type": "Normalize"}]},
            }

        return {
            "batch_size": 2,
            "iters": 8,
            "train_dataset": dataset("train", augmented=True),
            "val_dataset": dataset("val", augmented=False),
            "optimizer": {"type": "SGD", "momentum": 0.9, "weight_decay": 4.0e-5},
            "lr_scheduler": {"type": "PolynomialDecay", "learning_rate": 0.05, "end_lr": 0, "power": 0.9},
            "loss": {"types": [{"type": "CrossEntropyLoss"}], "coef": [1]},
            "model": {"type": "ToyNet", "num_classes": 3, "width": 8, "dropout": 0.2},
        }

    def write(self, **files):
        """Write student.yml and teacher.yml, and further files by name."""
        for name in ("student", "teacher"):
            (self.folder / f"{name}.yml").write_text(yaml.safe_dump(getattr(self, name), sort_keys=False))
        for name, text in files.items():
            (self.folder / name.replace("__", ".")).write_text(text)

    def changed(self, **values):
        """A copy of the student's configuration with dotted keys set (`model__width=3`), as a file of its own."""
        tree = copy.deepcopy(self.student)
        for dotted, value in values.items():
            node = tree
            *parents, last = dotted.split("__")
            for key in parents:
                node = node[key]
            node[last] = value
        (self.folder / "changed.yml").write_text(yaml.safe_dump(tree, sort_keys=False))
        return "changed.yml"

    def command(self, launcher, *args, save_dir="out", **flags):
        """The command line: train.py or distill_train.py on the files of this folder, overridable by flags."""
        flags = {"seed": 5, "log_iters": 1, "save_interval": 4, "save_dir": save_dir, "device": "cpu"} | flags
        if launcher == TRAIN:
            flags = {"config": "student.yml"} | flags
        else:
            flags = {"teacher_config": "teacher.yml", "student_config": "student.yml"} | flags
        words = []
        for name, value in flags.items():
            words += [f"--{name}"] if value is True else [] if value is None else [f"--{name}", str(value)]
        return [launcher, *words, *args]

    def run(self, launcher, *args, code=0, start=LAUNCH, env=None, **flags):
        """Run to the end; returns standard output and error as one text."""
        command = [*start, *self.command(launcher, *args, **flags)]
        done = subprocess.run(
            command, cwd=self.folder, env={**os.environ, **(env or {})}, text=True, timeout=120,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == code, done.stdout[-4000:]
        return done.stdout

    def records(self, kind, save_dir="out"):
        """The records of one kind in metrics.jsonl."""
        lines = (self.folder / save_dir / "metrics.jsonl").read_text().splitlines()
        return [r for r in map(json.loads, lines) if r["kind"] == kind]

    def weights(self, path):
        """Arrays by name, of a file below the folder."""
        from paddleseg_ext.models.safe_load import safe_load

        content = safe_load(str(self.folder / path))
        content.pop("StructuredToParameterName@@", None)
        return content


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def same_bits(a, b):
    """Whether two sets of arrays are equal bit for bit."""
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder with three runs, `teacher`, `alone` and `distilled`, for tests that only read them."""
    world = World(tmp_path_factory.mktemp("runs"))
    (world.folder / "labels.txt").write_text("road\nsky & <sun>\nwall\n")
    world.student["distill"] = {"features": [{"student": "conv1", "loss": {"type": "AttentionTransferLoss"}}]}
    world.write()
    width = ["--opts", "model.width=16", "model.norm=True"]
    world.run(TRAIN, *width, save_dir="teacher", iters=8, do_eval=True, learning_rate=0.2)
    world.run(TRAIN, save_dir="alone", iters=8, do_eval=True)
    taught = ["--teacher_opts", "model.pretrained='teacher/best_model'"]
    world.run(DISTILL, *taught, save_dir="distilled", iters=8, do_eval=True, use_vdl=True)
    return world


def command(name):
    """The start of a command of `paddleseg_ext.cli` with the toy model registered."""
    return [*LAUNCH, str(ROOT / f"paddleseg_ext/cli/{name}.py")]


def outcome(world, words):
    """What a command that must succeed prints."""
    done = subprocess.run(words, cwd=world.folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def called(monkeypatch, capsys):
    """Calls a command's `main` in this process, which is quick: `called(main, world, *words, code=2)`.

    Gives what it prints, or where it must fail, its one line on the standard error.
    """
    monkeypatch.syspath_prepend(str(ROOT / "tests/cli"))
    import launch  # noqa: F401  registers ToyNet

    def call(main, world, *words, code=0):
        monkeypatch.chdir(world.folder)
        capsys.readouterr()
        if code == 0:
            main([str(word) for word in words])
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        error = capsys.readouterr().err
        lines = [line for line in error.splitlines() if line.startswith("error: ")]
        assert ended.value.code == code and len(lines) == 1 and "Traceback" not in error, error
        return lines[0]

    return call
