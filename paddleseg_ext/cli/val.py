"""Measures a trained model on its val set.

python -m paddleseg_ext.cli.val --config S.yml --model_path output/best_model
"""

import json
from collections.abc import Sequence
from pathlib import Path

from paddleseg_ext.cli import args as flags
from paddleseg_ext.cli.screen import user_errors
from paddleseg_ext.cli.trained import open_trained
from paddleseg_ext.data.build import build_dataset
from paddleseg_ext.engine import env
from paddleseg_ext.engine.checkpoint import write_atomically
from paddleseg_ext.engine.evaluate import Metrics
from paddleseg_ext.engine.hooks import evaluate_with_bar
from paddleseg_ext.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = flags.parser("Measure a trained model on its val set.")
    flags.add_trained_model(parser)
    flags.add_device(parser)
    parser.add_argument("--num_workers", type=int, default=0, help="threads that read images ahead")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args(argv)
    with user_errors():
        if args.json is not None and not args.json.parent.is_dir():
            raise ConfigError(f"--json {args.json}: no such folder {args.json.parent}")
        trained = open_trained(args)
        dataset = build_dataset(trained.dataset)
        env.join_ranks()
        options = {"precision": args.precision, "num_workers": args.num_workers}
        metrics = evaluate_with_bar(trained.model, dataset, trained.test_config, "evaluating", **options)
        if env.rank() == 0:
            print(_table(metrics))
            if args.json is not None:
                write_atomically(args.json, json.dumps(metrics.record(), indent=1) + "\n")
        env.wait_for_all()


def _table(metrics: Metrics) -> str:
    lines = [f"{'class':<8}{'IoU':>8}"]
    lines += [f"{number:<8}{iou:>8.4f}" for number, iou in enumerate(metrics.class_iou)]
    figures = {"mIoU": metrics.miou, "accuracy": metrics.accuracy, "kappa": metrics.kappa, "dice": metrics.dice}
    lines += ["", *(f"{name:<8}{value:>8.4f}" for name, value in figures.items())]
    return "\n".join([*lines, f"{metrics.images} images, {metrics.seconds:.1f} s"])


if __name__ == "__main__":
    main()
