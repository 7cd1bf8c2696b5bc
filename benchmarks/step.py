"""What a step of distillation costs beside the student's own, by what runs the teacher, and beside the tutorial's loop.

python benchmarks/step.py --json step.json                      one setting, by flags
python benchmarks/step.py --page docs/performance.md            all settings of the page, and its tables

Every round does everything once, in an order that turns; a ratio is the median over the rounds of two times of one round, so
that a busy machine slows both. Peak memory is that of a process of its own, with its engine's.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from step_ways import Setting, Way, World, with_graph

from paddleseg_ext.engine import env
from paddleseg_ext.inference.runners import BACKENDS
from paddleseg_ext.inference.select import select

WARM_UP = 2
PEAKS = 3  # processes whose peaks' median is taken: how memory is cut up differs by a few percent
SWITCHES = ("bf16", "accumulate", "recompute")
MEMORY = ("alone", "layer_step", "engine_step", "cached_step", "tutorial_loop")


def measure(setting: Setting, repeats: int, cache: Path, everything: bool = True) -> dict:
    """Times in seconds, ratios, peaks of memory and what engines were tried; without `everything`, only what a step costs."""
    world = World(setting, cache)
    with world.stack:
        contest, _ = world.contest()
        choice = select(contest, list(BACKENDS) if everything else ["openvino bf16", "openvino fp32", "paddle fp32"])
        if choice.run is not None:
            choice.run.close()
        passed = [t.name for t in choice.trials[1:] if t.milliseconds is not None]
        ways = engine_ways(world, choice.name, passed if everything else [])
        if everything:
            ways |= full_ways(world)
        seconds = timed(ways, repeats)
    result = {"setting": asdict(setting), "title": str(setting), "repeats": repeats}
    result |= {"engine": choice.name, "tried": list(map(str, choice.trials))}
    result["seconds"] = {name: round(statistics.median(values), 4) for name, values in seconds.items()}
    result["ratios"] = ratios(seconds)
    return with_memory(result, cache) if everything else result


def engine_ways(world: World, chosen: str, passed: list[str]) -> dict[str, Way]:
    """The student alone, and distilled by a teacher that costs nothing and by the chosen engine, which is also asked alone."""
    ways: dict[str, Way] = {"alone": world.alone(), "free_step": world.distilled(world.remembered())}
    engines = {name: world.engine(name) for name in dict.fromkeys([*passed, chosen]) if name != "layer"}
    for name, teacher in engines.items():
        ways[f"teacher_{name.replace(' ', '_')}"] = lambda teacher=teacher: teacher(world.batch)
    teacher = engines.get(chosen, world.layer)
    ways["engine_step"] = world.distilled(teacher)
    ways["teacher_engine"] = lambda: teacher(world.batch)
    return ways


def full_ways(world: World) -> dict[str, Way]:
    """The layer with and without its graph, steps with the layer and with stored outputs, and the tutorial's loop."""
    return {
        "teacher_layer": lambda: world.layer(world.batch),
        "teacher_graph": lambda: with_graph(world.layer.model, world.batch),
        "layer_step": world.distilled(world.layer),
        "tutorial_loop": world.tutorial(),
        "cached_step": world.cached(),
    }


