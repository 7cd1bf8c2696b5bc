"""Teacher, student alone and distilled student on embedded data: a table and a picture, in a few minutes on a CPU.

python -m paddleseg_ext.cli.quickstart
"""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import paddle

from paddleseg_ext import config as configuration
from paddleseg_ext.cli import args as flags
from paddleseg_ext.cli.baseline import best_miou
from paddleseg_ext.cli.report import write_report
from paddleseg_ext.cli.screen import start_logging, user_errors
from paddleseg_ext.data.build import agreed_facts, build_dataset
from paddleseg_ext.engine.env import set_device
from paddleseg_ext.engine.evaluate import predict, spread
from paddleseg_ext.engine.pictures import classes_panel, image_panel, write_sheet
from paddleseg_ext.errors import UserError
from paddleseg_ext.models import build_trained_model
from paddleseg_ext.report.runs import read_runs

ROOT = Path(__file__).resolve().parents[2]
TEACHER, STUDENT = "configs/quick_start/fundus_teacher.yml", "configs/quick_start/fundus_student.yml"


def main() -> None:
    parser = flags.parser("Teacher, student alone and distilled student on embedded data.")
    parser.add_argument("--save_dir", default="output/quickstart", help="folder of the three runs and the picture")
    parser.add_argument("--seed", type=int, default=0, help="random seed of all three")
    parser.add_argument("--iters", type=int, help="train all three so long instead of as long as the files say")
    args = parser.parse_args()
    start_logging(rank=0)
    folder = Path(args.save_dir)
    common = ["--do_eval", "--use_vdl", "--save_interval", "100", "--seed", str(args.seed)]
    common += ["--iters", str(args.iters)] if args.iters else []
    weights = f"{folder}/teacher/best_model/model.pdparams"
    runs = {
        "teacher": ["train.py", "--config", TEACHER],
        "student alone": ["train.py", "--config", STUDENT],
        "student distilled": [
            *("slim/distill/distill_train.py", "--teacher_config", TEACHER, "--student_config", STUDENT),
            *("--teacher_opts", f"model.pretrained={weights}"),
        ],
    }
    rows = []
    for name, command in runs.items():
        save_dir = folder / name.split()[-1]
        command = [sys.executable, *command, *common, "--save_dir", str(save_dir)]
        print(f"\n== {name} ==\npython {' '.join(command[1:])}\n", flush=True)
        started = time.perf_counter()
        # A training command says itself what went wrong.
        code = subprocess.call(command, cwd=ROOT)
        if code:
            sys.exit(code)
        rows.append((name, save_dir, time.perf_counter() - started))
    with user_errors():
        _show(folder, rows)


def _show(folder: Path, rows: list[tuple[str, Path, float]]) -> None:
    set_device("cpu")
    files = {name: TEACHER if name == "teacher" else STUDENT for name, _, _ in rows}
    config = configuration.load(str(ROOT / STUDENT))
    assert config.val_dataset is not None
    facts = agreed_facts(config)
    models = {}
    for name, save_dir, _ in rows:
        file = configuration.load(str(ROOT / files[name]), model_only=True)
        weights = str(ROOT / save_dir / "best_model")
        models[name] = build_trained_model(file.model, weights, facts.num_classes, facts.img_channels)
    dataset = build_dataset(config.val_dataset)
    sheet = ROOT / folder / "comparison.png"
    write_sheet(sheet, [_row(dataset, index, models, config.test_config) for index in spread(len(dataset), 5)])
    print(f"\n{'model':<20}{'parameters':>12}{'best mIoU':>12}{'seconds':>10}")
    for name, save_dir, seconds in rows:
        size = sum(int(np.prod(p.shape)) for p in models[name].parameters())
        print(f"{name:<20}{size / 1e6:>10.2f} M{_best_miou(ROOT / save_dir):>12.4f}{seconds:>10.0f}")
    print(f"\npictures: {_short(sheet)}")
    report = write_report(
        read_runs([ROOT / save_dir for _, save_dir, _ in rows]), ROOT / folder, images=None, examples=3
    )
    print(f"report:   {_short(report)}")
    print(f"curves:   visualdl --logdir {folder}")


def _short(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _row(
    dataset: paddle.io.Dataset, index: int, models: dict[str, paddle.nn.Layer], test_config: configuration.TestConfig
) -> np.ndarray:
    sample = dataset[index]
    panels = [image_panel(dataset, index), classes_panel(np.asarray(sample["label"]).squeeze(), "label")]
    panels += [classes_panel(predict(model, sample, test_config), name) for name, model in models.items()]
    return np.hstack(panels)


def _best_miou(save_dir: Path) -> float:
    best = best_miou(save_dir)
    if best is None:
        raise UserError(f"{save_dir}/metrics.jsonl: holds no evaluation")
    return best


if __name__ == "__main__":
    main()
