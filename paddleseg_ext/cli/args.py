"""Every flag, once. Names, meanings and defaults are PaddleSeg's where it has the flag."""

import argparse
from pathlib import Path

from paddleseg_ext.config import ENGINES


def parser(description: str) -> argparse.ArgumentParser:
    """A parser whose help shows defaults and whose flags must be written out."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )


def add_training(parser: argparse.ArgumentParser) -> None:
    """The flags that train.py and distill_train.py share."""
    add = parser.add_argument
    add("--iters", type=int, help="iterations to train; default: the file's")
    add("--batch_size", type=int, help="images per batch of one card or CPU process; default: the file's")
    add(
        "--accumulate",
        type=positive,
        default=1,
        help="batches whose gradients are averaged for one update; each normalises and compares by itself",
    )
    add("--recompute", action="store_true", help="keep fewer activations of what is trained: less memory, more time")
    add("--learning_rate", type=float, help="start of the schedule; default: the file's")
    add("--save_dir", default="./output", help="folder for checkpoints, metrics and pictures")
    add("--save_interval", type=positive, default=1000, help="iterations between checkpoints (and evaluations)")
    add("--keep_checkpoint_max", type=int, default=5, help="newest checkpoints to keep; 0 keeps all")
    add("--resume_model", help="a checkpoint folder save_dir/iter_N to go on from, or 'auto' for the newest if any")
    add("--do_eval", action="store_true", help="evaluate at every checkpoint and keep the best model")
    add("--use_vdl", action="store_true", help="write curves and pictures for VisualDL into save_dir")
    add("--log_iters", type=positive, default=10, help="iterations between log lines")
    add("--num_workers", type=int, default=0, help="processes that read training data; 0 reads in this one")
    add("--seed", type=not_negative, help="random seed; default: a new one, which is logged")
    add_device(parser)


def training_words(args: argparse.Namespace) -> list[str]:
    """The flags of `add_training` as they were given, for a command that starts another one."""
    known = argparse.ArgumentParser()
    add_training(known)
    words: list[str] = []
    for action in known._actions:
        value = getattr(args, action.dest, None)
        if action.dest == "help" or value is None or value is False:
            continue
        words += action.option_strings[:1]
        words += [] if value is True else [str(v) for v in value] if isinstance(value, list) else [str(value)]
    return words


def add_config(parser: argparse.ArgumentParser) -> None:
    """The YAML file of a command with one model."""
    parser.add_argument("--config", required=True, help="PaddleSeg YAML file")


def add_distillation(parser: argparse.ArgumentParser, distill_config: str) -> None:
    """The files and flags of distillation."""
    add_pair(parser, distill_config)
    add = parser.add_argument
    add(
        "--baseline",
        action="store_true",
        help="first train the student alone, alike, into save_dir/baseline, and show the gain at the end",
    )
    add(
        "--teacher_engine",
        choices=ENGINES,
        help="what runs the teacher: 'model' the Paddle layer, 'auto' the fastest engine that agrees with it; "
        "default: the student's file's distill.teacher.engine, else auto",
    )
    add(
        "--teacher_cache",
        metavar="DIR",
        help="a folder that cache_teacher wrote, whose stored outputs stand for the teacher; "
        "default: the student's file's distill.teacher.cache, if any",
    )
    add(
        "--teacher_eval_images",
        type=int,
        help="with --do_eval, measure the teacher on so many images only; 0: not at all; default: all",
    )
    add_remote_teachers(parser)


def add_remote_teachers(parser: argparse.ArgumentParser) -> None:
    """Where teachers on other machines are, in place of one in this process."""
    add = parser.add_argument
    add("--distill_teachers", metavar="HOST:PORT,...", help="addresses of teachers on other machines")
    add(
        "--discovery",
        metavar="HOST:PORT,...",
        help="balance servers that say where teachers are; needs --teacher_service",
    )
    add("--teacher_service", metavar="NAME", help="what the teachers of --discovery are registered for")
    add("--teachers_at_most", type=positive, help="teachers of --discovery that one process asks at a time; default: 4")
    add("--teacher_model", metavar="NAME", help="which of a server's models; default: its only one")
    add(
        "--teacher_timeout",
        type=float,
        metavar="SECONDS",
        help="without any answer for so long, training ends with a checkpoint; default: 300",
    )
    add_security(parser)


def add_pair(parser: argparse.ArgumentParser, distill_config: str) -> None:
    """The files of a teacher and a student."""
    add = parser.add_argument
    add(
        "--teacher_config",
        "--teather_config",
        help="PaddleSeg YAML file; its `model` is the teacher; not needed with stored outputs or a service",
    )
    add("--student_config", required=True, help="PaddleSeg YAML file of the student: model, data, losses, optimizer")
    add("--distill_config", default=distill_config, help="Python file that names internal tensors and their losses")
    add("--teacher_opts", nargs="+", metavar="KEY=VALUE", help="as --opts, for the teacher's file")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where and how precisely a command computes, and what it changes in its file."""
    add_where(parser)
    add = parser.add_argument
    add(
        "--precision",
        choices=("fp32", "fp16", "bf16"),
        default="fp32",
        help="fp16 and bf16: automatic mixed precision; bf16 changes nothing on a CPU",
    )
    add(
        "--opts",
        nargs="+",
        metavar="KEY=VALUE",
        help="overwrite values of the file, such as optimizer.weight_decay=1e-4",
    )


