"""Distillation from a teacher on another port: the same as from one in this process, and what happens when it is gone."""

import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import DISTILL, LAUNCH, ROOT, same_bits

from paddleseg_ext.cli import args as arguments
from paddleseg_ext.cli.distillation import open_distillation
from paddleseg_ext.cli.remote import is_served
from paddleseg_ext.cli.training import build_model_to_train, open_session
from paddleseg_ext.distill.user_file import load_user_file
from paddleseg_ext.errors import ConfigError
from tests.cli.launch import ToyNet
from tests.service.processes import ToyServer, free_port

SCRIPT = Path(__file__).with_name("served_toy.py")


class Served(ToyServer):
    script = SCRIPT

    def __init__(self, weights, classes=3, port=0):
        super().__init__(words=[port, weights, classes])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    paddle.seed(7)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pdparams"
    paddle.save(ToyNet(3, width=16, norm=True, dropout=0.5).state_dict(), str(path))
    return path


@pytest.fixture(scope="module")
def served(weights):
    server = Served(weights).ready()
    yield server
    server.close()


@pytest.fixture
def world(world, weights):
    """With the teacher's weights, and a student as wide, so that its feature needs no connector with weights of its own."""
    world.teacher["model"]["pretrained"] = str(weights)
    world.student["model"]["width"] = 16
    world.student["distill"] = {"features": [{"student": "conv1", "teacher": "conv1", "loss": "HintLoss"}]}
    world.write()
    return world


def losses(world, save_dir):
    return [[r["distill/KLLoss"], r["distill/HintLoss_conv1"]] for r in world.records("train", save_dir)]


def test_the_losses_are_those_of_the_teacher_in_this_process(world, served):
    world.run(DISTILL, save_dir="here", teacher_engine="model")
    text = world.run(DISTILL, save_dir="there", teacher_config=None, distill_teachers=served.endpoint, num_workers=2)
    assert "serve 'toy' 'logits' FP32 [-1, 3, -1, -1], 'conv1' FP32 [-1, 16, -1, -1]" in text
    np.testing.assert_allclose(losses(world, "there"), losses(world, "here"), rtol=2e-4)


