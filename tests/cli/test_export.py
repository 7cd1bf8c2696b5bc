"""Trained models leave for inference elsewhere, and give the same there."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
import yaml

from paddleseg_ext import config as configuration
from paddleseg_ext.cli.export import main
from paddleseg_ext.engine.export import predictor, run_predictor
from paddleseg_ext.models import build_model, build_trained_model
from paddleseg_ext.models.catalogue import model_config
from tests.cli.conftest import ROOT


def run(world, *args, code=0):
    command = [sys.executable, "-m", "paddleseg_ext.cli.export", "--config", "student.yml", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--model_path", "model.pdparams", "--save_dir", "exported", *args],
        **{"cwd": world.folder, "env": {"PYTHONPATH": str(ROOT), "HOME": str(world.folder), "PATH": ""}},
        **{"capture_output": True, "text": True, "timeout": 300},
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr.strip().splitlines()[-1]


def prepare(world, name):
    """A model of random weights in the world's configuration; returns it."""
    world.student["model"] = model_config(name, 3)
    for part in ("train", "val"):
        world.student[f"{part}_dataset"]["transforms"].insert(0, {"type": "Resize", "target_size": [96, 64]})
    world.write()
    config = configuration.load(str(world.folder / "student.yml"))
    paddle.seed(0)
    model, _ = build_model(config.model, 3)
    paddle.save(model.state_dict(), str(world.folder / "model.pdparams"))
    return build_trained_model(config.model, str(world.folder / "model.pdparams"), 3)


def deployed(world):
    """The exported model as PaddleSeg's deploy tools find it."""
    from paddleseg.deploy.infer import DeployConfig

    deploy = DeployConfig(str(world.folder / "exported/deploy.yaml"))
    return deploy, predictor(Path(deploy.model), Path(deploy.params))


