"""Which run is the teacher, the student alone, the distilled one: found out from the runs themselves."""

from pathlib import Path

import pytest

from paddleseg_ext.cli.report_subjects import Subject, _role, comparison_of
from paddleseg_ext.config import Config
from paddleseg_ext.config.schema import Component
from paddleseg_ext.report.runs import Run

BIG, SMALL = {"type": "Net", "width": 9}, {"type": "Net", "width": 2, "pretrained": "imagenet", "num_classes": 3}


def config(model):
    return Config("x.yml", Component(model["type"], model, ""), resolved={"model": model})


def run(name, model, teachers=None, miou=0.5, distilled=None):
    """A run in the folder /runs/<name>; `teachers` are models with their weights."""
    found = {f"t{i}": config(t) for i, t in enumerate(teachers or ())}
    return Run(
        **{"name": name, "folder": Path("/runs") / name, "config": config(model), "teachers": found, "pairs": []},
        **{"is_distilled": bool(found) if distilled is None else distilled, "start": {"folder": "/runs"}, "losses": {}},
        **{"evaluations": [{"iter": 1, "mIoU": miou}], "weights": Path("/runs") / name / "best_model", "seconds": 0.0},
    )


def roles(*runs):
    return {r.name: _role(r, runs) for r in runs}


def taught_by(folder, model=BIG):
    return {**model, "pretrained": f"{folder}/best_model/model.pdparams"}


def test_a_teacher_is_known_by_its_weights_and_a_student_alone_by_its_model():
    runs = (
        run("a", BIG),
        run("b", {**SMALL, "pretrained": None}),
        run("c", SMALL, [taught_by("a")]),
        run("d", {"type": "X"}),
    )
    assert roles(*runs) == {"a": "teacher", "b": "student alone", "c": "distilled", "d": "trained alone"}


def test_a_teacher_of_the_students_own_kind_is_told_from_the_student_alone():
    runs = run("first", SMALL), run("alone", SMALL), run("again", SMALL, [taught_by("first", SMALL)])
    assert roles(*runs) == {"first": "teacher", "alone": "student alone", "again": "distilled"}


def test_a_teacher_whose_weights_were_copied_is_known_by_its_model():
    assert roles(run("a", BIG), run("c", SMALL, [taught_by("/elsewhere")]))["a"] == "teacher"


def test_a_run_in_another_ones_folder_is_not_taken_for_it():
    runs = run("out", SMALL, [taught_by("out/teacher")]), run("out/teacher", BIG), run("out/baseline", SMALL)
    assert roles(*runs) == {"out": "distilled", "out/teacher": "teacher", "out/baseline": "student alone"}
    compared = comparison_of([Subject(r.name, _role(r, runs), None, str(r.weights), r) for r in runs])
    assert compared.teachers["t0"].name == "out/teacher"


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0)])
def test_the_best_of_each_side_are_compared(order):
    runs = [
        *(run("a", SMALL, miou=0.5), run("b", SMALL, miou=0.6), run("c", SMALL, [taught_by("t")], miou=0.7)),
        *(run("d", SMALL, [taught_by("t")], miou=0.65), run("e", {"type": "X"}, [taught_by("t")], miou=0.9)),
    ]
    runs = [runs[i] for i in order]
    compared = comparison_of([Subject(r.name, _role(r, runs), None, str(r.weights), r) for r in runs])
    assert (compared.before.name, compared.after.name) == ("b", "c")  # "e" has no student alone
