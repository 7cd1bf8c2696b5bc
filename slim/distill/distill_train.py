"""Train a student with the guidance of a teacher.

python slim/distill/distill_train.py --teacher_config T.yml --student_config S.yml --do_eval --save_dir output/distilled
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from paddleseg_ext.cli import args as flags  # noqa: E402
from paddleseg_ext.cli.baseline import compared_with_baseline  # noqa: E402
from paddleseg_ext.cli.distillation import (  # noqa: E402
    balance_check,
    build_distiller,
    build_teacher,
    show_teacher,
    teacher_config,
    unchanged,
)
from paddleseg_ext.cli.screen import user_errors  # noqa: E402
from paddleseg_ext.cli.training import build_model_to_train, open_session, train  # noqa: E402
from paddleseg_ext.distill.recorder import Recorder  # noqa: E402
from paddleseg_ext.distill.user_file import load_user_file  # noqa: E402


def main() -> None:
    parser = flags.parser("Train a student with the guidance of a teacher.")
    flags.add_distillation(parser, distill_config=str(HERE / "distill_config.py"))
    flags.add_training(parser)
    args = parser.parse_args()
    with user_errors(), compared_with_baseline(args, HERE.parents[1] / "train.py"):
        user = load_user_file(args.distill_config)
        session = open_session(args, args.student_config)
        student = build_model_to_train(session)
        file = teacher_config(session)
        teacher, report = build_teacher(session, file)
        named = session.config.distill_features
        catch = Recorder(user.student_adaptor(student), [pair.student for pair in named])
        catch_teacher = Recorder(user.teacher_adaptor(teacher), [pair.teacher for pair in named])
        with catch as caught, catch_teacher as taught:
            distiller = build_distiller(session, student, caught, teacher, taught, (*named, *user.pairs))
            show_teacher(session, teacher, report)
            with unchanged(distiller.teacher):
                parts = {"extras": distiller.extras, "teacher": teacher, "teacher_config": file}
                hooks = balance_check(session, distiller)
                train(session, student, distiller, name="student", further_hooks=hooks, **parts)


if __name__ == "__main__":
    main()
