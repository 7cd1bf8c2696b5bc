"""Train one PaddleSeg model: a teacher, or a student alone for comparison.

python train.py --config configs/quick_start/fundus_teacher.yml --do_eval --save_dir output/teacher
"""

from paddleseg_ext.cli import args as flags
from paddleseg_ext.cli.screen import user_errors
from paddleseg_ext.cli.serving_model import add_serving_model, check_serving_model, save_serving_model
from paddleseg_ext.cli.training import build_model_to_train, build_task_loss, open_session, train
from paddleseg_ext.engine.supervised import SupervisedStep


def main() -> None:
    parser = flags.parser("Train one PaddleSeg model.")
    flags.add_config(parser)
    flags.add_training(parser)
    add_serving_model(parser)
    args = parser.parse_args()
    with user_errors():
        session = open_session(args, args.config)
        check_serving_model(session)
        model = build_model_to_train(session)
        step = SupervisedStep(model, build_task_loss(session, model))
        train(session, model, step, name="prediction")
        save_serving_model(session)


if __name__ == "__main__":
    main()
