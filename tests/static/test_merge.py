"""A teacher's program inside a student's."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from worlds import PLACE, Net, Program, by_hand, by_layers, data, fill, merged, run

from paddleseg_ext import static
from paddleseg_ext.errors import ConfigError, WeightsError
from paddleseg_ext.models.safe_load import safe_load
from paddleseg_ext.static.variables import find, parameters

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def static_mode():
    paddle.enable_static()
    yield
    paddle.disable_static()


@pytest.fixture(scope="module")
def wanted():
    return np.array(by_layers())


def values(program, scope):
    return {name: np.array(scope.find_var(name).get_tensor()) for name in parameters(program)}


def test_the_merged_program_trains_as_layers_do(static_mode, wanted):
    np.testing.assert_allclose(run(*merged()), wanted, rtol=1e-5, atol=1e-7)


def test_the_merged_program_trains_as_one_written_by_hand(static_mode, wanted):
    np.testing.assert_allclose(run(*by_hand()), wanted, rtol=1e-5, atol=1e-7)


def test_on_the_old_ir_the_losses_are_the_same(wanted):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/static/worlds.py"), "old"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), wanted, rtol=1e-5, atol=1e-7)


def test_the_teachers_part_stays_as_it_was_and_is_no_concern_of_the_optimizer(static_mode):
    student, executor, scope, losses = merged()
    before = values(student.main, scope)
    run(student, executor, scope, losses)
    after = values(student.main, scope)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed and not [name for name in changed if name.startswith("teacher_")]
    assert sum(name.startswith("teacher_") for name in before) == sum(not n.startswith("teacher_") for n in before) == 6
    teachers = [v for n, v in parameters(student.main).items() if n.startswith("teacher_")]
    assert all(v.stop_gradient for v in teachers)


def test_equal_names_of_both_do_not_clash(static_mode):
    """Names are counted from zero in both programs; the teacher's values come from a scope of its own."""
    student, _, scope, _ = merged()
    found = values(student.main, scope)
    convolution = next(name for name, value in found.items() if value.ndim == 4 and not name.startswith("teacher_"))
    assert not np.array_equal(found[convolution], found[f"teacher_{convolution}"])


def test_the_teachers_own_program_is_left_as_it_was(static_mode):
    student, teacher = Program(), Program(dropout=0.5)
    paddle.static.Executor(PLACE).run(teacher.start)
    count = len(teacher.main.global_block().ops)
    static.merge(teacher.main, student.main, {"image": "image"}, PLACE)
    ops = teacher.main.global_block().ops
    assert len(ops) == count
    assert not next(op for op in ops if op.name() == "pd_op.batch_norm_").attrs()["is_test"]


def test_features_are_listed_without_parameters_and_pairs_of_equal_shape_suggested(static_mode, capsys):
    student, teacher = Program(with_label=True), Program()
    listed = {v.name: v for v in static.list_feature_vars(student.main)}
    assert (
        listed["relu_0"].shape == (-1, 6, 8, 8)
        and listed["relu_0"].dtype == "FLOAT32"
        or "float" in listed["relu_0"].dtype.lower()
    )
    assert listed["relu_0"].operation == "relu" and not {"image", "label"} & set(listed)
    pairs = {(s.name, t.name) for s, t in static.suggest_pairs(student.main, teacher.main)}
    assert ("conv2d_1", "conv2d_1") in pairs
    static.print_pairs(student.main, teacher.main)
    assert "conv2d_1 [-1, 4, 8, 8] (conv2d)  <-  conv2d_1 (conv2d)" in capsys.readouterr().out


def test_names_stay_when_the_program_grows(static_mode):
    student, teacher = Program(), Program()
    paddle.static.Executor(PLACE).run(teacher.start)
    first = {v.name: find(student.main, v.name, "") for v in static.list_feature_vars(student.main)}
    static.merge(teacher.main, student.main, {"image": "image"}, PLACE)
    with paddle.static.program_guard(student.main):
        paddle.nn.functional.relu(student.feature)
    again = [v.name for v in static.list_feature_vars(student.main)]
    assert all(find(student.main, name, "").is_same(value) for name, value in first.items())
    assert again[-1] == "relu_1" and "teacher_relu_0" in again and len(set(again)) == len(again)


def test_a_loss_of_ones_own_takes_variables_by_name(static_mode):
    student, executor, scope, _ = merged()

    def largest(a, b):
        return (a - b).abs().max()

    with paddle.static.program_guard(student.main):
        value = static.loss(largest, student.main, a="relu_0", b="teacher_relu_0")
        pair = [find(student.main, name, "") for name in ("relu_0", "teacher_relu_0")]
    image, label = data()
    with paddle.static.scope_guard(scope):
        given, a, b = executor.run(student.main, feed={"image": image, "label": label}, fetch_list=[value, *pair])
    assert float(given) == pytest.approx(np.abs(a - b).max(), rel=1e-6)


