"""The tables of docs/performance.md: measured setting by setting, kept in docs/performance.json, written between marks."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from step_ways import Setting

BEGIN, END = "<!-- begin: benchmarks/step.py --page -->", "<!-- end: benchmarks/step.py --page -->"
DEFAULT = Setting()
LITE = replace(DEFAULT, student="PPLiteSeg/STDC1")
LARGE = replace(DEFAULT, batch=1, size=(512, 512), classes=19)
MAIN = (DEFAULT, LARGE, LITE, replace(LARGE, student=LITE.student))
GROWTH = (
    *(replace(DEFAULT, batch=batch) for batch in (1, 4)),
    *(replace(DEFAULT, classes=classes) for classes in (19, 150)),
    *(replace(DEFAULT, size=(size, size)) for size in (128, 384)),
    *(replace(DEFAULT, pairs=pairs) for pairs in (2, 4)),
    replace(DEFAULT, teachers=2),
)
SWITCHED = replace(DEFAULT, student=DEFAULT.teacher, batch=4)
STEPS = {
    "alone": "the student alone",
    "free_step": "distilled by a teacher that costs nothing",
    "cached_step": "distilled from stored outputs",
    "engine_step": "distilled by the engine",
    "layer_step": "distilled by the Paddle layer",
    "tutorial_loop": "the tutorial's loop",
}
SWITCH_NAMES = {"alone": "none", "bf16": "--precision bf16", "accumulate": "--accumulate 2", "recompute": "--recompute"}


def write_page(
    page: Path, repeats: int, measure: Callable[..., dict], measure_switches: Callable[..., dict], machine: dict
) -> None:
    """Measure what the record beside the page lacks, and write the page anew after each setting."""
    path = page.with_suffix(".json")
    record = json.loads(path.read_text()) if path.exists() else {"machine": machine, "results": {}}
    if record["machine"] != machine:
        raise SystemExit(f"{path} was measured on another machine or with other versions; move it away to begin anew")
    wanted = [(f"main: {s}", lambda s=s: measure(s, repeats)) for s in MAIN]
    wanted.append((f"switches: {SWITCHED}", lambda: measure_switches(SWITCHED, repeats)))
    wanted += [(f"growth: {s}", lambda s=s: measure(s, repeats, everything=False)) for s in GROWTH]
    for name, run in wanted:
        if name not in record["results"]:
            record["results"][name] = run()
            _replace_file(path, json.dumps(record, indent=1) + "\n")
            print(f"measured {name}", flush=True)
        _replace_file(page, with_tables(page.read_text(encoding="utf-8"), record))


def with_tables(text: str, record: dict) -> str:
    """The page with its generated part from the record."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{tables(record)}\n{END}{after}"


def tables(record: dict) -> str:
    """All tables, of what the record has."""
    machine, results = record["machine"], record["results"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    has = ", ".join(machine["has"]) or "no AVX-512"
    text = f"Measured on {machine['cpu']} ({has}), {machine['threads']} threads, {versions}.\n"
    for result in _of(results, "main"):
        text += _main_table(result)
    for result in _of(results, "switches"):
        text += _switch_table(result)
    return text + _growth_table([*_of(results, "main")[:1], *_of(results, "growth")])


def _of(results: dict, part: str) -> list[dict]:
    return [result for name, result in results.items() if name.startswith(f"{part}: ")]


def _main_table(result: dict) -> str:
    seconds, ratios, peaks = result["seconds"], result["ratios"], result["peak_mib"]
    text = f"\n### {result['title']}\n\n"
    text += "| a step | seconds | to the student alone | peak memory (MiB) | to the student alone |\n"
    text += "| --- | --- | --- | --- | --- |\n"
    for name, said in STEPS.items():
        if name not in seconds:
            continue
        ratio = 1.0 if name == "alone" else ratios[f"{name}_to_student_alone"]
        memory = f"{peaks[name]:.0f} | {peaks[name] / peaks['alone']:.2f}" if name in peaks else " | "
        text += f"| {said} | {seconds[name]:.3f} | {ratio:.3f} | {memory} |\n"
    times = ratios["tutorial_loop_to_engine_step"]
    text += f"\nThe engine is {result['engine']}. The tutorial's loop takes {times:.2f} times as long as the step with it; the "
    text += "machinery of distillation (a step whose teacher costs nothing, less the student's) is "
    text += f"{100 * ratios['machinery_share_of_engine_step']:.1f} % of that step.\n\n"
    text += "| the teacher's forward | seconds |\n| --- | --- |\n"
    forwards = {"teacher_graph": "Paddle layer, graph kept", "teacher_layer": "Paddle layer"}
    forwards |= {
        n: n.removeprefix("teacher_").replace("_", " ") for n in seconds if n.startswith("teacher_")
    } | forwards
    forwards.pop("teacher_engine")
    return text + "".join(f"| {said} | {seconds[name]:.3f} |\n" for name, said in forwards.items())


def _switch_table(result: dict) -> str:
    size = "x".join(map(str, (result["setting"]["batch"], 3, *result["setting"]["size"])))
    text = f"\n### Switches of training\n\n{result['title']} alone, {size}.\n\n"
    text += "| switch | seconds | to none | peak memory (MiB) | to none |\n| --- | --- | --- | --- | --- |\n"
    for name, said in SWITCH_NAMES.items():
        ratio = 1.0 if name == "alone" else result["ratios"][f"{name}_to_alone"]
        peak, least = result["peak_mib"][name], result["peak_mib"]["alone"]
        text += f"| {said} | {result['seconds'][name]:.3f} | {ratio:.2f} | {peak:.0f} | {peak / least:.2f} |\n"
    return text


def _growth_table(results: list[dict]) -> str:
    text = "\n### How costs grow\n\nSeconds; the first row is the first table's setting. Teacher: its forward by the engine "
    text += "alone. Machinery: a step whose teacher costs nothing, less the student's.\n\n"
    text += "| batch | classes | size | pairs | teachers | student | teacher | machinery | step to student alone |\n"
    text += "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    for result in results:
        setting, seconds = result["setting"], result["seconds"]
        cells = [setting["batch"], setting["classes"], "x".join(map(str, setting["size"])), setting["pairs"]]
        cells += [setting["teachers"], f"{seconds['alone']:.3f}", f"{seconds['teacher_engine']:.3f}"]
        cells += [f"{seconds['free_step'] - seconds['alone']:.3f}"]
        cells += [f"{result['ratios']['engine_step_to_student_alone']:.3f}"]
        text += "| " + " | ".join(map(str, cells)) + " |\n"
    return text


def _replace_file(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
