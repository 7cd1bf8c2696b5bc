"""The examples of the service, as their readmes start them."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*command):
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        text=True,
        timeout=400,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def test_digits_are_learnt_from_a_served_teacher_and_nothing_is_left_running(tmp_path):
    text = run("bash", "examples/mnist_distill/run.sh", tmp_path)
    teacher, by_teacher, alone = map(float, re.findall(r"accuracy (0\.\d{4}) on 360 digits", text))
    assert teacher > 0.95 and by_teacher > 0.9 and alone > 0.9
    log = (tmp_path / "serve.log").read_text()
    assert "output fetch_name_0 (prediction): FP16 [-1, 10]" in log and log.endswith("stopped\n")


def test_a_segmentation_student_finds_two_teachers_and_all_is_stopped(tmp_path):
    text = run(sys.executable, "examples/seg_service/run.py", "--save_dir", tmp_path, "--iters", "4")
    assert (tmp_path / "student/best_model/model.pdparams").is_file()
    assert "[TEACHER] mIoU" in text and re.search(r"fundus: teachers 2, students \d", text)
    for number in (1, 2):
        log = (tmp_path / f"teacher_{number}.log").read_text()
        assert "is registered for 'fundus'" in log and log.endswith("stopped\n")
