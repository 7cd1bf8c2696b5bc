"""One self-contained HTML page that compares runs: curves, figures, images where distillation helped and hurt.

python -m paddleseg_ext.cli.report --runs output/teacher output/alone output/distilled --save_dir output/report
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from paddle import nn

from paddleseg_ext.cli import args as flags
from paddleseg_ext.cli.screen import start_logging, user_errors
from paddleseg_ext.config import Component, Config
from paddleseg_ext.data.build import DatasetFacts, build_dataset, dataset_facts
from paddleseg_ext.engine import env
from paddleseg_ext.engine.checkpoint import write_atomically
from paddleseg_ext.engine.evaluate import predict, spread
from paddleseg_ext.engine.hooks.sinks import ProgressBar
from paddleseg_ext.errors import ConfigError, DataError, WeightsError
from paddleseg_ext.models import build_trained_model
from paddleseg_ext.report import page
from paddleseg_ext.report.charts import COLOURS, curves
from paddleseg_ext.report.measure import Judged, Latency, Size, activity, certainty, judge, latencies, size_of
from paddleseg_ext.report.runs import Run, read_runs

_MOST_PAIRS = 6  # of features shown


@dataclass(frozen=True)
class Subject:
    """A model of the page: a run's best, or the teacher of one."""

    name: str
    role: str
    model: nn.Layer
    run: Run | None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = flags.parser("Compare runs of training on one HTML page.")
    add = parser.add_argument
    add("--runs", type=Path, nargs="+", required=True, metavar="DIR", help="folders that training has written")
    add("--save_dir", type=Path, default=Path("output/report"), help="folder for report.html")
    add("--images", type=int, help="look at so many val images only, spread evenly; default: all")
    add("--examples", type=int, default=3, help="images where distillation helped, and where it hurt")
    flags.add_where(parser)
    args = parser.parse_args(argv)
    with user_errors():
        if args.examples < 1 or (args.images is not None and args.images < 1):
            raise ConfigError("--images and --examples are at least 1")
        start_logging(rank=0)
        env.set_device(args.device)
        file = write_report(read_runs(args.runs), args.save_dir, args.images, args.examples)
        print(f"report: {file}")


def write_report(runs: Sequence[Run], save_dir: Path, images: int | None, examples: int) -> Path:
    """Measure the runs' models and write the page.

    Raises:
        UserError: runs that cannot be compared, weights that do not fit, images that cannot be read.
    """
    component, facts = _val_set(runs)
    notes: list[str] = []
    subjects = _subjects(runs, facts, notes)
    dataset = build_dataset(component)
    indices = spread(len(dataset), images)
    models = {subject.name: subject.model for subject in subjects}
    bar = ProgressBar("judging", "image")
    bar.start(0, len(indices))
    try:
        judged = judge(models, dataset, runs[0].config.test_config, indices, bar.advance)
    finally:
        bar.close()
    shape = [1, *dataset[indices[0]]["img"].shape]
    notes.append(
        f"Time and multiply-adds of one image {shape[3]}x{shape[2]} (width x height) as a Paddle layer on this machine; "
        f"classes and images from {len(indices)} of {len(dataset)} val images."
    )
    sizes = {name: size_of(model, shape) for name, model in models.items()}
    times = latencies(models, shape)
    colours = page.colours_of(list(models), COLOURS)
    before, after = _compared(subjects)
    show = _Shown(subjects, dataset, runs[0].config)
    helped, hurt, others = _examples(show, judged, indices, before, after, examples)
    text = page.render(
        page.Page(
            title="Distillation report",
            lead=_lead(subjects, before, after),
            rows=[_row(s, colours[s.name], sizes[s.name], times[s.name], judged[s.name]) for s in subjects],
            miou=curves("mIoU on the val set", {run.name: run.miou for run in runs}, colours, wide=True),
            losses=_loss_curves(runs, colours),
            class_heads=list(models),
            class_rows=_class_rows(judged, before, after),
            **{"helped": helped, "hurt": hurt, "others": others},
            features=_features(show, subjects, after, indices),
            notes=notes,
        )
    )
    try:
        save_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--save_dir {save_dir}: cannot be made: {error.strerror}") from None
    write_atomically(save_dir / "report.html", text)
    return save_dir / "report.html"


