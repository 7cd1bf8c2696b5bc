"""Train a student with the guidance of a teacher.

python slim/distill/distill_train.py --teacher_config T.yml --student_config S.yml --do_eval --save_dir output/distilled
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from paddleseg_ext.cli import args as flags  # noqa: E402
from paddleseg_ext.cli.baseline import compared_with_baseline  # noqa: E402
from paddleseg_ext.cli.distillation import open_distillation, train_distilled  # noqa: E402
from paddleseg_ext.cli.screen import user_errors  # noqa: E402
from paddleseg_ext.cli.training import build_model_to_train, open_session  # noqa: E402
from paddleseg_ext.distill.user_file import load_user_file  # noqa: E402


def main() -> None:
    parser = flags.parser("Train a student with the guidance of a teacher.")
    flags.add_distillation(parser, distill_config=str(HERE / "distill_config.py"))
    flags.add_training(parser)
    args = parser.parse_args()
    with user_errors(), compared_with_baseline(args, HERE.parents[1] / "train.py"):
        user = load_user_file(args.distill_config)
        session = open_session(args, args.student_config, with_unlabelled=True)
        student = build_model_to_train(session)
        with open_distillation(session, student, user) as distillation:
            train_distilled(session, student, distillation)


if __name__ == "__main__":
    main()
