"""What is downloaded is whole, or not there."""

import functools
import http.server
import io
import tarfile
import threading
import zipfile

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_ext.errors import WeightsError
from paddleseg_ext.models import load_weights


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; a path that ends in `?half` promises twice what it sends."""

    def do_GET(self):
        if not self.path.endswith("?half"):
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", "2000")
        self.end_headers()
        self.wfile.write(b"x" * 1000)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    (tmp_path / "www").mkdir()
    handler = functools.partial(Handler, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def home(tmp_path, monkeypatch):
    from paddleseg.utils.env import seg_env as env

    for name in ("PRETRAINED_MODEL_HOME", "TMP_HOME"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(env, name, str(tmp_path / name))
    return tmp_path / "PRETRAINED_MODEL_HOME"


def net():
    return nn.Conv2D(3, 4, 3)


def archive(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if name.endswith("/"):
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            elif data is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc"
            else:
                info.size = len(data)
            file.addfile(info, io.BytesIO(data or b""))


def weights(model):
    buffer = io.BytesIO()
    paddle.save(model.state_dict(), buffer)
    return buffer.getvalue()


def equal(a, b):
    return np.array_equal(a.weight.numpy(), b.weight.numpy())


@pytest.mark.parametrize("kind", ["model.pdparams", "net.tar.gz", "net.zip"])
def test_weights_come_from_a_url_plain_or_packed(server, home, tmp_path, kind):
    model, other = net(), net()
    (tmp_path / "www/v1").mkdir()
    file = tmp_path / "www/v1" / kind
    if kind.endswith("gz"):
        archive(file, {"net/": None, "net/model.pdparams": weights(model)})
    elif kind.endswith("zip"):
        with zipfile.ZipFile(file, "w") as packed:
            packed.writestr("net/", "")
            packed.writestr("net/model.pdparams", weights(model))
    else:
        file.write_bytes(weights(model))
    report = load_weights(other, f"{server}/v1/{kind}")
    assert report.matched == report.total and equal(model, other)
    file.unlink()
    again = net()
    load_weights(again, f"{server}/v1/{kind}")  # from the disk
    assert equal(model, again)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/v1/none.pdparams", "404 Client Error"), ("/v1/cut.pdparams?half", "only 1000 of 2000 bytes|Incomplete")],
)
def test_a_download_that_fails_is_named_and_leaves_nothing_behind(server, home, tmp_path, path, reason):
    with pytest.raises(WeightsError, match=f"download failed .*({reason})"):
        load_weights(net(), server + path)
    left = [p for p in home.rglob("*") if p.is_file() and not p.name.endswith(".lock")]
    assert left == [] and list((tmp_path / "TMP_HOME").rglob("*")) == []


@pytest.mark.parametrize("member", ["../../outside", "/tmp/paddleseg_ext_outside", "link"])
def test_an_archive_that_leads_out_of_its_folder_is_refused(server, home, tmp_path, member):
    archive(tmp_path / "www/bad.tar.gz", {"bad/model.pdparams": b"x", member: None if member == "link" else b"x"})
    with pytest.raises(
        WeightsError, match=f"download failed .*bad.tar.gz holds '{member}', which is no file or leads out"
    ):
        load_weights(net(), f"{server}/bad.tar.gz")
    assert not (tmp_path / "outside").exists() and list(home.rglob("*.pdparams")) == []


def test_a_zip_moves_nothing_that_lies_outside_of_it(server, home, tmp_path):
    (tmp_path / "precious").mkdir()
    with zipfile.ZipFile(tmp_path / "www/bad.zip", "w") as packed:
        packed.writestr("../precious", "x")
    with pytest.raises(
        WeightsError, match=r"download failed .*bad.zip holds '\.\./precious', which is no file or leads"
    ):
        load_weights(net(), f"{server}/bad.zip")
    assert (tmp_path / "precious").is_dir()


def test_a_data_set_is_fetched_and_unpacked(server, tmp_path, monkeypatch):
    import paddleseg.datasets.optic_disc_seg as module
    from paddleseg.datasets import OpticDiscSeg

    from paddleseg_ext.data.fundus import write_fundus

    write_fundus(str(tmp_path / "drawn/optic_disc_seg"), 2, 1, (16, 16))
    with zipfile.ZipFile(tmp_path / "www/optic_disc_seg.zip", "w") as packed:
        packed.write(tmp_path / "drawn/optic_disc_seg", "optic_disc_seg/")
        for file in sorted((tmp_path / "drawn/optic_disc_seg").rglob("*")):
            packed.write(file, file.relative_to(tmp_path / "drawn"))
    monkeypatch.setattr(module, "URL", f"{server}/optic_disc_seg.zip")
    dataset = OpticDiscSeg(dataset_root=str(tmp_path / "data/optic_disc_seg"), transforms=[], mode="train")
    assert len(dataset) == 2 and dataset[0]["img"].shape == (3, 16, 16)
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["optic_disc_seg"]