def _val_set(runs: Sequence[Run]) -> tuple[Component, DatasetFacts]:
    """The first run's; the others must have as many classes."""
    found: list[tuple[Component, DatasetFacts]] = []
    for run in runs:
        if run.config.val_dataset is None:
            raise ConfigError(f"--runs {run.folder}: its configuration has no val_dataset")
        found.append((run.config.val_dataset, dataset_facts(run.config.val_dataset)))
        if found[-1][1].num_classes != found[0][1].num_classes:
            raise ConfigError(
                f"--runs {run.folder}: {found[-1][1].num_classes} classes, but {runs[0].folder} has "
                f"{found[0][1].num_classes}"
            )
    return found[0]


def _subjects(runs: Sequence[Run], facts: DatasetFacts, notes: list[str]) -> list[Subject]:
    """Teachers first, then students alone, then distilled ones."""
    teachers = [run.teacher for run in runs if run.teacher is not None]
    subjects = []
    for run in runs:
        model = build_trained_model(run.config.model, str(run.weights), facts.num_classes, facts.img_channels)
        role = "trained alone"
        if run.is_distilled:
            role = "distilled"
        elif any(_same_model(run.config, teacher) for teacher in teachers):
            role = "teacher"
        elif any(other.is_distilled and _same_model(run.config, other.config) for other in runs):
            role = "student alone"
        subjects.append(Subject(run.name, role, model, run))
    for teacher in teachers:
        if any(s.role == "teacher" and (s.run is None or _same_model(s.run.config, teacher)) for s in subjects):
            continue
        weights = teacher.model.params.get("pretrained")
        if not weights or teacher.model.params.get("num_classes", facts.num_classes) != facts.num_classes:
            continue
        try:
            model = build_trained_model(teacher.model, str(weights), facts.num_classes, facts.img_channels)
        except WeightsError as error:
            notes.append(f"The teacher is not shown: {error}.")
            continue
        subjects.append(Subject(f"teacher, {teacher.model.type}", "teacher", model, None))
    order = ("teacher", "trained alone", "student alone", "distilled")
    return sorted(subjects, key=lambda subject: order.index(subject.role))


def _same_model(a: Config, b: Config) -> bool:
    def bare(config: Config) -> dict[str, Any]:
        return {key: value for key, value in config.resolved["model"].items() if key != "pretrained"}

    return bare(a) == bare(b)


def _compared(subjects: Sequence[Subject]) -> tuple[Subject | None, Subject | None]:
    """The best distilled student and the best of its model trained alone; both None where there are not both."""
    for after in sorted((s for s in subjects if s.role == "distilled"), key=_best, reverse=True):
        alone = [s for s in subjects if s.role == "student alone" and _same_model(_config(s), _config(after))]
        if alone:
            return max(alone, key=_best), after
    return None, None


def _config(subject: Subject) -> Config:
    assert subject.run is not None
    return subject.run.config


def _best(subject: Subject) -> float:
    return subject.run.best["mIoU"] if subject.run is not None else 0.0


def _lead(subjects: Sequence[Subject], before: Subject | None, after: Subject | None) -> str:
    if before is None or after is None:
        return "No student that was trained both alone and distilled: nothing is said of what distillation changed."
    gain = 100 * (_best(after) - _best(before))
    return f"Distilled, {after.name} reaches {100 * _best(after):.1f} % mIoU: {gain:+.1f} points against {before.name}."


def _row(subject: Subject, colour: str, size: Size, taken: Latency, judged: Judged) -> page.Row:
    run = subject.run
    miou = run.best["mIoU"] if run else float(np.nan_to_num(judged.class_iou).mean())
    return page.Row(
        **{"name": subject.name, "role": subject.role, "colour": colour, "miou": f"{100 * miou:.2f}"},
        best_iteration=str(run.best["iter"]) if run else "",
        parameters=f"{size.parameters / 1e6:.2f} M",
        multiply_adds=f"{size.multiply_adds / 1e9:.2f} G" if size.multiply_adds else "",
        **{"median": f"{1000 * taken.median:.1f} ms", "p95": f"{1000 * taken.p95:.1f} ms"},
        seconds=f"{run.seconds / 60:.1f} min" if run and run.seconds else "",
    )