def test_the_student_is_saved_and_exported_without_the_teacher(static_mode, tmp_path):
    student, executor, scope, losses = merged()
    run(student, executor, scope, losses)
    with paddle.static.scope_guard(scope):
        static.save_student(student.main, str(tmp_path / "student.pdparams"), scope=scope)
        test = student.main.clone()
        test.set_is_test_attr()
        static.export_student(test, str(tmp_path / "inference/model"), ["image"], ["conv2d_1"], executor)
        image, _ = data()
        logits = find(test, "conv2d_1", "")
        # What is exported is compared with the same program in test mode, on the scope's values.
        feed = {"image": image, "label": np.zeros((5, 8, 8), "int64")}
        (expected,) = executor.run(pruned(test, logits), feed={"image": feed["image"]}, fetch_list=[logits])
    saved = safe_load(str(tmp_path / "student.pdparams"))
    assert len(saved) == 6 and not [name for name in saved if name.startswith("teacher_")]
    content = (tmp_path / "inference/model.json").read_text()
    assert "teacher_" not in content
    from paddle.inference import Config, create_predictor

    config = Config(str(tmp_path / "inference/model.json"), str(tmp_path / "inference/model.pdiparams"))
    config.disable_glog_info()
    config.disable_mkldnn()
    predictor = create_predictor(config)
    handle = predictor.get_input_handle("image")
    handle.copy_from_cpu(image)
    predictor.run()
    given = predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()
    np.testing.assert_allclose(given, expected, atol=1e-5)


def pruned(program, value):
    """The program without what the value does not need: no label has to be fed."""
    return paddle.static.io.normalize_program(program, [static.variables.inputs(program)["image"]], [value])


@pytest.mark.parametrize("layout", ["one file", "folder", "a file each"])
def test_teachers_weights_are_loaded_from_a_file_or_a_folder_and_verified(static_mode, tmp_path, layout):
    teacher, scope, executor = Program(), paddle.static.Scope(), paddle.static.Executor(PLACE)
    with paddle.static.scope_guard(scope):
        executor.run(teacher.start)
        fill(teacher.main, scope, 3)
        wanted = values(teacher.main, scope)
        path = tmp_path
        if layout == "a file each":
            for name, value in wanted.items():
                write_as_paddle(tmp_path / name, value)
        else:
            path = tmp_path / ("t.pdparams" if layout == "one file" else "model.pdparams")
            static.save_student(teacher.main, str(path), scope=scope)
            path = path if layout == "one file" else tmp_path
        fill(teacher.main, scope, 4)
        static.load_teacher(teacher.main, str(path), PLACE, scope=scope)
    assert all(np.array_equal(value, wanted[name]) for name, value in values(teacher.main, scope).items())


def write_as_paddle(path, value):
    """Paddle's save operator's layout: no nesting, a description of dtype (5: float32) and sizes, the values."""
    description = b"\x08\x05" + b"".join(b"\x10" + bytes([size]) for size in value.shape)
    header = (0).to_bytes(4, "little") + (0).to_bytes(8, "little") + (0).to_bytes(4, "little")
    path.write_bytes(header + len(description).to_bytes(4, "little") + description + value.tobytes())


def test_weights_that_do_not_fit_are_named_and_nothing_is_changed(static_mode, tmp_path):
    teacher, scope = Program(), paddle.static.Scope()
    with paddle.static.scope_guard(scope):
        paddle.static.Executor(PLACE).run(teacher.start)
        before = values(teacher.main, scope)
        name = sorted(before)[0]
        for content, message in (
            ({k: v for k, v in before.items() if k != name}, f"1 of 6 parameters are missing, such as '{name}'"),
            ({**before, name: np.zeros([9], "float32")}, rf"'{name}' is \[9\], the program's is"),
        ):
            paddle.save(content, str(tmp_path / "t.pdparams"))
            with pytest.raises(WeightsError, match=message):
                static.load_teacher(teacher.main, str(tmp_path / "t.pdparams"), PLACE, scope=scope)
        with pytest.raises(WeightsError, match="none.pdparams: no such file"):
            static.load_teacher(teacher.main, "none.pdparams", PLACE, scope=scope)
        assert all(np.array_equal(v, before[k]) for k, v in values(teacher.main, scope).items())