def test_without_a_teacher_training_ends_with_a_checkpoint_and_goes_on_to_the_same_bits(world, served, weights):
    port = free_port()
    flags = {
        "teacher_config": None,
        "distill_teachers": f"127.0.0.1:{port}",
        "save_dir": "cut",
        "teacher_timeout": 2,
        "save_interval": 60,
    }
    server = Served(weights, port=port).ready()
    try:
        command = [*LAUNCH, *world.command(DISTILL, iters=60, **flags)]
        process = subprocess.Popen(command, cwd=world.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for line in process.stdout:
            if "iter: 3/60" in line:
                server.halt()
                break
        said, error = process.communicate(timeout=90)
    finally:
        server.close()
    assert process.returncode == 2, said + error
    [line] = [line for line in error.splitlines() if line.startswith("error: ")]
    assert re.search(rf"no answer from any teacher for 2 s: [01] of 1 teachers ready \(127.0.0.1:{port}", line)
    assert "Traceback" not in error
    saved = line.split("--resume_model ")[1].strip()
    done = int(saved.removeprefix("cut/iter_"))
    assert (world.folder / saved / "model.pdparams").is_file() and 3 <= done < 60
    flags |= {"distill_teachers": served.endpoint, "iters": 60, "seed": None, "resume_model": "auto"}
    text = world.run(DISTILL, **flags)
    assert f"resumed from {saved}" in text
    world.run(DISTILL, teacher_config=None, distill_teachers=served.endpoint, iters=60, save_interval=60)
    for name in ("model.pdparams", "model.pdopt"):
        assert same_bits(*(world.weights(f"{folder}/iter_60/{name}") for folder in ("out", "cut")))


def test_a_student_that_waits_for_teachers_stops_when_it_is_asked_to(world, weights):
    server = Served(weights).ready()
    try:
        flags = {"teacher_config": None, "distill_teachers": server.endpoint, "teacher_timeout": 80, "iters": 60}
        command = [*LAUNCH, *world.command(DISTILL, **flags, save_interval=60)]
        process = subprocess.Popen(
            command, cwd=world.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for line in process.stdout:
            if "iter: 3/60" in line:
                server.halt()
            if "waiting for teachers for" in line:
                process.send_signal(signal.SIGTERM)
                break
        said = process.communicate(timeout=30)[0]
    finally:
        server.close()
    assert process.returncode == 0, said
    saved = re.search(r"asked to stop while waiting for teachers: .*; go on with --resume_model (out/iter_\d+)", said)[
        1
    ]
    assert (world.folder / saved / "model.pdparams").is_file()


def test_an_address_where_nobody_is_ends_the_command_at_its_start(world):
    endpoint = f"127.0.0.1:{free_port()}"
    text = world.run(DISTILL, code=2, teacher_config=None, distill_teachers=endpoint, teacher_timeout=1)
    [line] = [line for line in text.splitlines() if line.startswith("error: ")]
    assert f"--distill_teachers {endpoint}: no teacher can be reached" in line and "Traceback" not in text


def refused(world, monkeypatch, *words):
    """What the command's start says, in this process."""
    monkeypatch.chdir(world.folder)
    parser = arguments.parser("")
    arguments.add_distillation(parser, distill_config=str(ROOT / "slim/distill/distill_config.py"))
    arguments.add_training(parser)
    args = parser.parse_args(["--student_config", "student.yml", "--device", "cpu", "--seed", "1", *words])
    session = open_session(args, args.student_config, with_unlabelled=True)
    student, user = build_model_to_train(session), load_user_file(args.distill_config)
    with pytest.raises(ConfigError) as caught, open_distillation(session, student, user):
        pass
    return str(caught.value)


def test_a_teacher_that_does_not_fit_ends_the_command_at_its_start(world, served, monkeypatch, tmp_path):
    paddle.save(ToyNet(4, width=16, norm=True).state_dict(), str(tmp_path / "four.pdparams"))
    other = Served(tmp_path / "four.pdparams", classes=4).ready()
    try:
        said = refused(world, monkeypatch, "--distill_teachers", other.endpoint)
        assert "'logits' has 4 classes, the student 3" in said
        said = refused(world, monkeypatch, "--distill_teachers", f"{served.endpoint},{other.endpoint}")
        assert f"{served.endpoint} serves 'toy'" in said and f"{other.endpoint} 'toy'" in said
        said = refused(world, monkeypatch, "--distill_teachers", other.endpoint, "--teacher_model", "toys")
        assert other.endpoint in said and "toys" in said
    finally:
        other.close()
    world.student["distill"]["features"][0]["teacher"] = "conv9"
    world.write()
    said = refused(world, monkeypatch, "--distill_teachers", served.endpoint)
    assert "distill.features[0]" in said and "has no output 'conv9'" in said and "closest: 'conv1'" in said
    world.student["distill"] = {"teacher": "ema"}
    world.write()
    assert "leave out one of the two" in refused(world, monkeypatch, "--distill_teachers", served.endpoint)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"distill_teachers": "nowhere"}, "--distill_teachers: host:port"),
        ({"discovery": "127.0.0.1:1"}, "--discovery needs --teacher_service too"),
        ({"teacher_service": "seg"}, "--teacher_service needs --discovery too"),
        (
            {"distill_teachers": "127.0.0.1:1", "discovery": "127.0.0.1:1", "teacher_service": "s"},
            "leave out one of the two",
        ),
        ({"distill_teachers": "127.0.0.1:1", "teacher_timeout": 0}, "--teacher_timeout: more than 0"),
        ({"distill_teachers": "127.0.0.1:1", "teacher_engine": "paddle"}, "--teacher_engine paddle"),
        ({"distill_teachers": "127.0.0.1:1", "teachers_at_most": 2}, "--teachers_at_most is for --discovery"),
        (
            {"distill_teachers": "127.0.0.1:1", "teacher_opts": "a=1"},
            "--teacher_opts changes values of a --teacher_config",
        ),
        ({"teacher_timeout": 5}, "--teacher_timeout is for teachers on other machines"),
        ({"distill_teachers": "127.0.0.1:1", "tls_ca": "no.pem"}, "--tls_ca no.pem: No such file"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, message):
    """Before anything is built, so that no process is needed."""
    parser = arguments.parser("")
    arguments.add_distillation(parser, distill_config="x.py")
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    with pytest.raises(ConfigError, match=message):
        is_served(parser.parse_args(["--student_config", "s.yml", *words]))
