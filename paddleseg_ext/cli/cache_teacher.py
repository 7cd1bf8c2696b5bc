"""Stores what a trained teacher says of the training images, so that it costs nothing in the training of students.

python -m paddleseg_ext.cli.cache_teacher --teacher_config T.yml --student_config S.yml \
    --teacher_opts model.pretrained=output/teacher/best_model --cache_dir output/teacher_outputs
python slim/distill/distill_train.py --student_config S.yml --teacher_cache output/teacher_outputs
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from paddleseg_ext import config as configuration
from paddleseg_ext.cli import args as flags
from paddleseg_ext.cli.agreement import agreement
from paddleseg_ext.cli.cached import check_kind, follow_images, image_files
from paddleseg_ext.cli.distillation import open_distillation
from paddleseg_ext.cli.screen import start_logging, user_errors
from paddleseg_ext.cli.storing import asked, describe, fill, open_whole
from paddleseg_ext.cli.teachers import warn_of_weights
from paddleseg_ext.cli.training import Data, Session, load_train_set
from paddleseg_ext.data.build import dataset_facts
from paddleseg_ext.distill.user_file import load_user_file
from paddleseg_ext.engine import env
from paddleseg_ext.engine.checkpoint import CheckpointStore, RunState
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.models import build_model, without_pretrained
from paddleseg_ext.teachers import CachedTeacher, ModelTeacher
from paddleseg_ext.teachers.store import OutputStore

_log = logging.getLogger("paddleseg_ext.cli.cache_teacher")  # also where it runs as __main__
_ROOT = Path(__file__).resolve().parents[2]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = flags.parser("Store a trained teacher's outputs for the student's training images.")
    flags.add_pair(parser, distill_config=str(_ROOT / "slim/distill/distill_config.py"))
    add = parser.add_argument
    add("--cache_dir", help="folder of the stored outputs; default: the student's file's distill.teacher.cache")
    add("--top_k", type=flags.positive, help="keep so many classes of an output at each position; default: all")
    add("--batch_size", type=flags.positive, default=4, help="images of equal size that the teacher sees at once")
    add("--num_workers", type=int, default=0, help="threads that read images ahead")
    flags.add_device(parser)
    args = parser.parse_args(argv)
    with user_errors():
        _run(args)


def _run(args: argparse.Namespace) -> None:
    user = load_user_file(args.distill_config)
    session, folder = _open(args)
    follow_images(session)  # what cannot be followed is refused before anything is computed
    whole = open_whole(session)
    config, facts = session.config, session.data.facts
    student, _ = build_model(config.model, facts.num_classes, facts.img_channels)
    with open_distillation(session, student, user) as distillation:
        (member,) = distillation.members
        warn_of_weights(member)
        layer = member.teacher
        assert isinstance(layer, ModelTeacher)
        manifest = describe(session, member, asked(distillation.step.pairs), whole)
        fill(session, folder, manifest, layer, whole)
        stored = CachedTeacher(OutputStore(folder), image_files(session).root)
        for line in agreement(session, layer, stored):
            _log.info("[CACHE] against the teacher itself on augmented images: %s", line)
    _log.info(
        "done; train from it: slim/distill/distill_train.py --student_config %s --teacher_cache %s", config.path, folder
    )


def _open(args: argparse.Namespace) -> tuple[Session, Path]:
    """A session that trains nothing, and the store's folder."""
    start_logging(rank=0)
    env.check_precision(args.precision, env.set_device(args.device))
    config = configuration.load(args.student_config, opts=args.opts)
    folder = args.cache_dir or config.distill.cache
    if not folder:
        raise ConfigError(f"--cache_dir is missing (or distill.teacher.cache in {config.path})")
    if not args.teacher_config:
        raise ConfigError("--teacher_config is missing: the file of the teacher whose outputs are stored")
    check_kind(config, folder)
    # Maps are stored as the network makes them; those that are compared at the labels' size are enlarged in training.
    outputs = tuple(replace(pair, resolution="network") for pair in config.distill.outputs)
    distill = replace(config.distill, cache=None, outputs=outputs)
    config = replace(config, distill=distill, model=without_pretrained(config.model))
    # What training, whose parts this command uses, has flags for.
    services = flags.parser("")
    flags.add_remote_teachers(services)
    vars(args).update(vars(services.parse_args([])), teacher_engine="model", teacher_cache=None, save_dir=folder)
    assert config.train_dataset is not None
    data = Data(load_train_set(config, with_unlabelled=True), None, dataset_facts(config.train_dataset))
    state = RunState("", 0, 0, config.batch_size)
    return Session(args, config, data, CheckpointStore(folder), state, None), Path(folder)


if __name__ == "__main__":
    main()
