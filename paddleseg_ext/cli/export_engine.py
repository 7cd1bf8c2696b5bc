"""The child process of an export: `python -m paddleseg_ext.cli.export_engine FOLDER KIND`. Started by the teacher's engine."""

import sys
from pathlib import Path

from paddleseg_ext.inference.job import run_job

if __name__ == "__main__":
    run_job(Path(sys.argv[1]), sys.argv[2])
