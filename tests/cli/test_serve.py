"""From a training run, or any exported model, to a server that the stock client and ours can ask."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
import tritonclient.grpc as stock
import yaml

from paddleseg_ext.cli import serve
from paddleseg_ext.cli.serving_model import check_serving_model
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.models import build_trained_model
from paddleseg_ext.models.catalogue import model_config
from paddleseg_ext.service.client import connect
from tests.cli.conftest import ROOT, TRAIN


@contextlib.contextmanager
def serving(*args, cwd=None):
    """The command as a process; gives it, its endpoint and what it said. It must end well when it is asked to."""
    process = subprocess.Popen(
        [sys.executable, "-m", "paddleseg_ext.cli.serve", "--port", "0", *map(str, args)],
        **{"cwd": cwd, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "text": True},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT},
    )
    said = ""
    try:
        for line in process.stdout:
            said += line
            if line == "ready\n":
                break
        found = re.search(r"^serving (\S+) at (127\.0\.0\.1:\d+)", said, re.M)
        assert found, said
        yield process, found[2], said
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, said + process.stdout.read()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
        process.stdout.close()


def ask(endpoint, inputs, outputs):
    async def run():
        teacher = connect(endpoint)
        try:
            return await teacher.infer(inputs, outputs, 60)
        finally:
            await teacher.close()

    return asyncio.run(run())


class Two(paddle.nn.Layer):
    """Two inputs, two outputs: a convolution of their sum, and its means."""

    def __init__(self):
        super().__init__()
        self.conv = paddle.nn.Conv2D(3, 4, 3, padding=1)

    def forward(self, x, y):
        z = self.conv(x + y)
        return z, paddle.mean(z, [2, 3])


X, Y = np.random.default_rng(0).normal(size=(2, 2, 3, 12, 10)).astype("float32")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder with a plain Paddle inference model, and what it gives for X and Y."""
    paddle.seed(0)
    layer = Two()
    layer.eval()
    folder = tmp_path_factory.mktemp("plain")
    inputs = [paddle.static.InputSpec([None, 3, None, None], "float32", name=name) for name in "xy"]
    paddle.jit.save(paddle.jit.to_static(layer, input_spec=inputs, full_graph=True), str(folder / "inference"))
    with paddle.no_grad():
        return folder, [z.numpy() for z in layer(paddle.to_tensor(X), paddle.to_tensor(Y))]


def test_any_inference_model_is_servable_and_the_one_request_under_way_is_finished(plain):
    folder, wanted = plain
    with serving("--model", folder, "--thread", "2", "--output_dtype", "fp32", "--metrics_port", "0") as (
        process,
        endpoint,
        said,
    ):
        assert "input x: FP32 [-1, 3, -1, -1]" in said and ": FP32 [-1, 4, -1, -1]" in said
        inputs = []
        for name, array in (("x", X), ("y", Y)):
            inputs.append(stock.InferInput(name, array.shape, "FP32"))
            inputs[-1].set_data_from_numpy(array)
        with stock.InferenceServerClient(endpoint) as client:
            name = folder.name
            outputs = [t.name for t in client.get_model_metadata(name).outputs]
            result = client.infer(name, inputs)
            for output, array in zip(outputs, wanted, strict=True):
                np.testing.assert_allclose(result.as_numpy(output), array, atol=1e-5)
            large = np.zeros([32, 3, 256, 256], np.float32)
            for given in inputs:
                given.set_shape(large.shape)
                given.set_data_from_numpy(large)
            answers, came = [], threading.Event()
            client.async_infer(name, inputs, lambda result, error: (answers.append((result, error)), came.set()))
            page = f"http://127.0.0.1:{re.search('metrics at port ([0-9]+)', said)[1]}/metrics"
            end = time.monotonic() + 30
            while received(page) < 2 * large.nbytes:
                assert time.monotonic() < end
            process.send_signal(signal.SIGTERM)
            assert came.wait(60)
    assert answers[0][1] is None, answers[0][1]
    assert answers[0][0].as_numpy(outputs[0]).shape == (32, 4, 256, 256)


def received(page):
    """Bytes of tensors that a server has accepted."""
    with urllib.request.urlopen(page, timeout=10) as metrics:
        return float(re.search(r"^teacher_received_bytes_total (\S+)", metrics.read().decode(), re.M)[1])


