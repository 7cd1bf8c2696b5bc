"""The steps that benchmarks/step.py measures: what each of them does once, and where its teacher's outputs come from."""

import contextlib
import functools
import hashlib
import sys
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import paddle
from paddle import nn

from paddleseg_ext.cli.engine_trial import settle
from paddleseg_ext.cli.model_trial import component
from paddleseg_ext.data.file_marks import FileMark
from paddleseg_ext.data.geometry import KEY, untouched
from paddleseg_ext.distill.adaptor import AdaptorBase
from paddleseg_ext.distill.distiller import Distiller, Pair
from paddleseg_ext.distill.own_resolution import own_logits
from paddleseg_ext.distill.recorder import Recorder
from paddleseg_ext.engine import env
from paddleseg_ext.engine.recompute import recompute_blocks
from paddleseg_ext.engine.supervised import SupervisedStep
from paddleseg_ext.engine.trainer import Trainer
from paddleseg_ext.inference.job import ExportJob, export, plain
from paddleseg_ext.inference.runners import BACKENDS
from paddleseg_ext.inference.select import Bounds, Contest
from paddleseg_ext.inference.worker import start
from paddleseg_ext.losses.build import build_distill_loss
from paddleseg_ext.losses.functional import resize
from paddleseg_ext.losses.task import TaskLoss, WeightedLoss
from paddleseg_ext.models import build_model
from paddleseg_ext.models.catalogue import CATALOGUE, model_config
from paddleseg_ext.models.weights import digest
from paddleseg_ext.registry import build
from paddleseg_ext.teachers import CachedTeacher, EngineTeacher, ModelTeacher, SeveralTeachers
from paddleseg_ext.teachers.cached import kept
from paddleseg_ext.teachers.engine import Wanted
from paddleseg_ext.teachers.manifest import Manifest, Stored
from paddleseg_ext.teachers.store import Answer, OutputStore, begin, write_shard
from paddleseg_ext.types import Batch, StepOutput, TeacherOutputs

Way = Callable[[], object]
LOSSES = (  # of the pairs, in this order; the first is the tutorial's
    ("KLLoss", {}, 3.0),
    ("SegChannelwiseLoss", {"temperature": 4.0}, 3.0),
    ("DISTLoss", {}, 1.0),
    ("PixelwiseKLLoss", {"temperature": 2.0}, 1.0),
)


@dataclass(frozen=True)
class Setting:
    """What is measured. teacher, student: MODEL or MODEL/BACKBONE, with the other arguments of models/catalogue.py."""

    teacher: str = "DeepLabV3P/ResNet50_vd"
    student: str = "DeepLabV3P/ResNet18_vd"
    batch: int = 2
    size: tuple[int, int] = (256, 256)
    classes: int = 2
    pairs: int = 1
    teachers: int = 1

    def __str__(self) -> str:
        text = f"{self.teacher} -> {self.student}, {self.batch}x3x{self.size[0]}x{self.size[1]}, {self.classes} classes"
        text += f", {self.pairs} pairs" if self.pairs > 1 else ""
        return text + (f", {self.teachers} teachers" if self.teachers > 1 else "")


