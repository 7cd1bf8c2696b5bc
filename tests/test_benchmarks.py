"""The measuring of a step and the pages that commands write: what is compared with what, and what a page keeps."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import step as benchmark  # noqa: E402
import step_page as page  # noqa: E402
from step_ways import Setting, World  # noqa: E402

from paddleseg_ext.cli.engine_trial import EngineTrial  # noqa: E402
from paddleseg_ext.cli.model_trial import Trial  # noqa: E402
from paddleseg_ext.cli.models_page import ModelRecord  # noqa: E402

SMALL = Setting("LPSNet", "LPSNet", size=(64, 64), pairs=4)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Every way but the engines', which are processes of their own."""
    world = World(SMALL, tmp_path_factory.mktemp("cache"))
    with world.stack:
        ways = {"alone": world.alone(), "free_step": world.distilled(world.remembered())}
        ways |= {"engine_step": world.distilled(world.layer), "teacher_engine": lambda: world.layer(world.batch)}
        ways |= benchmark.full_ways(world) | {name: world.switched(name) for name in benchmark.SWITCHES}
        return benchmark.timed(ways, 3)


def test_everything_is_done_once_in_each_round(measured):
    assert {"alone", "free_step", "layer_step", "tutorial_loop", "teacher_graph", "bf16", "recompute"} <= set(measured)
    assert {len(values) for values in measured.values()} == {3} and all(min(v) > 0 for v in measured.values())
    found = benchmark.ratios(measured)
    for name in ("engine_step_to_student_alone", "engine_step_to_tutorial_loop", "machinery_share_of_engine_step"):
        assert name in found


def test_a_ratio_is_of_two_times_of_one_round_and_not_of_two_medians():
    steps = {"alone": [1.0, 10.0, 2.0], "engine_step": [1.1, 12.0, 2.0], "free_step": [1.0, 10.0, 2.0]}
    found = benchmark.ratios({**steps, "teacher_engine": [0.1, 2.0, 0.1]})
    assert found["engine_step_to_student_alone"] == 1.1
    assert found["machinery_share_of_engine_step"] == 0


def test_a_process_tells_its_peak():
    assert benchmark._peak_of("self") > 10


def test_a_page_is_measured_setting_by_setting_and_goes_on_where_it_was_stopped(tmp_path):
    path = tmp_path / "performance.md"
    path.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    asked, machine = [], {"cpu": "C", "threads": 2, "has": [], "versions": {"paddlepaddle": "3"}}

    def measure(setting, repeats, everything=True):
        asked.append(setting)
        if len(asked) == 6:
            raise KeyboardInterrupt
        return result(setting, everything)

    def switches(setting, repeats):
        seconds = dict.fromkeys(["alone", *benchmark.SWITCHES], 1.0)
        ratios = {f"{name}_to_alone": 1.5 for name in benchmark.SWITCHES}
        setting = {"batch": 1, "size": [8, 8]}
        return {"title": "S", "setting": setting, "seconds": seconds, "ratios": ratios, "peak_mib": seconds}

    with pytest.raises(KeyboardInterrupt):
        page.write_page(path, 1, measure, switches, machine)
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert (
        "| distilled by the engine | 1.100 | 1.100 | 120 | 1.20 |" in text and "| --recompute | 1.000 | 1.50 |" in text
    )
    page.write_page(path, 1, measure, switches, machine)
    assert len(asked) == 6 + len(page.GROWTH) - 1 and asked.count(page.MAIN[0]) == 1
    assert path.read_text().count(" | 1.100 |\n") == 1 + len(page.GROWTH)
    with pytest.raises(SystemExit, match="another machine"):
        page.write_page(path, 1, measure, switches, {**machine, "threads": 3})


def result(setting, everything):
    seconds = {"alone": 1.0, "free_step": 1.02, "engine_step": 1.1, "teacher_engine": 0.2}
    ratios = {"engine_step_to_student_alone": 1.1, "free_step_to_student_alone": 1.02}
    found = {"title": str(setting), "engine": "openvino bf16", "seconds": seconds, "ratios": ratios}
    found["setting"] = {name: getattr(setting, name) for name in ("batch", "classes", "size", "pairs", "teachers")}
    if everything:
        seconds |= {"teacher_layer": 0.9, "teacher_graph": 1.0, "teacher_openvino_bf16": 0.2}
        ratios |= {"tutorial_loop_to_engine_step": 2.0, "machinery_share_of_engine_step": 0.02}
        found["peak_mib"] = {"alone": 100, "engine_step": 120}
    return found


def test_the_page_of_models_keeps_what_was_measured_before(tmp_path):
    path = tmp_path / "models.md"
    record = ModelRecord()
    record.models["A"] = Trial("A", "B", 64, 1_000_000, "1", "L", "1", "1")
    record.write(path)
    assert "1 of 1 run" in path.read_text() and "## Engines" not in path.read_text()
    record = ModelRecord.read(path)
    tried = ("layer: 9.0 ms", "openvino bf16: 2.0 ms, error 1 % (mean 0.1 %), same class 99.00 %")
    record.engines["A"] = EngineTrial("A", 128, 2, "openvino bf16", 9.0, 2.0, 0.01, 0.99, tried)
    slow = ("layer: 1.0 ms", "paddle fp32: 2.0 ms, error 0 % (mean 0 %), same class 100.00 %")
    record.engines["C"] = EngineTrial("C", 64, 2, "layer", 1.0, 1.0, tried=slow)
    record.engines["D"] = EngineTrial("D", 64, 2, "layer", 1.0, 1.0, tried=("layer: 1.0 ms", "paddle fp32: no"))
    record.engines["E"] = EngineTrial("E", failure="it does not run")
    record.write(path)
    text = path.read_text()
    assert "2 of 3 have an engine" in text and "| A | B | 64x64 |" in text
    assert "| A | 128x128 | openvino bf16 | 9.0 | 2.0 | 4.5 | 1 % | 99.00 % |" in text
    assert json.loads(path.with_suffix(".json").read_text())["engines"]["E"]["failure"] == "it does not run"
