"""docs/models.md and the record that it is written from."""

import dataclasses
import json
import statistics
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import paddle

from paddleseg_ext.cli.engine_trial import EngineTrial, verified
from paddleseg_ext.cli.model_trial import Trial
from paddleseg_ext.engine.checkpoint import write_atomically

_HEAD = """# Models

Made by `make models` with paddle {paddle} and paddleseg {paddleseg} on {device}: every model that PaddleSeg registers
is built as `paddleseg_ext/models/catalogue.py` has it (a light backbone, 5 classes, no pretrained weights), trained for
one step on 2 images with the losses named here, and run in eval mode. {good} of {all} run.

- outputs: their number; what they are where not all of them are tensors.
- stride: pixels of the input per pixel of the first output in eval mode.
- idle: trainable tensors that get no gradient (`find_unused_parameters` for data-parallel training).

| model | backbone | input | parameters (M) | outputs in training | losses | outputs in eval | stride | idle | runs |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""

_ENGINES = """
## Engines

Made by `python -m paddleseg_ext.cli.models --engines` ({engines}): the same models, batch norms half-way to the images, as
teachers whose first output, at the network's own resolution, engines compete for as under `--teacher_engine auto` (two images
of smooth noise, {threads} CPU threads, bounds as in [distillation.md](distillation.md)). {verified} of {all} have an engine that
gives the same as the Paddle layer; their median speed-up of a forward is {speedup:.1f}. What every engine said is in `{record}`.

- layer, engine: milliseconds of a forward of two images; speed-up: their ratio.
- largest error: of any element, as a share of the range of the logits; same class: share of the pixels.

| model | input | engine | layer (ms) | engine (ms) | speed-up | largest error | same class |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""

_PACKAGES = ("paddlepaddle", "openvino", "onnxruntime", "paddle2onnx")


@dataclass
class ModelRecord:
    """What is known of each model: trained for a step, and run by engines."""

    models: dict[str, Trial] = field(default_factory=dict)
    engines: dict[str, EngineTrial] = field(default_factory=dict)
    made_with: str = ""

    @classmethod
    def read(cls, page: Path | None) -> "ModelRecord":
        """The record beside a page, an empty one where there is none."""
        path = None if page is None else _beside(page)
        if path is None or not path.exists():
            return cls()
        found = json.loads(path.read_text(encoding="utf-8"))
        models = {name: Trial(**row) for name, row in found["models"].items()}
        engines = {name: EngineTrial(**row) for name, row in found["engines"].items()}
        return cls(models, engines, found["made_with"])

    def write(self, page: Path) -> None:
        """The record and its page."""
        self.made_with = ", ".join(f"{name} {version(name)}" for name in _PACKAGES if _installed(name))
        write_atomically(_beside(page), json.dumps(dataclasses.asdict(self), indent=1) + "\n")
        write_atomically(page, self._page(_beside(page).name))

    def _page(self, record: str) -> str:
        models = sorted(self.models.values(), key=lambda trial: trial.name.lower())
        text = _HEAD.format(
            paddle=paddle.__version__,
            paddleseg=version("paddleseg"),
            device=paddle.get_device().split(":")[0].upper(),
            good=sum(not trial.failure for trial in models),
            all=len(models),
        )
        text += "".join(map(_row, models))
        if not self.engines:
            return text
        engines = sorted(self.engines.values(), key=lambda trial: trial.name.lower())
        good = [trial for trial in engines if verified(trial)]
        text += _ENGINES.format(
            **{"engines": self.made_with, "threads": engines[0].threads, "record": record},
            **{"verified": len(good), "all": sum(not trial.failure for trial in engines)},
            speedup=statistics.median([trial.layer / trial.best for trial in good] or [float("nan")]),
        )
        return text + "".join(map(_engine_row, engines))


def _beside(page: Path) -> Path:
    return page.with_suffix(".json")


def _installed(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError

    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _row(trial: Trial) -> str:
    return _cells(
        trial.name,
        trial.backbone,
        f"{trial.size}x{trial.size}" if trial.size else "",
        f"{trial.parameters / 1e6:.2f}" if trial.parameters else "",
        trial.train_outputs,
        trial.losses,
        trial.eval_outputs,
        trial.stride,
        str(trial.idle) if trial.stride else "",
        trial.failure or "yes",
    )


def _engine_row(trial: EngineTrial) -> str:
    if trial.failure:
        return _cells(trial.name, "", trial.failure, "", "", "", "", "")
    cells = [trial.name, f"{trial.size}x{trial.size}", trial.engine, f"{trial.layer:.1f}"]
    if trial.engine == "layer":
        return _cells(*cells, "", "", "", "")
    cells += [f"{trial.best:.1f}", f"{trial.layer / trial.best:.1f}", f"{100 * trial.max_error:.2g} %"]
    return _cells(*cells, f"{100 * trial.same_class:.2f} %")


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