class World:
    """Models, data and losses of a setting, and everything that can be done with them. Close it: an engine is a process."""

    def __init__(self, setting: Setting, cache: Path) -> None:
        self.setting, self.cache = setting, cache
        paddle.seed(0)
        height, width = setting.size
        # Smooth, with some noise: of noise alone a network says nearly the same everywhere, and every error decides the class.
        images = 0.2 * paddle.randn([setting.batch, 3, height, width])
        images += resize(paddle.randn([setting.batch, 3, height // 8, width // 8]), (height, width))
        self.batch = Batch(images, paddle.randint(0, setting.classes, [setting.batch, height, width]))
        self.stack = contextlib.ExitStack()
        self.student, _, self.own, self.recorder = self._model(setting.student, train=True)
        with paddle.no_grad():  # a graph of all of it would be the peak of what keeps less
            outputs = len(self.student(images))
        cross = build(component({"type": "CrossEntropyLoss"}, "loss"), "loss")
        self.task_loss = TaskLoss([WeightedLoss(cross, 1.0)] * outputs, self.student, "student: loss")
        self.optimizer = paddle.optimizer.Momentum(0.001, parameters=self.student.parameters())
        self.supervised = SupervisedStep(self.student, self.task_loss)

    @functools.cached_property
    def layer(self) -> ModelTeacher:
        """The teacher, built when it is first wanted: the student alone does without its memory."""
        teacher, self.component, own, recorder = self._model(self.setting.teacher, train=False)
        settle(teacher, self.batch.images)
        return ModelTeacher(teacher, recorder, own)

    def _model(self, name: str, train: bool) -> tuple:
        config = specification(name, self.setting.classes)
        model, _ = build_model(config, self.setting.classes)
        model.train() if train else model.eval()
        own = own_logits(model, Batch(self.batch.images[:2], self.batch.labels[:2]))
        recorder = self.stack.enter_context(Recorder(AdaptorBase(model), [source.layer for source in own.values()]))
        return model, config, own, recorder

    def contest(self) -> tuple[Contest, Wanted]:
        """What engines compete for."""
        shapes = [logits.shape for logits in self.layer(self.batch).logits]
        wanted = Wanted.of(self.layer, self.setting.size, shapes, (), used=[0])
        names = (tuple(wanted.names), tuple(self.layer.recorder.names))
        job = ExportJob(plain(self.component), self.setting.classes, 3, *names, None, tuple(self.batch.images.shape))
        by_layer = wanted.by_layer(self.layer)
        contest = Contest(
            *(job, self.layer.model, digest(self.layer.model), by_layer, [self.batch.images]),
            cache=self.cache,
            threads=env.threads(),
            reset=env.use_all_cores,
            # The values of an untrained network lie close together, and its classes are nearly ties; the cost is the same.
            bounds=Bounds(max_error=0.1, mean_error=0.02, same_class=0.9),
        )
        return contest, wanted

    def engine(self, name: str, rests: bool = False) -> EngineTeacher:
        """The teacher by an engine that has been tried before, 'openvino bf16'; `rests`: as in training, the layer's weights
        leave the memory, which would slow the layer's own timings beside it."""
        contest, wanted = self.contest()
        backend, precision = name.split()
        kinds = [kind + fixed for kind in BACKENDS[backend].kinds for fixed in ("", "-fixed")]
        folders = (export(contest.job, self.layer.model, contest.weights, kind, self.cache)[0] for kind in kinds)
        folder = next(found for found in folders if found is not None)
        run = start(backend, folder, precision, contest.threads, self.batch.images)
        self.stack.callback(run.close)
        return EngineTeacher(
            *(self.layer, run, wanted, env.use_all_cores),
            proved=self.setting.size,
            folder=self.cache if rests else None,
        )

    def alone(self) -> Way:
        """The student's own step: forward, loss against labels, backward, update."""
        return lambda: self.train(self.supervised)

    def distilled(self, teacher: Callable[[Batch], TeacherOutputs]) -> Way:
        """The same with the teacher and the pairs."""
        pairs = []
        for name, arguments, weight in LOSSES[: self.setting.pairs]:
            loss = build_distill_loss(component({"type": name, **arguments}, "loss"), 255, self.setting.classes)
            pairs.append(Pair(f"distill/{name}", 0, 0, loss, weight))
        if self.setting.teachers > 1:
            names = [f"teacher_{i}" for i in range(self.setting.teachers)]
            teacher = SeveralTeachers(dict.fromkeys(names, teacher), [1.0] * len(names), mean=True)
        step = Distiller(self.student, self.recorder, teacher, self.task_loss, pairs, self.own)
        return lambda: self.train(step)

    def remembered(self) -> Callable[[Batch], TeacherOutputs]:
        """A teacher that costs nothing: what is left of a step beside the student's is the machinery of distillation."""
        said = self.layer(self.batch)
        return lambda _batch: said

    def cached(self) -> Way:
        """A step with the teacher's outputs for these images stored on the disk; images are as they were stored, uncropped."""
        folder = self.cache / f"stored_{hashlib.sha256(str(self.setting).encode()).hexdigest()[:16]}"
        names = [f"{index}.png" for index in range(self.setting.batch)]
        view = np.array([astuple(untouched(size)) for size in self.setting.size])
        if not folder.exists():  # it does for a process whose peak of memory is measured, which has no layer
            self._store(folder, names, view)
        extra = {KEY: np.stack([view] * self.setting.batch)}
        self.batch = replace(self.batch, files=tuple(names), extra=extra)
        return self.distilled(CachedTeacher(OutputStore(folder), None))

    def _store(self, folder: Path, names: list[str], view: np.ndarray) -> None:
        logits = self.layer(self.batch).logits[0].numpy()
        stride = tuple(a // b for a, b in zip(self.setting.size, logits.shape[2:], strict=True))
        stored = Stored("0", True, "logits", logits.shape[1], stride)
        model = {"type": self.setting.teacher}
        given = (model, "", self.setting.classes, 1, (stored,), None, "fp32", (), tuple(names))
        manifest = Manifest(*given, versions={})
        begin(folder, manifest)
        answers = (Answer(view, FileMark(0, 0, ""), {"0": kept(x, stored, manifest, "x")}) for x in logits)
        for number, shard in enumerate(manifest.shards()):
            write_shard(folder, manifest, number, [next(answers) for _ in shard])

    def tutorial(self) -> Way:
        """PaddleSeg's loop written anew: the teacher's graph is kept, one thread, losses at the labels' size, a look at each."""
        from paddleseg.models.losses.cross_entropy_loss import CrossEntropyLoss
        from paddleseg.models.losses.kl_loss import KLLoss

        cross, divergence = CrossEntropyLoss(), KLLoss()

        def step() -> None:
            paddle.base.core.set_num_threads(1)
            try:
                taught = with_graph(self.layer.model, self.batch)
                outputs = self.student(self.batch.images)
                losses = [cross(logits, self.batch.labels) for logits in outputs]
                losses.append(3.0 * divergence(outputs[0], taught[0].detach()))
                total = sum(losses[1:], losses[0])
                total.backward()
                self.optimizer.step()
                self.optimizer.clear_grad()
                for loss in (total, *losses):
                    float(loss)
            finally:
                env.use_all_cores()

        return step

    def switched(self, name: str) -> Way:
        """The student alone with one of the switches of training: bf16, accumulate (in two parts), recompute."""
        trainer = Trainer(precision="bf16" if name == "bf16" else "fp32", accumulate=2 if name == "accumulate" else 1)
        step = self.supervised
        if name == "recompute":
            model, *_ = self._model(self.setting.student, train=True)
            recompute_blocks(model)
            step = SupervisedStep(model, self.task_loss)
        optimizer = paddle.optimizer.Momentum(0.001, parameters=step.parameters())
        return lambda: self.train(step, trainer, optimizer)

    def train(self, step: Callable[[Batch], StepOutput], trainer=None, optimizer=None) -> None:
        """One iteration of the only loop, and a look at the loss: work that is put off would not be measured."""
        progress = (trainer or Trainer()).run(step, [self.batch], optimizer or self.optimizer, [], 1)
        assert progress.output is not None
        float(next(iter(progress.output.losses.values())))


def with_graph(model: nn.Layer, batch: Batch) -> list:
    """A forward with gradients enabled for the weights, whose graph is built and thrown away."""
    frozen = [parameter for parameter in model.parameters() if parameter.stop_gradient]
    for parameter in frozen:
        parameter.stop_gradient = False
    outputs = model(batch.images)
    for parameter in frozen:
        parameter.stop_gradient = True
    return outputs


def specification(name: str, classes: int):
    """A model of the catalogue, with another backbone where one is named; no weights are loaded."""
    model, _, backbone = name.partition("/")
    if model not in CATALOGUE:
        raise SystemExit(f"no model '{model}'; known: {', '.join(CATALOGUE)}")
    config = model_config(model, classes)
    if backbone:
        config["backbone"] = {**config.get("backbone", {}), "type": backbone}
    return component(config, "model")