def started(program):
    paddle.static.Executor(PLACE).run(program.start)
    return program


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "data_name_map misses the teacher's input 'image'; the student's are 'image', 'label'"),
        ({"imgae": "image"}, "the teacher's program has no input 'imgae'; closest: 'image'"),
        ({"image": "imgae"}, "the student's program has no input 'imgae'; closest: 'image'"),
        ({"image": "label"}, r"the teacher's input 'image' is \[-1, 3, 8, 8\], the student's 'label' \[-1, 8, 8\]"),
    ],
)
def test_inputs_that_do_not_meet_are_named(static_mode, mapping, message):
    with pytest.raises(ConfigError, match=message):
        static.merge(started(Program()).main, Program(with_label=True).main, mapping, PLACE)


def test_an_input_that_the_teacher_does_not_use_need_not_be_mapped(static_mode):
    student, teacher = Program(), started(Program(with_label=True))
    static.merge(teacher.main, student.main, {"image": "image"}, PLACE)
    assert list(static.variables.inputs(student.main)) == ["image"]


def test_a_teacher_without_values_with_gradients_or_with_a_taken_name_is_refused(static_mode):
    scope = paddle.static.Scope()
    with pytest.raises(
        ConfigError, match="the teacher's parameter '.*' has no value; run the teacher's startup program"
    ):
        static.merge(Program().main, Program().main, {"image": "image"}, PLACE, scope=scope)
    teacher = started(Program())
    student = Program()
    static.merge(teacher.main, student.main, {"image": "image"}, PLACE)
    with pytest.raises(ConfigError, match="has a variable 'teacher_.*' already; choose another name_prefix"):
        static.merge(teacher.main, student.main, {"image": "image"}, PLACE)
    trained = started(Program())
    with paddle.static.program_guard(trained.main, trained.start):
        paddle.optimizer.SGD(0.1).minimize(trained.logits.mean())
    with pytest.raises(ConfigError, match="the teacher's program has gradients .*; build it without an optimizer"):
        static.merge(trained.main, Program().main, {"image": "image"}, PLACE)


class Dropping(Net):
    """Its dropout is of whole channels: numbers that test mode does not stop."""

    def __init__(self):
        super().__init__()
        self.drop = paddle.nn.Dropout2D(0.5)


def test_what_would_stay_random_in_test_mode_is_refused(static_mode, tmp_path):
    def program(training):
        main, start = paddle.static.Program(), paddle.static.Program()
        with paddle.static.program_guard(main, start):
            layer = Dropping()
            layer.train() if training else layer.eval()
            paddle.normal(shape=[3])  # of which nothing comes, as where models initialise themselves
            layer(paddle.static.data("image", [None, 3, 8, 8], "float32"))
        executor = paddle.static.Executor(PLACE)
        executor.run(start)
        return main, executor

    message = (
        r"draws random numbers \(\w+\), as Dropout2D and DropPath do .* build it from the layer after layer.eval\(\)"
    )
    main, executor = program(training=True)
    with pytest.raises(ConfigError, match=f"merge: the teacher: the program {message}"):
        static.merge(main, Program().main, {"image": "image"}, PLACE)
    last = static.list_feature_vars(main)[-1].name
    with pytest.raises(ConfigError, match=f"export_student: the program {message}"):
        static.export_student(main, str(tmp_path / "model"), ["image"], [last], executor)
    first = next(v.name for v in static.list_feature_vars(main) if "relu" in v.name)
    static.export_student(main, str(tmp_path / "model"), ["image"], [first], executor)  # does not need it
    static.merge(program(training=False)[0], Program().main, {"image": "image"}, PLACE)


def test_unknown_variables_and_shapes_that_differ_are_named_before_anything_runs(static_mode):
    student = merged()[0]
    with pytest.raises(
        ConfigError, match="l2: teacher: the program has no variable 'teacher_relu_7'; closest: 'teacher_relu_0'"
    ):
        static.l2("teacher_relu_7", "relu_0", student.main)
    with pytest.raises(
        ConfigError, match=r"kl: the student's variable is \[-1, 6, 8, 8\], the teacher's \[-1, 4, 8, 8\]"
    ):
        static.kl("teacher_conv2d_1", "relu_0", student.main)


def test_asking_for_the_old_ir_too_late_says_what_to_do():
    with pytest.raises(ConfigError, match="paddle is already imported .* call it before the first `import paddle`"):
        static.use_old_ir()


def test_nothing_of_paddle_is_imported_before_it_is_used():
    code = "import sys; from paddleseg_ext import static; static.use_old_ir(); assert 'paddle' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
