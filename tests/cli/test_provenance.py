"""What a run was made of, when the folder that it is started in is a git repository."""

import json
import subprocess

from paddleseg_ext.cli.provenance import write_provenance
from paddleseg_ext.config import Component, Config

ONE = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")


def test_the_commit_and_whether_files_differ_from_it_are_written_down(tmp_path, monkeypatch):
    def git(*words):
        return subprocess.run(["git", *ONE, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    (tmp_path / "mine.yml").write_text("a")
    git("add", "mine.yml")
    git("commit", "-q", "-m", "first")
    config = Config("mine.yml", Component("Net", {}, ""), resolved={"iters": 3})
    out = tmp_path.parent / f"{tmp_path.name}_out"
    out.mkdir()
    write_provenance(out, 7, None, config, [], [])
    (tmp_path / "mine.yml").write_text("b")
    write_provenance(out, 7, out / "iter_1", config, [{"name": "big", "path": "big.yml", "resolved": {}}], [])
    first, second = map(json.loads, (out / "provenance.jsonl").read_text().splitlines())
    assert first["git"] == {"commit": git("rev-parse", "HEAD").strip(), "changed": False}
    assert second["git"] == {**first["git"], "changed": True}
    assert first["config"] == {"path": "mine.yml", "resolved": {"iters": 3}} and first["seed"] == 7
    assert first["folder"] == str(tmp_path) and second["resumed_from"] == str(out / "iter_1")
    assert second["teachers"][0]["name"] == "big"
    assert {"python", "paddle", "paddleseg", "numpy", "opencv-python-headless", "paddleseg_ext"} <= set(
        first["versions"]
    )
