"""`make quickstart` and, with what it leaves, every further command of the README, word for word but for length and place."""

import re
import subprocess
import sys

import pytest

from tests.service.redis_server import free_port
from tests.test_readme import READMES, ROOT, commands

SHORT = ["--iters", "2", "--save_interval", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """Its folder and what it said."""
    folder = tmp_path_factory.mktemp("quickstart")
    return folder, run("python", "-m", "paddleseg_ext.cli.quickstart", "--iters", "4", "--save_dir", str(folder))


def run(*words):
    command = [sys.executable, *words[1:]]
    done = subprocess.run(command, cwd=ROOT, text=True, timeout=400, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def test_it_ends_with_a_table_a_picture_and_a_report(quickstart):
    folder, text = quickstart
    rows = re.findall(r"^(teacher|student alone|student distilled) +\d+\.\d\d M +0\.\d{4} +\d+$", text, re.M)
    assert rows == ["teacher", "student alone", "student distilled"]
    assert (folder / "comparison.png").is_file() and "student alone" in (folder / "report.html").read_text()


def test_the_commands_of_the_readme_work_on_what_it_leaves(quickstart):
    folder, _ = quickstart
    port = str(free_port())
    said, server = {}, None
    try:
        for command in commands(READMES[0]):
            if command[0] != "python" or not re.search("fundus|quickstart", " ".join(command)):
                continue
            words = [word.replace("output/quickstart", str(folder)).replace("9292", port) for word in command]
            name = words[2].rsplit(".", 1)[-1] if words[1] == "-m" else words[1]
            if words[-1] == "&":
                server = subprocess.Popen(
                    [sys.executable, *words[1:-1]],
                    cwd=ROOT,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
                assert "ready\n" in iter(server.stdout.readline, "")
                said[name] = ""
                continue
            said.setdefault(name, "")
            said[name] += run(*words, *(SHORT if name.endswith("train.py") else []))
    finally:
        if server is not None:
            server.terminate()
            assert server.wait(60) == 0
            server.stdout.close()
    assert set(said) == {
        *("cache_teacher", "slim/distill/distill_train.py", "export", "serve"),
        *("val", "predict", "report", "inspect"),
    }
    trained = said["slim/distill/distill_train.py"]
    assert "[CACHE]" in trained and f"--distill_teachers 127.0.0.1:{port} serve" in trained
    assert "serving.yml" in said["export"] and "220 images predicted" in said["predict"] and "mIoU" in said["val"]
