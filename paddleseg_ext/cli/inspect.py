"""Shows what is inside one model or two, and which layers of a student and a teacher to distil.

python -m paddleseg_ext.cli.inspect --teacher_config T.yml --student_config S.yml
"""

from collections.abc import Sequence

import paddle

from paddleseg_ext import config as configuration
from paddleseg_ext.cli.args import parser
from paddleseg_ext.cli.screen import user_errors
from paddleseg_ext.data.build import dataset_facts
from paddleseg_ext.distill.layers import LayerRecord, record_layers, suggest_pairs
from paddleseg_ext.engine.env import set_device
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.models import build_model, without_pretrained

_COLUMNS = (("layer", 44), ("type", 20), ("output", 20), ("stride", 6), ("parameters", 10), ("time %", 6))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    flags = parser("Show the layers of a model, or of a student and a teacher with the pairs to distil.")
    flags.add_argument("--config", help="PaddleSeg YAML file of one model")
    flags.add_argument("--student_config", help="PaddleSeg YAML file of the student")
    flags.add_argument("--teacher_config", "--teather_config", help="PaddleSeg YAML file of the teacher")
    flags.add_argument("--input_size", type=int, nargs=2, default=(256, 256), metavar=("H", "W"), help="of the image")
    flags.add_argument("--depth", type=int, default=3, help="levels of nesting to show; 0 shows all")
    args = flags.parse_args(argv)
    with user_errors():
        pair = [args.student_config, args.teacher_config]
        if bool(args.config) == any(pair) or (any(pair) and not all(pair)):
            raise ConfigError("give --config, or --student_config and --teacher_config")
        if min(args.input_size) < 1:
            raise ConfigError(f"--input_size is height and width in pixels, but got {args.input_size}")
        set_device("cpu")
        tables = {}
        for title, path in [("model", args.config)] if args.config else [("student", pair[0]), ("teacher", pair[1])]:
            records, heading = _records(path, tuple(args.input_size))
            tables[f"{title}: {heading}"] = records
        for heading, records in tables.items():
            print(f"\n{heading}\n" + "\n".join(_table(records, args.depth)))
        if not args.config:
            print("\n" + "\n".join(_suggestion(*tables.values())))


def _records(path: str, size: tuple[int, int]) -> tuple[list[LayerRecord], str]:
    config = configuration.load(path, model_only=True)
    classes = config.model.params.get("num_classes")
    if classes is None and config.train_dataset is not None:
        classes = dataset_facts(config.train_dataset).num_classes
    model, _ = build_model(without_pretrained(config.model), classes or 2)
    try:
        records = record_layers(model, paddle.rand([1, 3, *size]))
    except Exception as error:
        reason = " ".join(str(error).split())[-200:]
        raise ConfigError(
            f"{path}: {config.model.type} does not run on an image of {size[0]}x{size[1]} (--input_size): {reason}"
        ) from error
    count = sum(p.size for p in model.parameters())
    return records, f"{config.model.type} of {path}, {int(count) / 1e6:.2f} M parameters, input {size[0]}x{size[1]}"


def _table(records: Sequence[LayerRecord], depth: int) -> list[str]:
    whole = max((r.seconds for r in records if "." not in r.name), default=0) and sum(
        r.seconds for r in records if "." not in r.name
    )
    lines = ["  ".join(f"{name:<{width}}" for name, width in _COLUMNS).rstrip()]
    shown = [r for r in records if depth == 0 or r.name.count(".") < depth]
    for record in sorted(shown, key=lambda r: (r.depth, -len(r.name))):
        cells = (
            *(record.name, record.kind, "x".join(map(str, record.shape))),
            *(str(record.stride or ""), f"{record.parameters:,}", f"{100 * record.seconds / (whole or 1):.1f}"),
        )
        lines.append("  ".join(f"{cell:<{width}}" for cell, (_, width) in zip(cells, _COLUMNS, strict=True)).rstrip())
    return lines


def _suggestion(student: Sequence[LayerRecord], teacher: Sequence[LayerRecord]) -> list[str]:
    pairs = suggest_pairs(student, teacher)
    if not pairs:
        return ["no layers were found that correspond; choose from the tables"]
    lines = ["pairs that correspond, the deepest first:"]
    for s, t in pairs:
        lines.append(f"  {s.name} {list(s.shape)}  <-  {t.name} {list(t.shape)}")
    s, t = pairs[0]
    lines += ["", "for the student's file:", "", "distill:", "  features:"]
    lines += [f"    - student: {s.name}", f"      teacher: {t.name}"]
    return [*lines, "      loss: {type: SegChannelwiseLoss, temperature: 4}", "      weight: 50"]


if __name__ == "__main__":
    main()