def add_where(parser: argparse.ArgumentParser) -> None:
    """Where a command computes."""
    parser.add_argument(
        "--device",
        choices=("cpu", "gpu", "xpu", "npu", "mlu"),
        default="gpu",
        help="the CPU is used where it is missing",
    )


def add_store(parser: argparse.ArgumentParser, required: bool = True, lease: bool = True) -> None:
    """The Redis server in which teachers and students find each other; `lease` for commands that write to it."""
    add = parser.add_argument
    add(
        "--db_endpoints",
        required=required,
        metavar="R:P[,R:P...]",
        help="Redis: host:port, redis://host:port/db, or rediss://host:port for TLS; several are tried in turn",
    )
    add("--redis_password", help="better by --redis_password_file or the variable REDIS_PASSWORD: flags show in `ps`")
    add("--redis_password_file", type=Path, help="a file with the password of Redis")
    add("--key_prefix", default="paddleseg_ext", help="of all keys in Redis")
    if lease:
        add("--lease", type=float, default=10.0, help="seconds after which who is not heard of is gone")


def add_trained_model(parser: argparse.ArgumentParser) -> None:
    """A configuration with weights, and how the model is applied to an image; the defaults are the file's `test_config`."""
    add_config(parser)
    add = parser.add_argument
    add("--model_path", required=True, help="weights: a .pdparams file, a folder with model.pdparams in it, or a URL")
    add("--aug_eval", action="store_true", help="average over scales and flips")
    add("--scales", type=float, nargs="+", help="scales of --aug_eval")
    add("--flip_horizontal", action="store_true", help="of --aug_eval")
    add("--flip_vertical", action="store_true", help="of --aug_eval")
    add("--is_slide", action="store_true", help="by a sliding window; needs --crop_size and --stride")
    add("--crop_size", type=positive, nargs=2, metavar=("WIDTH", "HEIGHT"), help="of the window, in pixels")
    add("--stride", type=positive, nargs=2, metavar=("X", "Y"), help="of the window, in pixels")


def add_security(parser: argparse.ArgumentParser) -> None:
    """How a connection to or from a teacher is protected."""
    add = parser.add_argument
    add("--tls_cert", type=Path, help="PEM file with this side's certificate")
    add("--tls_key", type=Path, help="PEM file with its key, not encrypted")
    add("--tls_ca", type=Path, help="PEM file with whom to trust; a server with it asks clients for certificates")
    add("--token_file", type=Path, help="file whose only line is a secret that comes with every call")


def not_negative(text: str) -> int:
    """A whole number of at least 0, as a flag's value."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"at least 0 is expected, but got {value}")
    return value


def positive(text: str) -> int:
    """A whole number of at least 1, as a flag's value."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"at least 1 is expected, but got {value}")
    return value
