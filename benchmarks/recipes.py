"""Trains one student by many recipes of distillation and writes docs/results.md. It may be stopped and started again at any time.

python benchmarks/recipes.py --work output/recipes

Every run is a process of its own in `--work`, resumed where it was stopped; finished ones are kept in docs/results.json and
not repeated. Needs the CamVid data at data/camvid. About two to four minutes a run on two cores.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
TEACHER = "configs/camvid/fcn_hrnetw18small_camvid_240x180_teacher.yml"
STUDENT = "configs/camvid/lpsnet_tiny_camvid_240x180_student.yml"
TOKENS = "configs/camvid/segformer_tiny_camvid_240x180_teacher.yml"
# The last feature before the classes: of the student at stride 16, of the teacher at stride 4.
LAST = {"student": "head:input", "teacher": "head.conv_1"}
TOKEN_LAST = {"student": "head:input", "teacher": "linear_pred:input"}
MIDDLE = {"student": "nets.0.1", "teacher": "backbone.la1"}


def output(name, weight, **arguments):
    return {"outputs": [{"loss": {"type": name, **arguments}, "weight": weight}]}


def feature(name, weight, layers=LAST, **arguments):
    return {"features": [{**layers, "loss": {"type": name, **arguments}, "weight": weight}]}


def both(*parts):
    return {key: [pair for part in parts for pair in part.get(key, [])] for key in ("outputs", "features")}


# Weights: the papers' where they fit these definitions (LOSSES of docs/losses.md), not tuned here.
RECIPES = {
    "student alone": None,
    "KLLoss 3": output("KLLoss", 3),
    "PixelwiseKLLoss 1": output("PixelwiseKLLoss", 1),
    "PixelwiseKLLoss 1, t 4": output("PixelwiseKLLoss", 1, temperature=4),
    "PixelwiseKLLoss 9, standardized, t 2": output("PixelwiseKLLoss", 9, temperature=2, standardize=True),
    "PixelwiseKLLoss 1, at label resolution": {
        "outputs": [{"loss": {"type": "PixelwiseKLLoss"}, "weight": 1, "resolution": "label"}]
    },
    "SegChannelwiseLoss 3 (logits)": output("SegChannelwiseLoss", 3),
    "SegChannelwiseLoss 50 (features)": feature("SegChannelwiseLoss", 50),
    "DISTLoss 1": output("DISTLoss", 1),
    "DKDLoss 1": output("DKDLoss", 1),
    "BPKDLoss 1": output("BPKDLoss", 1),
    "NormalizedFeatureLoss 1": feature("NormalizedFeatureLoss", 1),
    "HintLoss 10": feature("HintLoss", 10),
    "SegPairWiseLoss 10": feature("SegPairWiseLoss", 10),
    "IFVDLoss 20": feature("IFVDLoss", 20),
    "CIRKDLoss 1": feature("CIRKDLoss", 1),
    "MGDLoss 1": feature("MGDLoss", 1),
    "AttnFDLoss 2": feature("AttnFDLoss", 2),
    "AttentionTransferLoss 10": feature("AttentionTransferLoss", 10),
    "FSPLoss 1": feature(
        "FSPLoss", 1, {"student": [MIDDLE["student"], LAST["student"]], "teacher": [MIDDLE["teacher"], LAST["teacher"]]}
    ),
    "PixelwiseKLLoss 1 + SegChannelwiseLoss 3": both(output("PixelwiseKLLoss", 1), output("SegChannelwiseLoss", 3)),
    "PixelwiseKLLoss 1 + CIRKDLoss 1": both(output("PixelwiseKLLoss", 1), feature("CIRKDLoss", 1)),
    "PixelwiseKLLoss 1 + NormalizedFeatureLoss 1": both(
        output("PixelwiseKLLoss", 1), feature("NormalizedFeatureLoss", 1)
    ),
    "EMA of the student, PixelwiseKLLoss 1": {"teacher": "ema", **output("PixelwiseKLLoss", 1)},
}
TOKEN_RECIPES = {
    "PixelwiseKLLoss 1": output("PixelwiseKLLoss", 1),
    "SegChannelwiseLoss 3 (logits)": output("SegChannelwiseLoss", 3),
    "SegChannelwiseLoss 50 (features)": feature("SegChannelwiseLoss", 50, TOKEN_LAST),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("output/recipes"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=ROOT / "docs/results.json", help="finished runs")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/results.md", help="the page to write")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after so many")
    parser.add_argument("--only_page", action="store_true", help="train nothing")
    args = parser.parse_args()
    results = json.loads(args.results.read_text()) if args.results.exists() else {}
    until = time.monotonic() + 60 * args.minutes
    for key in [] if args.only_page else queue(results):
        if time.monotonic() > until:
            break
        results[key] = run(key, args.work, results)
        args.results.write_text(json.dumps(results, indent=1) + "\n")
        print(json.dumps({key: results[key]}), flush=True)
    args.page.write_text(page(results))


def queue(results):
    """The runs that are still to be done, the most telling first: teachers, one seed of all, more seeds, the best with five."""
    wanted = ["teacher/0"] + [f"{name}/0" for name in RECIPES]
    wanted += [f"{name}/{seed}" for seed in (1, 2) for name in RECIPES]
    wanted += ["token teacher/0"] + [f"tokens: {name}/{seed}" for seed in (0, 1, 2) for name in TOKEN_RECIPES]
    yield from (key for key in wanted if key not in results)
    best = sorted((name for name in RECIPES if RECIPES[name]), key=lambda n: -mean(results, n, "best"))[:3]
    cost = (
        1 + statistics.mean(mean(results, n, "seconds") for n in best) / mean(results, "student alone", "seconds") - 1
    )
    results.setdefault("longer", round(1500 * cost))
    more = [f"{name}/{seed}" for seed in (3, 4) for name in ("student alone", *best)]
    more += [f"student alone, as long/{seed}" for seed in (0, 1, 2)]
    yield from (key for key in more if key not in results)


def run(key, work, results):
    """One training, to its end; its mIoU, the best and the last, and its seconds and seconds per step."""
    name, seed = key.rsplit("/", 1)
    folder = work / key.replace("/", "_").replace(" ", "_").replace(":", "")
    folder.mkdir(parents=True, exist_ok=True)
    common = [
        "--do_eval",
        "--seed",
        seed,
        "--save_dir",
        str(folder),
        "--resume_model",
        "auto",
        "--keep_checkpoint_max",
        "1",
    ]
    common += ["--log_iters", "50"]
    if name.endswith("teacher"):
        file = TOKENS if name.startswith("token") else TEACHER
        command = ["train.py", "--config", file, "--save_interval", "250", *common]
    elif name.startswith("student alone"):
        iters = ["--iters", str(results["longer"])] if name.endswith("as long") else []
        command = ["train.py", "--config", STUDENT, "--save_interval", "300", *iters, *common]
    else:
        command = distilled(name, folder, work, common)
    log = folder / "log.txt"
    with log.open("a") as file:
        subprocess.run(
            [sys.executable, *command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=True, env=os.environ
        )
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evaluations = [r["mIoU"] for r in records if r["kind"] == "eval"]
    step = statistics.median(r["batch_cost"] for r in records if r["kind"] == "train")
    last = max(r["iter"] for r in records if r["kind"] == "train")
    return {
        **{"best": max(evaluations), "last": evaluations[-1]},
        **{"step": step, "seconds": step * last, "iters": last},
    }


def distilled(name, folder, work, common):
    """The command of a recipe, its file written beside its results."""
    tokens = name.startswith("tokens: ")
    recipe = TOKEN_RECIPES[name.removeprefix("tokens: ")] if tokens else RECIPES[name]
    student = {"_base_": str(ROOT / STUDENT), "distill": recipe, "distill_loss": None}
    (folder / "student.yml").write_text(yaml.safe_dump(student, sort_keys=False))
    command = ["slim/distill/distill_train.py", "--student_config", str(folder / "student.yml"), *common]
    command += ["--save_interval", "300", "--teacher_eval_images", "0"]
    if recipe.get("teacher") == "ema":
        return command
    weights = (work / ("token_teacher_0" if tokens else "teacher_0") / "best_model" / "model.pdparams").resolve()
    return [
        *command,
        "--teacher_config",
        TOKENS if tokens else TEACHER,
        "--teacher_opts",
        f"model.pretrained={weights}",
    ]


def of(results, name):
    return [value for key, value in results.items() if key.rsplit("/", 1)[0] == name and isinstance(value, dict)]


def mean(results, name, field):
    values = [r[field] for r in of(results, name)]
    return statistics.mean(values) if values else -math.inf


def row(results, name, alone, teacher, label=None):
    values = [100 * r["best"] for r in of(results, name)]
    if not values:
        return None
    centre = statistics.mean(values)
    error = f" ± {statistics.stdev(values) / math.sqrt(len(values)):.2f}" if len(values) > 1 else ""
    closed = f"{100 * (centre - alone) / (teacher - alone):.0f} %" if teacher > alone else ""
    cost = mean(results, name, "step") / mean(results, "student alone", "step")
    return f"| {label or name} | {centre:.2f}{error} | {len(values)} | {centre - alone:+.2f} | {closed} | {cost:.2f} |"


def page(results):
    """docs/results.md."""
    template = (ROOT / "benchmarks/results_template.md").read_text()
    alone = 100 * mean(results, "student alone", "best")
    teacher = 100 * mean(results, "teacher", "best")
    head = "| recipe | mIoU % | seeds | gain | gap closed | cost of a step |\n| --- | --- | --- | --- | --- | --- |\n"
    names = ["student alone", *sorted(list(RECIPES)[1:], key=lambda n: -mean(results, n, "best"))]
    rows = [row(results, name, alone, teacher) for name in names]
    rows.append(row(results, "student alone, as long", alone, teacher))
    table = head + "\n".join(filter(None, rows))
    token_teacher = 100 * mean(results, "token teacher", "best")
    token_rows = [row(results, f"tokens: {n}", alone, token_teacher, n) for n in TOKEN_RECIPES]
    return template.format(
        table=table,
        tokens=head + "\n".join(filter(None, token_rows)),
        teacher=f"{teacher:.2f}",
        token_teacher=f"{token_teacher:.2f}" if math.isfinite(token_teacher) else "not yet measured",
        longer=results.get("longer", "as many as fit in the time of the best recipe"),
        runs=sum(isinstance(value, dict) for value in results.values()),
    )


if __name__ == "__main__":
    main()
