"""Trains one student by many recipes of distillation and writes docs/results.md. It may be stopped and started again at any time.

python benchmarks/recipes.py --work output/recipes

Every run is a process of its own in `--work`, resumed where it was stopped; finished ones are kept in docs/results.json and
not repeated. As many run at once as there are cores, each on a core of its own (LPSNet this small is faster on one than on
two). Needs the CamVid data at data/camvid. About two to three minutes a run.
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
ITERS = 1000  # of the student's file
LONGER = (2000, 4000)  # of the student alone: what it reaches in the time that distilled steps take
TEACHER = "configs/camvid/fcn_hrnetw18small_camvid_240x180_teacher.yml"
TRAINED = ROOT / "benchmarks/camvid_teacher.pdparams"
STUDENT = "configs/camvid/lpsnet_tiny_camvid_240x180_student.yml"
TOKENS = "configs/camvid/segformer_tiny_camvid_240x180_teacher.yml"
# The last feature before the classes: of the student at stride 16, of the teacher at stride 4.
LAST = {"student": "head:input", "teacher": "head.conv_1"}
TOKEN_LAST = {"student": "head:input", "teacher": "linear_pred:input"}
COARSE = {"student": "head:input", "teacher": "backbone.st4[2]"}  # both at stride 16
MIDDLE = {"student": "nets.0.1", "teacher": "backbone.la1"}


def output(name, weight, resolution="label", **arguments):
    """At the labels' size, as other toolkits compare, unless a row says otherwise."""
    return {"outputs": [{"loss": {"type": name, **arguments}, "weight": weight, "resolution": resolution}]}


def feature(name, weight, layers=LAST, **arguments):
    return {"features": [{**layers, "loss": {"type": name, **arguments}, "weight": weight}]}


def both(*parts):
    return {key: [pair for part in parts for pair in part.get(key, [])] for key in ("outputs", "features")}