def _loss_curves(runs: Sequence[Run], colours: Mapping[str, str]) -> list[str]:
    names = dict.fromkeys(name for run in runs for name in run.losses)
    return [curves(name, {run.name: run.losses[name] for run in runs if name in run.losses}, colours) for name in names]


def _class_rows(judged: Mapping[str, Judged], before: Subject | None, after: Subject | None) -> list[page.ClassRow]:
    table = {name: 100 * found.class_iou for name, found in judged.items()}
    rows = []
    for number in range(len(next(iter(table.values())))):
        cells = [None if np.isnan(values[number]) else float(values[number]) for values in table.values()]
        change = None
        if before is not None and after is not None:
            difference = float(table[after.name][number] - table[before.name][number])
            change = None if np.isnan(difference) else difference
        rows.append(page.ClassRow(number, cells, change))
    return rows


class _Shown:
    """Draws an image, its label and what the models make of it."""

    def __init__(self, subjects: Sequence[Subject], dataset: Any, config: Config) -> None:
        self.subjects, self.dataset, self.config = subjects, dataset, config

    def example(self, index: int, note: str = "") -> page.Example:
        sample = self.dataset[index]
        label = np.asarray(sample["label"]).squeeze()
        path = Path(self.dataset.file_list[index][0])
        pictures = [page.photo(self.image(index), "input"), page.classes(label, "label")]
        given = {s.name: predict(s.model, sample, self.config.test_config) for s in self.subjects}
        pictures += [page.classes(values, name) for name, values in given.items()]
        pictures += [
            page.errors(values, label, self.dataset.ignore_index, f"{name}: errors") for name, values in given.items()
        ]
        return page.Example(path.name, note, pictures)

    def image(self, index: int) -> np.ndarray:
        path = self.dataset.file_list[index][0]
        image = cv2.imread(path, cv2.IMREAD_COLOR)
        if image is None:
            raise DataError(f"{path}: the image cannot be read")
        return image


def _examples(
    show: _Shown,
    judged: Mapping[str, Judged],
    indices: Sequence[int],
    before: Subject | None,
    after: Subject | None,
    count: int,
) -> tuple[list[page.Example], list[page.Example], list[page.Example]]:
    """Where distillation helped, where it hurt, and, where that cannot be said, others."""
    if before is None or after is None:
        return [], [], [show.example(indices[position]) for position in spread(len(indices), count)]
    change = judged[after.name].right() - judged[before.name].right()
    order = [int(position) for position in np.argsort(change, kind="stable")]

    def drawn(position: int) -> page.Example:
        return show.example(indices[position], f"{100 * change[position]:+.1f} points of right pixels")

    helped = [drawn(position) for position in order[::-1][:count] if change[position] > 0]
    hurt = [drawn(position) for position in order[:count] if change[position] < 0]
    return helped, hurt, []


def _features(
    show: _Shown, subjects: Sequence[Subject], after: Subject | None, indices: Sequence[int]
) -> list[page.Example]:
    """What the pairs of the best distilled run look like, student and teacher side by side, for one image."""
    after = after or next((s for s in subjects if s.role == "distilled"), None)
    teacher = next((s for s in subjects if s.role == "teacher"), None)
    if after is None or after.run is None or teacher is None:
        return []
    index = indices[len(indices) // 2]
    image = show.dataset[index]["img"].astype("float32")
    found = []
    for pair in after.run.pairs[:_MOST_PAIRS]:
        pictures = [page.photo(show.image(index), "input")]
        try:
            for side, model in (("student", after.model), ("teacher", teacher.model)):
                pictures += [page.heat(values, f"{side}: {title}") for title, values in _seen(model, pair[side], image)]
        except (ConfigError, IndexError):  # a tensor that only the user's own file can find
            continue
        found.append(page.Example(pair["name"], f"{pair['loss']}, weight {pair['weight']:g}", pictures))
    return found


def _seen(model: nn.Layer, key: int | list[str], image: np.ndarray) -> list[tuple[str, np.ndarray]]:
    if isinstance(key, int):
        return [(f"output {key}", certainty(model, key, image))]
    return list(activity(model, key, image).items())


if __name__ == "__main__":
    main()