def test_files_of_paddle_serving_give_aliases(plain, tmp_path, capsys):
    folder, wanted = plain
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    from paddleseg_ext.inference.predictor import describe

    _, outputs = describe(next(p for p in folder.iterdir() if p.suffix in (".json", ".pdmodel")))
    text = "".join(
        f'feed_var {{\n  name: "{n}"\n  alias_name: "{a}"\n  feed_type: 1\n  shape: 3\n}}\n' for n, a in ("xa", "yb")
    )
    text += f'fetch_var {{\n  name: "{outputs[1].name}"\n  alias_name: "prediction"\n  fetch_type: 1\n  shape: 4\n}}\n'
    conf = tmp_path / "serving_server_conf.prototxt"
    conf.write_text(text)
    with serving("--model", ".", "--name", "two", "--output_dtype", "fp32", cwd=tmp_path) as (_, endpoint, said):
        assert said.startswith("serving two at") and f"output {outputs[1].name} (prediction): FP32 [-1, 4]" in said
        np.testing.assert_allclose(ask(endpoint, {"a": X, "b": Y}, ["prediction"])["prediction"], wanted[1], atol=1e-5)
    conf.write_text(text.replace('"a"\n', '"a\n'))
    assert bad(capsys, "--model", str(tmp_path)).startswith(f"error: {conf}, line 3: ")


def bad(capsys, *args):
    """What the command says, in this process, before it ends with code 2."""
    with pytest.raises(SystemExit) as ended:
        serve.main(["--port", "0", *args])
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and len(said.splitlines()) == 1
    return said


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "nowhere"], "--model nowhere: no such folder"),
        (["--gpu_ids", "0;1"], "--gpu_ids 0;1: numbers with commas between them are expected"),
        (["--precision", "fp16"], "--precision fp16: paddle on a CPU has fp32 and bf16"),
        (["--engine", "openvino"], "--engine openvino: it runs ONNX models, but "),
        (["--tls_cert", "nowhere", "--tls_key", "nowhere"], "--tls_key nowhere: No such file or directory"),
        (["--token_file", "nowhere"], "--token_file nowhere: No such file or directory"),
        (["--port", "99999"], "--port 99999: a port is from 0 to 65535"),
        (["--host", "192.0.2.1"], "--port 0: 192.0.2.1:0 cannot be listened at: Cannot assign requested address"),
        (["--host", "no.such.host.invalid"], "--port 0: no.such.host.invalid:0 cannot be listened at: "),
        (["--top_k", "-1"], "--top_k -1: at least 0 is expected"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(plain, capsys, args, message):
    args = args if "--model" in args else ["--model", str(plain[0]), *args]
    assert message in bad(capsys, *args)


def test_a_folder_without_a_model_or_with_two_is_said(tmp_path, capsys):
    assert "no model in it; one is expected: NAME.pdmodel" in bad(capsys, "--model", str(tmp_path))
    for name in ("a.pdmodel", "a.pdiparams", "b.json", "b.pdiparams"):
        (tmp_path / name).touch()
    assert "2 models in it (a.pdmodel, b.json)" in bad(capsys, "--model", str(tmp_path))


def test_a_file_that_is_no_model_is_said(tmp_path, capsys):
    (tmp_path / "m.pdmodel").write_text("nothing")
    (tmp_path / "m.pdiparams").write_text("nothing")
    assert "m.pdmodel: no model of Paddle's (" in bad(capsys, "--model", str(tmp_path))


def test_a_run_leaves_a_teacher_that_serves_logits_at_their_own_resolution(world):
    world.student["model"] = model_config("FastSCNN", 3)
    for part in ("train", "val"):
        world.student[f"{part}_dataset"]["transforms"].insert(0, {"type": "Resize", "target_size": [96, 64]})
    world.student["loss"]["coef"] = [1, 0.4]
    world.write()
    text = world.run(TRAIN, "--save_serving_model", iters=2, save_interval=2)
    assert "exported to out/serving_model (old IR): model.pdmodel, model.pdiparams, serving.yml" in text
    served = yaml.safe_load((world.folder / "out/serving_model/serving.yml").read_text())
    assert served["name"] == "student" and served["inputs"][0]["alias"] == "img"
    assert served["preprocessing"]["transforms"][-1] == {"type": "Normalize"}

    from paddleseg_ext import config as configuration

    config = configuration.load(str(world.folder / "student.yml"))
    model = build_trained_model(config.model, str(world.folder / "out/iter_2/model.pdparams"), 3)
    images = np.random.default_rng(0).normal(size=(2, 3, 64, 96)).astype("float32")
    with paddle.no_grad():
        whole = model(paddle.to_tensor(images))[0]
    with serving("--model", world.folder / "out/serving_model") as (_, endpoint, said):
        assert "serving student at" in said
        given = ask(endpoint, {"img": images}, ["prediction"])["prediction"]
    assert given.dtype == np.float16 and given.shape == (2, 3, 8, 12)
    enlarged = paddle.nn.functional.interpolate(
        paddle.to_tensor(given.astype("float32")), whole.shape[2:], mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(enlarged.numpy(), whole.numpy(), atol=0.01 * float(whole.abs().max()))


def test_a_run_that_could_not_be_exported_is_refused_before_it_trains():
    config = SimpleNamespace(path="student.yml", val_dataset=None)
    session = SimpleNamespace(args=SimpleNamespace(save_serving_model=""), config=config)
    with pytest.raises(ConfigError, match="student.yml: --save_serving_model needs the key 'val_dataset'"):
        check_serving_model(session)