def session_of(world):
    """Runs the exported model.onnx on an image."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(
        str(world.folder / "exported/model.onnx"), providers=["CPUExecutionProvider"]
    )
    return lambda image: session.run(None, {session.get_inputs()[0].name: image})[0]


def test_a_cnn_is_exported_for_any_size_and_predicts_the_same(world):
    model = prepare(world, "FastSCNN")
    text = run(world)
    assert "exported to exported (old IR): model.pdmodel, model.pdiparams, deploy.yaml" in text
    deploy, engine = deployed(world)
    sample = deploy.transforms({"img": str(world.folder / "val_0.png")})
    assert sample["img"].shape == (3, 64, 96)
    for image in (sample["img"][None].astype("float32"), np.random.default_rng(0).random((2, 3, 128, 64), np.float32)):
        with paddle.no_grad():
            wanted = model(paddle.to_tensor(image))[0].argmax(1).numpy()
        given = run_predictor(engine, image)
        assert given.dtype == np.int32 and given.shape == wanted.shape and (given == wanted).mean() > 0.999


def test_a_transformer_is_exported_too_at_a_fixed_size_with_probabilities(world):
    with_onnx = importlib.util.find_spec("paddle2onnx") and importlib.util.find_spec("onnxruntime")
    model = prepare(world, "SegFormer")
    text = run(
        world, "--output_op", "softmax", "--input_shape", "1", "3", "64", "96", *(["--onnx"] if with_onnx else [])
    )
    assert "exported to exported (" in text and "100.000 % of the pixels" in text
    differences = [float(d) for d in re.findall(r"largest difference (\S+)", text)]
    assert len(differences) == (2 if with_onnx else 1) and max(differences) < 1e-4
    info = yaml.safe_load((world.folder / "exported/deploy.yaml").read_text())["Deploy"]
    assert info["input_shape"] == [1, 3, 64, 96] and (info["output_op"], info["output_dtype"]) == ("softmax", "float32")
    _, engine = deployed(world)
    image = np.random.default_rng(0).random((1, 3, 64, 96), np.float32)
    with paddle.no_grad():
        wanted = paddle.nn.functional.softmax(model(paddle.to_tensor(image))[0], axis=1).numpy()
    np.testing.assert_allclose(run_predictor(engine, image), wanted, atol=1e-4)
    if with_onnx:
        np.testing.assert_allclose(session_of(world)(image), wanted, atol=1e-4)


def test_onnx_is_written_for_any_size_and_gives_the_same_as_paddle(world):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("paddle2onnx")
    model = prepare(world, "LPSNet")
    text = run(world, "--onnx")
    assert float(re.search(r"ONNX Runtime gives (\S+) % of the pixels the same class as the model", text)[1]) > 99.9
    deploy, engine = deployed(world)  # the Paddle model is there too
    sample = deploy.transforms({"img": str(world.folder / "val_0.png")})["img"][None].astype("float32")
    for image in (sample, np.random.default_rng(0).random((2, 3, 128, 64), np.float32)):
        with paddle.no_grad():
            wanted = model(paddle.to_tensor(image))[0].argmax(1).numpy()
        for given in (session_of(world)(image), run_predictor(engine, image)):
            assert given.dtype == np.int32 and given.shape == wanted.shape and (given == wanted).mean() > 0.999


def test_what_paddle2onnx_does_not_take_is_one_line_and_the_paddle_model_is_whole(world):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("paddle2onnx")
    prepare(world, "FastSCNN")  # pools to sizes that follow the image's
    message = run(world, "--onnx", code=2)
    assert message.startswith("error: --onnx: this model cannot be written as ONNX: [ERROR][Paddle2ONNX]")
    assert message.endswith("--input_shape N C H W; the Paddle model is whole")
    deployed(world)
    assert not (world.folder / "exported/model.onnx").exists() and not list(world.folder.glob(".exported*"))


def test_onnx_without_its_packages_names_them_before_any_work(world, called, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "paddle2onnx" else found(name, *a)
    )
    words = ["--config", "student.yml", "--model_path", "model.pdparams", "--onnx"]
    message = called(main, world, *words, code=2)
    assert message == "error: --onnx: not installed: paddle2onnx; python -m pip install paddle2onnx"


def test_exporting_again_replaces_the_files_and_leaves_others(world):
    model = prepare(world, "FastSCNN")
    (world.folder / "exported").mkdir()
    for name in ("model.json", "model.onnx", "notes.txt"):
        (world.folder / "exported" / name).write_text("old")
    run(world, "--output_op", "none")
    _, engine = deployed(world)
    image = np.random.default_rng(0).random((1, 3, 64, 96), np.float32)
    with paddle.no_grad():
        np.testing.assert_allclose(run_predictor(engine, image), model(paddle.to_tensor(image))[0].numpy(), atol=1e-4)
    left = {p.name for p in (world.folder / "exported").iterdir()}
    assert {"model.pdmodel", "model.pdiparams", "deploy.yaml", "notes.txt"} <= left and not {
        "model.json",
        "model.onnx",
    } & left
    assert not list(world.folder.glob(".exported*"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--model_path", "nowhere.pdparams"), "error: nowhere.pdparams: no such weights file"),
        (
            ("--input_shape", "1", "3", "0", "8"),
            "error: --input_shape is N, C, H and W, each at least 1, but got [1, 3, 0, 8]",
        ),
        (("--config", "other.yml"), "error: other.yml: no such file"),
        (("--opts", "model.num_classes=3", "model.type='UNet'"), "error: model.pdparams: 0 of "),
        (
            ("--opts", "val_dataset.val_path='broken.txt'"),
            "error: student.yml:17: val_dataset: ./broken.png: not a readable image",
        ),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_left(world, args, message):
    prepare(world, "FastSCNN")
    (world.folder / "broken.png").write_bytes(b"no image")
    (world.folder / "broken.txt").write_text("broken.png val_0_label.png\n")
    assert run(world, *args, code=2).startswith(message)
    assert not (world.folder / "exported").exists() and not list(world.folder.glob(".exported*"))
