"""One self-contained HTML page that compares runs: curves, figures, images where distillation helped and hurt.

python -m paddleseg_ext.cli.report --runs output/teacher output/alone output/distilled --save_dir output/report
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddleseg_ext.cli import args as flags
from paddleseg_ext.cli.report_examples import Album, changes, chosen
from paddleseg_ext.cli.report_subjects import Comparison, Subject, comparison_of, subjects_of
from paddleseg_ext.cli.screen import start_logging, user_errors
from paddleseg_ext.config import Component
from paddleseg_ext.data.build import DatasetFacts, build_dataset, dataset_facts
from paddleseg_ext.engine import env
from paddleseg_ext.engine.checkpoint import write_atomically
from paddleseg_ext.engine.evaluate import spread
from paddleseg_ext.engine.hooks.sinks import ProgressBar
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.report import page
from paddleseg_ext.report.charts import Spot, curves, scatter
from paddleseg_ext.report.measure import Judged, Latency, Size, judge, latencies, size_of
from paddleseg_ext.report.pictures import swatch
from paddleseg_ext.report.runs import Run, read_runs


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
    """Measure the runs' models and write the page; returns its path.

    Raises:
        UserError: runs that cannot be compared, weights that do not fit, images that cannot be read.
    """
    try:
        save_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--save_dir {save_dir}: cannot be made: {error.strerror}") from None
    component, facts = _val_set(runs)
    notes = [
        f"{run.name} has another val set; here it is judged on that of {runs[0].name}." for run in _strangers(runs)
    ]
    subjects = subjects_of(runs, facts, notes)
    compared = comparison_of(subjects)
    dataset = build_dataset(component)
    indices = spread(len(dataset), images)
    judged = _judged(subjects, dataset, runs[0], indices)
    shape = [1, *np.asarray(dataset[indices[0]]["img"]).shape]
    models = {subject.name: subject.model for subject in subjects}
    sizes = {name: size_of(model, shape) for name, model in models.items()}
    times = latencies(models, shape)
    colours = page.colours_of({subject.name: subject.role for subject in subjects})
    album = Album(subjects, compared, dataset, runs[0].config.test_config)
    helped, hurt, others = chosen(album, judged, indices, examples)
    change = changes(compared, judged)
    features, remarks = album.features(indices[int(np.argmax(change)) if change is not None else len(indices) // 2])
    rounds = min(taken.rounds for taken in times.values())
    notes += remarks + [
        f"Latency: of one image of {shape[3]}x{shape[2]} pixels (width x height) through the Paddle layer on this machine, "
        f"{env.device_in_words()}, {rounds} times. FLOPs: multiply-adds of convolutions and linear layers for that image. "
        f"Classes and images below: {len(indices)} of {len(dataset)} val images."
    ]
    text = page.render(
        page.Page(
            lead=_lead(compared),
            figures=_figures(compared, judged, sizes, times),
            rows=[_row(s, colours[s.name], sizes[s.name], times[s.name], judged[s.name]) for s in subjects],
            notes=notes,
            charts=_charts(runs, subjects, compared, judged, sizes, times, colours),
            class_heads=list(models),
            class_rows=_class_rows(judged, compared, _class_names(component, facts)),
            **{"helped": helped, "hurt": hurt, "others": others, "features": features},
            origins=[_origin(run) for run in runs],
        )
    )
    write_atomically(save_dir / "report.html", text)
    return save_dir / "report.html"


def _val_set(runs: Sequence[Run]) -> tuple[Component, DatasetFacts]:
    """The first run's; the others must have the same classes."""
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


def _strangers(runs: Sequence[Run]) -> list[Run]:
    """Runs whose own evaluations were on another val set, or of images made ready in another way, than the first's."""
    return [run for run in runs if run.config.resolved["val_dataset"] != runs[0].config.resolved["val_dataset"]]


def _judged(subjects: Sequence[Subject], dataset: Any, run: Run, indices: Sequence[int]) -> dict[str, Judged]:
    bar = ProgressBar("judging", "image")
    bar.start(0, len(indices))
    try:
        return judge({s.name: s.model for s in subjects}, dataset, run.config.test_config, indices, bar.advance)
    finally:
        bar.close()


def _class_names(component: Component, facts: DatasetFacts) -> list[str]:
    """The lines of the data set's labels.txt where it has one for each class, else their numbers."""
    file = Path(str(component.params.get("dataset_root") or ".")) / "labels.txt"
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        names = []
    return names if len(names) == facts.num_classes else [str(number) for number in range(facts.num_classes)]


def _lead(compared: Comparison) -> str:
    before, after = compared.before, compared.after
    if before is None or after is None:
        return "No student here was trained both alone and distilled, so nothing is said of what distillation changed."
    gain = 100 * (after.best - before.best)
    return (
        f"With its teacher's help, the student of run '{after.name}' reaches {100 * after.best:.2f} % mIoU: "
        f"{gain:+.2f} points against run '{before.name}', the same model trained alone."
    )