def timed(ways: dict[str, Way], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for repeat in range(repeats + WARM_UP):
        turned = names[repeat % len(names) :] + names[: repeat % len(names)]
        for name in turned:
            started = time.perf_counter()
            ways[name]()
            if repeat >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Medians over the rounds. Machinery: a step whose teacher costs nothing, less the student's own."""

    def median(of) -> float:
        rounds = [dict(zip(seconds, row, strict=True)) for row in zip(*seconds.values(), strict=True)]
        return round(statistics.median(of(row) for row in rounds), 4)

    found = {
        "engine_step_to_student_alone": median(lambda s: s["engine_step"] / s["alone"]),
        "free_step_to_student_alone": median(lambda s: s["free_step"] / s["alone"]),
        "machinery_share_of_engine_step": median(lambda s: (s["free_step"] - s["alone"]) / s["engine_step"]),
        "teacher_engine_to_student_alone": median(lambda s: s["teacher_engine"] / s["alone"]),
    }
    if "tutorial_loop" in seconds:
        found |= {
            "layer_step_to_student_alone": median(lambda s: s["layer_step"] / s["alone"]),
            "tutorial_loop_to_student_alone": median(lambda s: s["tutorial_loop"] / s["alone"]),
            "engine_step_to_tutorial_loop": median(lambda s: s["engine_step"] / s["tutorial_loop"]),
            "tutorial_loop_to_engine_step": median(lambda s: s["tutorial_loop"] / s["engine_step"]),
            "teacher_layer_to_engine": median(lambda s: s["teacher_layer"] / s["teacher_engine"]),
            "cached_step_to_student_alone": median(lambda s: s["cached_step"] / s["alone"]),
        }
    return found


def measure_switches(setting: Setting, repeats: int, cache: Path) -> dict:
    """The student alone under each switch of training, beside without."""
    world = World(setting, cache)
    with world.stack:
        ways = {"alone": world.alone()} | {name: world.switched(name) for name in SWITCHES}
        seconds = timed(ways, repeats)
    rows = [dict(zip(seconds, row, strict=True)) for row in zip(*seconds.values(), strict=True)]
    result = {"setting": asdict(setting), "title": setting.student, "repeats": repeats, "engine": "layer"}
    result["seconds"] = {name: round(statistics.median(values), 4) for name, values in seconds.items()}
    result["ratios"] = {
        f"{name}_to_alone": round(statistics.median(row[name] / row["alone"] for row in rows), 4) for name in SWITCHES
    }
    return with_memory(result, cache)


def with_memory(result: dict, cache: Path) -> dict:
    """The result with the peaks, in MiB, of processes that do one thing only."""
    peaks = {}
    for name in (*MEMORY, *SWITCHES):
        if name not in result["seconds"]:
            continue
        asked = json.dumps({"way": name, "engine": result["engine"], "setting": result["setting"], "cache": str(cache)})
        peaks[name] = round(statistics.median(_peak_in_child(asked) for _ in range(PEAKS)), 1)
    for name in peaks:
        result["ratios"][f"memory_of_{name}_to_student_alone"] = round(peaks[name] / peaks["alone"], 4)
    if "engine_step" in peaks:
        result["ratios"]["memory_to_student_alone"] = round(peaks["engine_step"] / peaks["alone"], 4)
    return result | {"peak_mib": peaks}


def _peak_in_child(asked: str) -> float:
    done = subprocess.run([sys.executable, __file__, "--peak", asked], capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def peak(asked: dict) -> float:
    """MiB that this process and its engine's have taken at most together, before and in a few steps of one kind."""
    setting = Setting(**{**asked["setting"], "size": tuple(asked["setting"]["size"])})
    world = World(setting, Path(asked["cache"]))
    with world.stack:
        by_engine = asked["way"] == "engine_step" and asked["engine"] != "layer"
        engine = world.engine(asked["engine"], rests=True) if by_engine else None
        known = {
            "alone": world.alone,
            "layer_step": lambda: world.distilled(world.layer),
            "engine_step": lambda: world.distilled(engine or world.layer),
            "cached_step": world.cached,
            "tutorial_loop": world.tutorial,
        }
        way = world.switched(asked["way"]) if asked["way"] in SWITCHES else known[asked["way"]]()
        processes = ["self"] + ([str(engine.run.process)] if engine is not None else [])
        # An engine takes most while it compiles, before the first step: peaks of two moments are no peak.
        peaks = [sum(map(_peak_of, processes))]
        for process in processes:
            Path(f"/proc/{process}/clear_refs").write_text("5")
        for _ in range(3):
            way()
        peaks.append(sum(map(_peak_of, processes)))
        return round(max(peaks), 1)


def _peak_of(process: str) -> float:
    """Since its start, or since it was set back."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def machine() -> dict:
    """What it was measured on."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    flags = Path("/proc/cpuinfo").read_text()
    versions = {}
    for name in ("paddlepaddle", "paddleseg", "openvino", "onnxruntime", "paddle2onnx"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    has = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return {
        "cpu": names[0] if names else platform.machine(),
        "threads": env.threads(),
        "has": has,
        "versions": versions,
    }


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Setting()
    flags.add_argument("--teacher", default=default.teacher, help="MODEL or MODEL/BACKBONE")
    flags.add_argument("--student", default=default.student, help="MODEL or MODEL/BACKBONE")
    flags.add_argument("--batch", type=int, default=default.batch, help="images")
    flags.add_argument("--size", type=int, nargs=2, default=default.size, metavar=("HEIGHT", "WIDTH"))
    flags.add_argument("--classes", type=int, default=default.classes)
    flags.add_argument("--pairs", type=int, default=1, choices=(1, 2, 3, 4), help="distillation losses")
    flags.add_argument("--teachers", type=int, default=1, help="the same one so many times")
    flags.add_argument("--repeats", type=int, default=11, help="rounds that count")
    flags.add_argument("--json", type=Path, help="file to write; default: the screen")
    flags.add_argument("--page", type=Path, help="measure the settings of this page that its record beside it lacks")
    flags.add_argument("--peak", help=argparse.SUPPRESS)
    args = flags.parse_args()
    env.set_device("cpu")
    if args.peak:
        print(peak(json.loads(args.peak)))
        return
    cache = Path(os.environ.get("STEP_CACHE") or Path(tempfile.gettempdir()) / "paddleseg_ext_step")
    if args.page:
        from step_page import write_page

        measures = (partial(measure, cache=cache), partial(measure_switches, cache=cache))
        write_page(args.page, args.repeats, *measures, machine())
        return
    given = (args.teacher, args.student, args.batch, tuple(args.size), args.classes, args.pairs, args.teachers)
    result = measure(Setting(*given), args.repeats, cache) | {"machine": machine()}
    text = json.dumps(result, indent=1)
    if args.json:
        args.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
