"""One page that compares runs: complete, of one file, readable in a real browser, light and dark, on a phone too."""

import html
import json
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest
import yaml

from paddleseg_ext.cli.report import main
from tests.cli.conftest import DISTILL, TRAIN, command, outcome

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
LIGHT, DARK = 1, 0  # Chromium's preferredColorScheme


def words(*folders, save_dir="report", args=()):
    return ["--runs", *folders, "--save_dir", save_dir, "--device", "cpu", *args]


@pytest.fixture(scope="module")
def page(runs):
    """Made by the command, in a process of its own."""
    printed = outcome(runs, [*command("report"), *words("distilled", "alone", "teacher")])
    assert "report: report/report.html" in printed
    return runs.folder / "report/report.html"


@pytest.fixture
def report(runs, called):
    """Calls the command here; gives the page, or where it must fail, its one line."""

    def run(*folders, code=0, save_dir="report", args=()):
        said = called(main, runs, *words(*folders, save_dir=save_dir, args=args), code=code)
        return said if code else (runs.folder / save_dir / "report.html").read_text(encoding="utf-8")

    return run


@pytest.fixture(scope="module")
def text(page):
    return page.read_text(encoding="utf-8")


def section(text, name):
    return text.split(f'<section id="{name}">')[1].split("</section>")[0]


def cells(text):
    """The rows of the first table as lists of text, its head first."""
    rows = re.findall(r"<tr>(.*?)</tr>", text.split("</table>")[0], re.DOTALL)
    return [[html.unescape(re.sub("<.*?>", "", c)).strip() for c in re.findall(r"<t[hd].*?</t[hd]>", r)] for r in rows]


def test_the_page_is_one_file_that_asks_for_nothing_else(text):
    targets = re.findall(r'(?:src|href)="(.*?)"', text)
    assert len(targets) > 30 and all(t.startswith(("data:", "#")) for t in targets)
    assert "http" not in re.sub(r"data:image/[^\"]*", "", text) and "@import" not in text and "url(" not in text


def test_the_table_holds_what_the_runs_reached_and_what_was_measured(runs, text):
    head, *rows = cells(section(text, "models"))
    table = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert [(row[0], row[1]) for row in rows] == [
        *(("teacher", "teacher"), ("alone", "student alone"), ("distilled", "distilled"))
    ]
    for name, row in table.items():
        best = max(runs.records("eval", name), key=lambda r: r["mIoU"])
        assert row["best mIoU, %"] == f"{100 * best['mIoU']:.2f}" and row["at iteration"] == str(best["iter"])
        assert 0 < float(row["latency, median"].split()[0]) <= float(row["latency, p95"].split()[0])
    # conv1 3x3x3xW, conv2 3x3xWx3 at 16x20, biases, and the teacher's batch norm with its statistics
    assert table["alone"]["parameters"] == str(27 * 8 + 8 + 72 * 3 + 3)
    assert table["alone"]["FLOPs"] == table["distilled"]["FLOPs"] == "138 k" and 16 * 20 * (27 * 8 + 72 * 3) == 138_240
    assert table["teacher"]["FLOPs"] == "276 k"


def test_every_loss_and_the_miou_have_their_curve(runs, text):
    charts = section(text, "training")
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", charts)
    losses = {key for name in ("alone", "distilled") for key in runs.records("train", name)[0]}
    losses -= {"kind", "iter", "lr", "ips", "batch_cost", "reader_cost", "loss"}
    assert set(titles) == losses | {
        "mIoU on the val set, %",
        "mIoU against latency (area: parameters)",
        "loss, the sum",
    }
    last = runs.records("train", "distilled")[-1]
    assert f"distilled, iteration 8: {last['distill/KLLoss']:.4g}" in charts


def test_classes_add_up_to_the_miou_and_the_difference_is_theirs(runs, text):
    head, *rows = cells(section(text, "classes"))
    best = {n: max(runs.records("eval", n), key=lambda r: r["mIoU"])["class_iou"] for n in ("alone", "distilled")}
    assert [row[0] for row in rows] == ["road", "sky & <sun>", "wall"]
    for number, row in enumerate(rows):
        for name, values in best.items():
            assert float(row[head.index(name)]) == pytest.approx(100 * values[number], abs=0.051)
        assert float(row[4]) == pytest.approx(100 * (best["distilled"][number] - best["alone"][number]), abs=0.051)