# Weights: the papers' where they fit these definitions (LOSSES of docs/losses.md), not tuned here. What is compared between
# layers comes on top of the same loss between outputs, as in the papers.
KL = output("PixelwiseKLLoss", 1)
MIDDLE_AND_LAST = {
    "student": [MIDDLE["student"], LAST["student"]],
    "teacher": [MIDDLE["teacher"], LAST["teacher"]],
}
RECIPES = {
    "student alone": None,
    "KLLoss 3": output("KLLoss", 3),
    "PixelwiseKLLoss 1": KL,
    "PixelwiseKLLoss 1, t 4": output("PixelwiseKLLoss", 1, temperature=4),
    "PixelwiseKLLoss 9, standardized, t 2": output("PixelwiseKLLoss", 9, temperature=2, standardize=True),
    "SegChannelwiseLoss 3 (logits)": output("SegChannelwiseLoss", 3),
    "DISTLoss 1": output("DISTLoss", 1),
    "DISTLoss 1, at the networks' resolution": output("DISTLoss", 1, "network"),
    "PixelwiseKLLoss 1, at the networks' resolution": output("PixelwiseKLLoss", 1, "network"),
    "DKDLoss 1": output("DKDLoss", 1),
    "BPKDLoss 1": output("BPKDLoss", 1),
    "PixelwiseKLLoss 1 + SegChannelwiseLoss 3 (logits)": both(KL, output("SegChannelwiseLoss", 3)),
    "PixelwiseKLLoss 1 + SegChannelwiseLoss 50 (features)": both(KL, feature("SegChannelwiseLoss", 50)),
    "PixelwiseKLLoss 1 + NormalizedFeatureLoss 1": both(KL, feature("NormalizedFeatureLoss", 1)),
    "PixelwiseKLLoss 1 + HintLoss 10": both(KL, feature("HintLoss", 10)),
    "PixelwiseKLLoss 1 + SegPairWiseLoss 10": both(KL, feature("SegPairWiseLoss", 10)),
    "PixelwiseKLLoss 1 + IFVDLoss 20": both(KL, feature("IFVDLoss", 20)),
    "PixelwiseKLLoss 1 + MGDLoss 1 (stride 16)": both(KL, feature("MGDLoss", 1, COARSE)),
    "PixelwiseKLLoss 1 + AttnFDLoss 2": both(KL, feature("AttnFDLoss", 2)),
    "PixelwiseKLLoss 1 + AttentionTransferLoss 10": both(KL, feature("AttentionTransferLoss", 10)),
    "PixelwiseKLLoss 1 + FSPLoss 1": both(KL, feature("FSPLoss", 1, MIDDLE_AND_LAST)),
    "DISTLoss 1 + SegChannelwiseLoss 3 (logits)": both(output("DISTLoss", 1), output("SegChannelwiseLoss", 3)),
    "DISTLoss 1 + HintLoss 10": both(output("DISTLoss", 1), feature("HintLoss", 10)),
    "EMA of the student, PixelwiseKLLoss 1": {"teacher": "ema", **KL},
    "PixelwiseKLLoss 1 + CIRKDLoss 1": both(KL, feature("CIRKDLoss", 1)),
}
LONG = ("PixelwiseKLLoss 1 + CIRKDLoss 1",)
TOKEN_RECIPES = {
    "PixelwiseKLLoss 1": KL,
    "SegChannelwiseLoss 3 (logits)": output("SegChannelwiseLoss", 3),
    "PixelwiseKLLoss 1 + SegChannelwiseLoss 50 (features)": both(KL, feature("SegChannelwiseLoss", 50, TOKEN_LAST)),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("output/recipes"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=ROOT / "docs/results.json", help="finished runs")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/results.md", help="the page to write")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after so many")
    parser.add_argument(
        "--costs", action="store_true", help="measure the step of recipes whose cost is not known; train nothing else"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at the same time")
    parser.add_argument("--only_page", action="store_true", help="train nothing")
    args = parser.parse_args()
    results = {"runs": {}, "costs": {}}
    if args.results.exists():
        results.update(json.loads(args.results.read_text()))
    if args.costs:
        measure_costs(args.work, results["costs"])
    if not (args.only_page or args.costs):
        train_all(args, results)
    write(args.results, json.dumps(results, indent=1) + "\n")
    write(args.page, page(results))


def train_all(args, results):
    """All that is still to be trained, one run a core; a run that fails is said and ends the work when the others are done."""
    until = time.monotonic() + 60 * args.minutes
    cores, under_way = set(range(args.jobs)), {}
    with ThreadPoolExecutor(args.jobs) as pool:
        while True:
            waiting = (key for key in queue(results) if key not in {key for key, _ in under_way.values()})
            while cores and time.monotonic() < until and (key := next(waiting, None)):
                core = cores.pop()
                under_way[pool.submit(run, key, args.work, results, core)] = key, core
            if not under_way:
                return
            for ended in wait(under_way, return_when=FIRST_COMPLETED).done:
                key, core = under_way.pop(ended)
                cores.add(core)
                results["runs"][key] = ended.result()
                write(args.results, json.dumps(results, indent=1) + "\n")
                print(json.dumps({key: results["runs"][key]}), flush=True)


def write(path, text):
    """The whole file or none of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def queue(results):
    """The runs still to be done, the most telling first: teachers, one seed of all, more seeds, the best with five, longer."""
    runs = results["runs"]
    wanted = ["teacher/0", "token teacher/0"] + [f"{name}/0" for name in RECIPES]
    wanted += [f"tokens: {name}/0" for name in TOKEN_RECIPES]
    wanted += [f"tokens: {name}/{seed}" for seed in (1, 2) for name in TOKEN_RECIPES]
    # The student alone, then the best so far; those that take long last.
    ranked = sorted(RECIPES, key=lambda name: (RECIPES[name] is not None, name in LONG, -mean(runs, name)))
    wanted += [f"{name}/{seed}" for name in ranked for seed in (1, 2)]
    wanted += [f"student alone/{seed}" for seed in (3, 4)]
    yield from (key for key in wanted if key not in runs and (teacher_of(key) is None or teacher_of(key) in runs))
    if not all(key in runs for key in wanted):
        return
    best = best_recipes(runs)
    yield from (f"{name}/{seed}" for seed in (3, 4) for name in best if f"{name}/{seed}" not in runs)
    yield from (
        f"{longer(iters)}/{seed}" for seed in (0, 1, 2) for iters in LONGER if f"{longer(iters)}/{seed}" not in runs
    )


def longer(iters):
    """The name of the student alone when it is trained for more iterations, on a schedule of that length."""
    return f"student alone, {iters} iterations"


def teacher_of(key):
    """The run that must have ended before this one."""
    name = key.rsplit("/", 1)[0]
    if name.startswith("tokens: "):
        return "token teacher/0"
    recipe = RECIPES.get(name)
    return "teacher/0" if recipe and recipe.get("teacher") != "ema" else None


def best_recipes(runs):
    """The three of the highest mean mIoU."""
    return sorted((name for name in RECIPES if RECIPES[name]), key=lambda name: -mean(runs, name))[:3]


def run(key, work, results, core):
    """One training to its end; the mIoU of its best and of its last evaluation."""
    name, seed = key.rsplit("/", 1)
    folder = folder_of(key, work)
    iters = next((iters for iters in LONGER if name == longer(iters)), None)
    words = ["--do_eval", "--seed", seed, "--save_dir", str(folder), "--resume_model", "auto", "--save_interval", "250"]
    words += ["--keep_checkpoint_max", "1", "--log_iters", "50", *(["--iters", str(iters)] if iters else [])]
    train(name, folder, work, words, core)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evaluations = [r["mIoU"] for r in records if r["kind"] == "eval"]
    found = {"best": max(evaluations), "last": evaluations[-1], "iters": max(r["iter"] for r in records)}
    taught_by = teacher_of(key)
    if taught_by is not None:
        found["teacher"] = hashlib.sha256(weights_of(taught_by, work).read_bytes()).hexdigest()[:8]
    return found


def train(name, folder, work, words, core):
    """The training command of a recipe, of a teacher or of the student alone, on one core, its output in a file."""
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith("teacher"):
        command = ["train.py", "--config", TOKENS if name.startswith("token") else TEACHER, *words]
    elif name.startswith("student alone"):
        command = ["train.py", "--config", STUDENT, *words]
    else:
        command = distilled(name, folder, work, words)
    with (folder / "log.txt").open("a") as file:
        one = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=one, stdout=file, stderr=subprocess.STDOUT)
        os.sched_setaffinity(process.pid, {core})
        if process.wait():
            raise RuntimeError(f"{name}: exit code {process.returncode}, see {folder / 'log.txt'}")


def measure_costs(work, costs):
    """Seconds of a step of the recipes that `costs` lacks, beside the student alone: medians of three rounds over all of them.

    So a slow moment of the machine meets all alike; what is measured later is scaled by what the student alone takes then.
    """
    names = ["student alone"] + [name for name in RECIPES if name != "student alone" and name not in costs]
    rounds = {name: [] for name in names}
    for _ in range(3 if len(names) > 1 else 0):
        for name in names:
            folder = Path(work) / "costs" / name.replace(" ", "_").replace(",", "")
            shutil.rmtree(folder, ignore_errors=True)
            words = ["--seed", "0", "--save_dir", str(folder), "--iters", "40", "--log_iters", "1"]
            train(name, folder, work, words, core=0)
            records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            rounds[name].append(statistics.median(r["batch_cost"] for r in records[10:] if r["kind"] == "train"))
            print(json.dumps({name: rounds[name][-1]}), flush=True)
    found = {name: statistics.median(values) for name, values in rounds.items() if values}
    if found:
        scale = costs.get("student alone", found["student alone"]) / found["student alone"]
        costs.update({name: seconds * scale for name, seconds in found.items()})


def distilled(name, folder, work, words):
    """The command of a recipe, its file written beside its results."""
    tokens = name.startswith("tokens: ")
    recipe = TOKEN_RECIPES[name.removeprefix("tokens: ")] if tokens else RECIPES[name]
    student = {"_base_": str(ROOT / STUDENT), "distill": recipe, "distill_loss": None}
    (folder / "student.yml").write_text(yaml.safe_dump(student, sort_keys=False))
    command = ["slim/distill/distill_train.py", "--student_config", str(folder / "student.yml"), *words]
    command += ["--teacher_eval_images", "0"]
    if recipe.get("teacher") == "ema":
        return command
    command += ["--teacher_engine", "openvino"]
    weights = weights_of("token teacher/0" if tokens else "teacher/0", work)
    command += ["--teacher_config", TOKENS if tokens else TEACHER]
    return [*command, "--teacher_opts", f"model.pretrained={weights}"]


def weights_of(key, work):
    """The best weights of a run; of the teacher's, which takes an hour, those that docs/results.md was measured with."""
    made = (folder_of(key, work) / "best_model" / "model.pdparams").resolve()
    return TRAINED if key == "teacher/0" and not made.exists() else made


def folder_of(key, work):
    return Path(work) / key.replace("/", "_").replace(" ", "_").replace(":", "")


def of(runs, name):
    return [100 * value["best"] for key, value in runs.items() if key.rsplit("/", 1)[0] == name]


def beside(runs, name):
    """What the student alone reached with the seeds that a recipe was run with."""
    seeds = [key.rsplit("/", 1)[1] for key in runs if key.rsplit("/", 1)[0] == name]
    return statistics.mean(100 * runs[f"student alone/{seed}"]["best"] for seed in seeds)


def mean(runs, name):
    values = of(runs, name)
    return statistics.mean(values) if values else -math.inf


def table(results, names, teacher):
    """One row a recipe, the best first; `names` maps keys of the runs to what they are called."""
    runs, costs = results["runs"], results["costs"]
    rows = [
        "| recipe | mIoU, % | seeds | gain | gap closed | cost of a step | gain at equal time |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in sorted((name for name in names if of(runs, name)), key=lambda name: -mean(runs, name)):
        values = of(runs, name)
        error = f" ± {statistics.stdev(values) / math.sqrt(len(values)):.2f}" if len(values) > 1 else ""
        alone = beside(runs, name)
        gain = mean(runs, name) - alone
        closed = f"{100 * gain / (mean(runs, teacher) - alone):.0f} %"
        cost = costs[name] / costs["student alone"] if name in costs else math.nan
        times = ("" if math.isnan(cost) else f"{cost:.2f}", gain_at_equal_time(runs, name, cost))
        cells = (names[name], f"{mean(runs, name):.2f}{error}", len(values), f"{gain:+.2f}", closed, *times)
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def gain_at_equal_time(runs, name, cost):
    """Points over the student alone that is trained as long as this recipe takes, of the seeds that both have.

    Between the lengths that were trained, its mIoU is taken to be linear in the logarithm of the length; `<` where the recipe
    takes longer than the longest of them.
    """
    lengths = {1: "student alone"} | {iters / ITERS: longer(iters) for iters in LONGER}
    seeds = [seed for seed in "012" if all(f"{n}/{seed}" in runs for n in (name, *lengths.values()))]
    if math.isnan(cost) or not seeds or name in lengths.values():
        return ""
    reached = [statistics.mean(100 * runs[f"{n}/{seed}"]["best"] for seed in seeds) for n in lengths.values()]
    alone = np.interp(math.log(cost), [math.log(length) for length in lengths], reached)
    gain = statistics.mean(100 * runs[f"{name}/{seed}"]["best"] for seed in seeds) - alone
    return f"{'< ' if cost > max(lengths) else ''}{gain:+.2f}"


def page(results):
    """docs/results.md."""
    runs = results["runs"]
    names = {name: name for name in (*RECIPES, *map(longer, LONGER))}
    tokens = {"student alone": "student alone"} | {f"tokens: {name}": name for name in TOKEN_RECIPES}
    text = (ROOT / "benchmarks/results_template.md").read_text()
    return text.format(
        table=table(results, names, "teacher"),
        tokens=table(results, tokens, "token teacher") if of(runs, "token teacher") else "Not measured yet.",
        teacher=f"{mean(runs, 'teacher'):.1f}",
        token_teacher=f"{mean(runs, 'token teacher'):.1f}" if of(runs, "token teacher") else "not measured yet",
        runs=len(runs),
        left=len(list(queue(results))),
    )


if __name__ == "__main__":
    main()