def _figures(
    compared: Comparison, judged: Mapping[str, Judged], sizes: Mapping[str, Size], times: Mapping[str, Latency]
) -> list[page.Figure]:
    """What is to be known at a glance."""
    before, after, found = compared.before, compared.after, []
    teacher = max(compared.teachers.values(), key=lambda s: _miou(s, judged), default=None)
    if before is not None and after is not None:
        gain = 100 * (after.best - before.best)
        found.append(page.Figure(f"{100 * after.best:.2f} %", f"mIoU distilled, {gain:+.2f} points against alone"))
        if teacher is not None and (gap := _miou(teacher, judged) - before.best) > 0:
            closed = 100 * (after.best - before.best) / gap
            found.append(page.Figure(f"{closed:.0f} %", "of the gap between student and teacher closed"))
        change = changes(compared, judged)
        assert change is not None
        found.append(
            page.Figure(f"{(change > 0).sum()} of {len(change)}", f"images better, {(change < 0).sum()} worse")
        )
    if teacher is not None and after is not None:
        small, big = sizes[after.name].parameters, sizes[teacher.name].parameters
        if big > small:
            said = f"fewer parameters than the teacher, {_count(small)} against {_count(big)}"
            found.append(page.Figure(f"{big / max(small, 1):.3g}×", said))
        quick, slow = 1000 * times[after.name].median, 1000 * times[teacher.name].median
        if slow > quick:
            found.append(
                page.Figure(f"{slow / quick:.2g}×", f"as fast as the teacher, {quick:.1f} against {slow:.1f} ms")
            )
    return found


def _miou(subject: Subject, judged: Mapping[str, Judged]) -> float:
    return subject.best if subject.run is not None else judged[subject.name].miou


def _count(number: int) -> str:
    """12.3 M and its like."""
    for unit, name in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return str(number)


def _row(subject: Subject, colour: str, size: Size, taken: Latency, judged: Judged) -> page.Row:
    run = subject.run
    minutes = run.seconds / 60 if run is not None else 0.0
    return page.Row(
        **{"name": subject.name, "role": subject.role, "colour": colour},
        miou=f"{100 * (subject.best if run is not None else judged.miou):.2f}",
        best_iteration=str(run.best["iter"]) if run is not None else "–",
        parameters=_count(size.parameters),
        multiply_adds=_count(size.multiply_adds),
        **{"median": f"{1000 * taken.median:.1f} ms", "p95": f"{1000 * taken.p95:.1f} ms"},
        trained=f"{minutes:.1f} min" if minutes >= 1 else f"{60 * minutes:.0f} s" if minutes else "–",
    )


def _charts(
    runs: Sequence[Run],
    subjects: Sequence[Subject],
    compared: Comparison,
    judged: Mapping[str, Judged],
    sizes: Mapping[str, Size],
    times: Mapping[str, Latency],
    colours: Mapping[str, str],
) -> list[page.Chart]:
    miou = {run.name: [(i, 100 * value) for i, value in run.miou] for run in runs}
    spots = {
        s.name: Spot(1000 * times[s.name].median, 100 * _miou(s, judged), sizes[s.name].parameters) for s in subjects
    }
    arrow = [s.name for s in (compared.before, compared.after) if s is not None]
    found = [
        page.Chart("mIoU on the val set, %", curves(miou, colours, "mIoU", mark_best=True)),
        page.Chart(
            "mIoU against latency (area: parameters)",
            scatter(spots, colours, "median latency, ms", arrow if len(arrow) == 2 else ()),
        ),
    ]
    for name in dict.fromkeys(name for run in runs for name in run.losses):
        lines = {run.name: run.losses[name] for run in runs if name in run.losses}
        found.append(page.Chart("loss, the sum" if name == "loss" else name, curves(lines, colours, name)))
    return found


def _class_rows(judged: Mapping[str, Judged], compared: Comparison, names: Sequence[str]) -> list[page.ClassRow]:
    table = {name: 100 * found.class_iou for name, found in judged.items()}
    rows = []
    for number, name in enumerate(names):
        cells = [None if np.isnan(values[number]) else float(values[number]) for values in table.values()]
        change = None
        if compared.before is not None and compared.after is not None:
            difference = float(table[compared.after.name][number] - table[compared.before.name][number])
            change = None if np.isnan(difference) else difference
        rows.append(page.ClassRow(name, swatch(number), cells, change))
    return rows


def _origin(run: Run) -> page.Origin:
    """What the run's provenance says, for reading."""
    start = run.start
    git = start.get("git") or {}
    versions = start.get("versions") or {}
    facts = {
        "folder": str(run.folder),
        "command": shlex.join(map(str, start.get("command") or ())),
        "started": start.get("started"),
        "seed": start.get("seed"),
        "device": f"{start.get('device')}, {start.get('processes')} process(es)",
        "resumed from": start.get("resumed_from"),
        "configuration": run.config.path,
        "teachers": ", ".join(f"{name}: {teacher.path}" for name, teacher in run.teachers.items()),
        "git": f"{git['commit'][:12]}{', with changes' if git.get('changed') else ''}" if git.get("commit") else None,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
    }
    return page.Origin(run.name, [(word, str(text)) for word, text in facts.items() if text not in (None, "")])


if __name__ == "__main__":
    main()