def test_images_are_where_distillation_changed_most_and_show_every_model(runs, text):
    shown = [name for name in ("helped", "hurt") if f'<section id="{name}">' in text]
    assert shown
    for name in shown:
        part = section(text, name)
        points = [float(p) for p in re.findall(r"([+-]\d+\.\d) points", part)]
        assert points == sorted(points, reverse=name == "helped") and all((p > 0) == (name == "helped") for p in points)
        figures = re.findall(r'<div class="heading">(.*?)</div>', part)
        assert figures == ["image", "teacher", "alone", "distilled", "by distillation"] * len(points)
        assert part.count("red: errors</small>") == 3 * len(points)


def test_features_of_the_pairs_stand_side_by_side(text):
    part = section(text, "features")
    assert "distill/KLLoss" in part and "distill/AttentionTransferLoss_conv1" in part
    assert re.findall(r'<div class="heading">(.*?)</div>', part) == ["image", "teacher", "alone", "distilled"] * 2
    assert part.count("conv1</small>") == 3


def test_each_run_says_how_it_was_made(runs, text):
    part = html.unescape(section(text, "runs"))
    start = json.loads((runs.folder / "distilled/provenance.jsonl").read_text())
    assert "--teacher_opts" in part and start["started"] in part and f"paddle {start['versions']['paddle']}" in part


def test_a_teacher_that_is_no_run_of_the_report_is_measured_from_its_weights(report):
    text = report("distilled", "alone", save_dir="two", args=["--examples", "1", "--images", "2"])
    _, *rows = cells(section(text, "models"))
    assert [row[:2] for row in rows][0] == ["teacher of distilled", "teacher"] and float(rows[0][2]) > 0


def test_one_run_alone_makes_a_page_without_a_comparison(report):
    text = report("alone", save_dir="one", args=["--examples", "1"])
    assert "No student here was trained both alone and distilled" in text and '<section id="images">' in text
    assert "by distillation" not in text and '<section id="features">' not in text


def test_a_run_with_another_val_set_is_judged_on_that_of_the_first_and_this_is_said(runs, report):
    def fewer(folder):
        record = json.loads((folder / "provenance.jsonl").read_text())
        record["config"]["resolved"]["val_dataset"]["val_path"] = "nowhere.txt"
        (folder / "provenance.jsonl").write_text(json.dumps(record) + "\n")

    text = report("alone", spoilt(runs, "elsewhere", fewer), save_dir="both", args=["--examples", "1"])
    assert "elsewhere has another val set; here it is judged on that of alone." in text
    assert "alone has another" not in text


KL = {"loss": {"type": "KLLoss"}}


def several(world):
    world.run(TRAIN, "--opts", "model.width=16", save_dir="big", iters=1)
    (world.folder / "small.yml").write_text(yaml.safe_dump({"model": {"type": "ToyNet", "num_classes": 3}}))
    world.run(TRAIN, save_dir="small", iters=1)
    (world.folder / "big.yml").write_text(yaml.safe_dump({"model": {"type": "ToyNet", "num_classes": 3, "width": 16}}))
    teachers = [{"name": name, "config": f"{name}.yml", "pretrained": f"{name}/iter_1"} for name in ("big", "small")]
    features = [{"student": "conv1", "teacher": {"small": "conv1"}, "loss": "HintLoss"}]
    return {"teachers": teachers, "outputs": [KL], "features": features, "combine": "each"}


def own_past(world):
    return {"teacher": "ema", "outputs": [KL]}


def mutual(world):
    world.teacher.update({k: v for k, v in world.student.items() if k not in ("model", "distill", "distill_loss")})
    return {"teacher": "mutual", "outputs": [KL]}


@pytest.mark.parametrize(
    ("kind", "teachers", "features"),
    [
        (several, ["big", "small"], [["big", "out"], ["small", "out"], ["small", "out"]]),
        (own_past, [], [["out"]]),
        (mutual, ["teacher"], [["teacher", "out"]]),
    ],
)
def test_runs_with_other_kinds_of_teachers_have_their_page(world, called, kind, teachers, features):
    world.student.pop("distill_loss")
    world.student["distill"] = kind(world)
    world.write()
    world.run(DISTILL, teacher_config="teacher.yml" if kind is mutual else None, iters=2, do_eval=True)
    called(main, world, *words("out", args=["--examples", "1"]))
    text = (world.folder / "report/report.html").read_text(encoding="utf-8")
    _, *rows = cells(section(text, "models"))
    assert [row[:2] for row in rows] == [*([name, "teacher"] for name in teachers), ["out", "distilled"]]
    headings = [
        re.findall(r'<div class="heading">(.*?)</div>', part) for part in section(text, "features").split("<h3>")[1:]
    ]
    assert headings == [["image", *names] for names in features]


def browse(page, tmp_path, width, height, scheme=LIGHT):
    """A screenshot, uint8 BGR."""
    shot = tmp_path / f"{width}_{scheme}.png"
    flags = [f"--user-data-dir={tmp_path / f'profile_{width}_{scheme}'}", f"--window-size={width},{height}"]
    flags += [f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}", page.as_uri()]
    subprocess.run([CHROMIUM, *FLAGS, *flags], capture_output=True, timeout=60, check=True)
    return cv2.imread(str(shot))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_browser_shows_it_light_and_dark_and_it_fits_a_phone(page, text, tmp_path):
    light, dark = (browse(page, tmp_path, 1180, 1400, scheme) for scheme in (LIGHT, DARK))
    assert light[5, 5].min() > 240 and dark[5, 5].max() < 40  # the ground
    for picture in (light, dark):
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 200  # text, curves, pictures: no bare page
    # What text and ground differ by, where the first heading is.
    assert np.ptp(light[30:80, 20:300]) > 150 and np.ptp(dark[30:80, 20:300]) > 150
    # A copy of the page says how wide it came out and which pictures did not load.
    script = (
        "<script>addEventListener('load', () => document.title = JSON.stringify([innerWidth, "
        "document.documentElement.scrollWidth, [...document.images].filter(i => !i.naturalWidth).length]))</script></body>"
    )
    probe = tmp_path / "probe.html"
    probe.write_text(text.replace("</body>", script), encoding="utf-8")
    flags = [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=390,800", "--dump-dom", probe.as_uri()]
    done = subprocess.run([CHROMIUM, *FLAGS, *flags], capture_output=True, text=True, timeout=60, check=True)
    width, needed, broken = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1])
    assert width <= 500 and needed <= width and broken == 0


def spoilt(runs, folder, change):
    """A copy of a run with something changed."""
    copy = runs.folder / folder
    shutil.copytree(runs.folder / "alone", copy)
    change(copy)
    return folder


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("no_start", lambda f: (f / "provenance.jsonl").unlink(), ": no run of training: provenance.jsonl is missing or empty"),
        ("no_evaluation", lambda f: (f / "metrics.jsonl").write_text('{"kind": "train"}\n'), ": metrics.jsonl holds no evaluation; train with --do_eval"),
        ("no_metrics", lambda f: (f / "metrics.jsonl").unlink(), ": metrics.jsonl holds no evaluation; train with --do_eval"),
        ("no_weights", lambda f: (f / "best_model/model.pdparams").unlink(), ": no no_weights/best_model/model.pdparams"),
        ("half_a_start", lambda f: (f / "provenance.jsonl").write_text('{"seed": 1}\n'), ": the last line of provenance.jsonl is not whole: KeyError('config')"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_whole_run_is_named(runs, report, name, change, message):
    line = report(spoilt(runs, name, change), code=2, save_dir=f"of_{name}")
    assert line == f"error: --runs {name}{message}" and not (runs.folder / f"of_{name}/report.html").exists()


def test_what_else_is_wrong_is_named_and_an_earlier_page_stays_whole(runs, report, page, text):
    def wider(folder):
        record = json.loads((folder / "provenance.jsonl").read_text())
        record["config"]["resolved"]["model"]["width"] = 5
        (folder / "provenance.jsonl").write_text(json.dumps(record) + "\n")

    line = report(spoilt(runs, "misfit", wider), code=2)
    assert line.startswith("error: misfit/best_model: ") and "conv1.weight [8, 3, 3, 3] for [5, 3, 3, 3]" in line
    assert "--runs alone: given twice" in report("alone", "alone", code=2)
    assert "--runs nowhere: no such folder" in report("nowhere", code=2)
    (runs.folder / "a_file").write_text("")
    assert "--save_dir a_file: cannot be made" in report("alone", code=2, save_dir="a_file")
    image = runs.folder / "val_1.png"
    kept = image.read_bytes()
    try:
        image.write_bytes(b"no image")
        assert "val_1.png" in report("alone", code=2)
    finally:
        image.write_bytes(kept)
    assert page.read_text(encoding="utf-8") == text
