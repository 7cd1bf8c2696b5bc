"""What the two training commands share: from flags and a configuration to a finished run."""

import argparse
import logging
import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paddle
from paddle import nn

from paddleseg_ext import config as configuration
from paddleseg_ext.cli.provenance import write_provenance
from paddleseg_ext.cli.screen import start_logging
from paddleseg_ext.config import Config
from paddleseg_ext.data.build import DatasetFacts, agreed_facts, build_dataset
from paddleseg_ext.data.loader import Ahead, TrainLoader
from paddleseg_ext.data.sampler import ResumableSampler
from paddleseg_ext.data.unlabelled import WithUnlabelled
from paddleseg_ext.engine import env
from paddleseg_ext.engine.checkpoint import RECORDS, CheckpointStore, RunState, read_state, restore
from paddleseg_ext.engine.hooks import (
    CheckpointHook,
    EvaluateHook,
    LogHook,
    PicturesHook,
    ProgressBar,
    RecordFile,
    StopHook,
    VisualLog,
)
from paddleseg_ext.engine.hooks.checkpoints import load_scaler
from paddleseg_ext.engine.optimizer import build_optimizer
from paddleseg_ext.engine.recompute import recompute_blocks
from paddleseg_ext.engine.trainer import Hook, Trainer
from paddleseg_ext.errors import ConfigError, NoTeacherError, StoppedWaiting
from paddleseg_ext.losses.build import build_task_losses
from paddleseg_ext.losses.task import TaskLoss
from paddleseg_ext.models import build_model

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """The training set, the validation set (None without --do_eval) and what they say of themselves."""

    train: paddle.io.Dataset
    val: paddle.io.Dataset | None
    facts: DatasetFacts


@dataclass(frozen=True)
class Session:
    """One run of a training command: what it was asked, what it trains on, and where it stands."""

    args: argparse.Namespace
    config: Config
    data: Data
    store: CheckpointStore
    state: RunState
    resumed_from: Path | None


def open_session(args: argparse.Namespace, config_path: str, *, with_unlabelled: bool = False) -> Session:
    """Choose the device, connect the ranks, read the configuration and the data, and find where to start.

    `with_unlabelled`: the images of `distill.unlabelled` are trained on too.

    Raises:
        UserError: something that the user can mend, before anything is built.
    """
    start_logging(env.rank())
    device = env.set_device(args.device)
    env.check_precision(args.precision, device)
    config = configuration.load(
        config_path, opts=args.opts, batch_size=args.batch_size, iters=args.iters, learning_rate=args.learning_rate
    )
    data = _load_data(config, args, with_unlabelled)
    store = CheckpointStore(args.save_dir, args.keep_checkpoint_max)
    store.prepare(alone=env.rank() == 0)
    env.join_ranks()
    state, resumed_from = _begin(args, store, config.batch_size * args.accumulate * env.world_size())
    env.seed_everything(state.seed)
    _log.info("device %s, %d process(es), paddle %s, seed %d", device, env.world_size(), paddle.__version__, state.seed)
    return Session(args, config, data, store, state, resumed_from)


def build_model_to_train(session: Session) -> nn.Layer:
    """The model that is trained; on several GPUs with batch norm over all of them, as PaddleSeg does."""
    facts = session.data.facts
    model, _ = build_model(session.config.model, facts.num_classes, facts.img_channels)
    if env.world_size() > 1 and paddle.get_device().startswith("gpu"):
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if session.args.recompute:
        _log.info("activations of %d blocks are computed anew in the backward", recompute_blocks(model))
    return model


def build_task_loss(session: Session, model: nn.Layer) -> TaskLoss:
    """The losses against labels."""
    losses = build_task_losses(session.config.loss, session.data.facts.ignore_index)
    return TaskLoss(losses, model, f"{session.config.path}: loss")


def train(
    session: Session,
    model: nn.Layer,
    step: nn.Layer,
    name: str,
    extras: nn.Layer | None = None,
    teacher: nn.Layer | None = None,
    teachers: Sequence[Mapping[str, Any]] = (),
    pairs: Sequence[Mapping[str, Any]] = (),
    further_hooks: Sequence[Hook] = (),
    ahead: Ahead | None = None,
) -> None:
    """Run the loop. `step` holds `model`, which alone is evaluated and kept, and `extras`, which train with it.

    `name` heads the model's pictures; a teacher's are beside them. `teachers` and `pairs` go into the
    run's provenance. `ahead`: as for the TrainLoader.

    Raises:
        NoTeacherError: of `ahead`; what has been trained is saved.
    """
    args, config, data, state = session.args, session.config, session.data, session.state
    assert config.optimizer is not None and config.lr_scheduler is not None
    optimizer = build_optimizer(config.optimizer, config.lr_scheduler, step, config.iters)
    extras = extras if extras is not None and extras.state_dict() else None
    trainer = Trainer(args.precision, state.seed, env.rank(), args.accumulate)
    if session.resumed_from is not None:
        restore(session.resumed_from, model, optimizer, extras)
        if state.scaler:
            load_scaler(trainer.scaler, state.scaler)
        _log.info("resumed from %s", session.resumed_from)
    if env.rank() == 0:
        _take_over(session)
        write_provenance(Path(args.save_dir), state.seed, session.resumed_from, config, teachers, pairs)
    start, ranks = state.iteration, env.world_size()
    images = config.batch_size * args.accumulate
    sampler = ResumableSampler(len(data.train), images, state.seed, start, config.iters, env.rank(), ranks)
    _log.info("%d training images, %d iterations an epoch", len(data.train), sampler.batches_per_epoch)
    own_hooks, checkpoint = _hooks(session, model, extras, optimizer, trainer, sampler, name, teacher)
    stop = StopHook(args.log_iters)
    hooks = [*further_hooks, stop, *own_hooks, checkpoint]
    parallel = paddle.DataParallel(step, find_unused_parameters=True) if ranks > 1 else step
    model.train()
    loader = TrainLoader(data.train, sampler, args.num_workers, ahead, stop.asked_alone)
    try:
        trainer.run(parallel, loader, optimizer, hooks, config.iters, start)
    except NoTeacherError as error:
        folder = checkpoint.save_unfinished()
        if isinstance(error, StoppedWaiting):
            _log.warning("%s; go on with --resume_model %s", error, folder or "the last checkpoint")
            return
        raise NoTeacherError(f"{error}; go on with --resume_model {folder}" if folder else str(error)) from None
    env.wait_for_all()


def load_train_set(config: Config, with_unlabelled: bool) -> paddle.io.Dataset:
    """The images that are trained on, every file of them checked.

    Raises:
        ConfigError, DataError
    """
    assert config.train_dataset is not None
    train_set = build_dataset(config.train_dataset)
    if with_unlabelled and config.distill.unlabelled:
        root = config.train_dataset.params.get("dataset_root") or ""
        train_set = WithUnlabelled(train_set, config.distill.unlabelled, root, f"{config.path}: distill.unlabelled")
    return train_set


def _load_data(config: Config, args: argparse.Namespace, with_unlabelled: bool) -> Data:
    facts = agreed_facts(config)
    assert config.train_dataset is not None
    if args.do_eval and config.val_dataset is None:
        raise ConfigError(f"{config.path}: --do_eval needs the key 'val_dataset'")
    train_set = load_train_set(config, with_unlabelled)
    val_set = build_dataset(config.val_dataset) if args.do_eval and config.val_dataset else None
    return Data(train_set, val_set, facts)


def _begin(args: argparse.Namespace, store: CheckpointStore, batch_size: int) -> tuple[RunState, Path | None]:
    """A new run's state, or a checkpoint's with its folder."""
    folder = store.latest() if args.resume_model == "auto" else Path(args.resume_model) if args.resume_model else None
    if folder is None:
        if args.resume_model:
            _log.info("nothing to resume in %s, starting anew", args.save_dir)
        seed = args.seed if args.seed is not None else random.SystemRandom().randrange(2**31)
        return RunState(uuid.uuid4().hex, 0, env.from_first(seed), batch_size), None
    state = read_state(folder)
    if args.seed is not None and args.seed != state.seed:
        raise ConfigError(f"--seed {args.seed}: {folder} was trained with seed {state.seed}; leave the flag out")
    if state.batch_size != batch_size:
        _log.warning(
            "%s had batches of %d in all, now %d: the data come in another order", folder, state.batch_size, batch_size
        )
    return state, folder


def _take_over(session: Session) -> None:
    """Make the folder this run's, now that nothing is left to be wrong: a mistake in a command costs the run before nothing."""
    store, state, folder = session.store, session.state, session.resumed_from
    store.begin_run(state.run_id)
    if folder is None:
        return
    if left := store.part_from(state):
        names = ", ".join(path.name for path in left)
        _log.warning("%s: of the run as it went on before; kept, but `--resume_model auto` takes them no more", names)
    if not store.adopt(folder, state) and state.best_miou is not None:
        best = f"mIoU {state.best_miou:.4f} at iter {state.best_iteration}"
        _log.warning("the best model until now, %s, is not here; the best one from now on is kept", best)
        state.best_miou = state.best_iteration = None


def _hooks(
    session: Session,
    model: nn.Layer,
    extras: nn.Layer | None,
    optimizer: paddle.optimizer.Optimizer,
    trainer: Trainer,
    sampler: ResumableSampler,
    name: str,
    teacher: nn.Layer | None,
) -> tuple[list[Hook], CheckpointHook]:
    """The one that saves is to be the last: whether to stop, whether the losses are sound and how good the model is are known
    before it is saved.
    """
    args, config, val, first = session.args, session.config, session.data.val, env.rank() == 0
    folder, interval = Path(args.save_dir), args.save_interval
    visual = VisualLog(folder if args.use_vdl and first else None)
    records = RecordFile(folder / RECORDS if first else None, session.state.iteration)
    bar = ProgressBar("training", "iter", shown=first)
    batch_size = config.batch_size * args.accumulate * env.world_size()
    log = LogHook(args.log_iters, interval, batch_size, sampler.batches_per_epoch, records, visual, bar, writes=first)
    hooks: list[Hook] = [log]
    evaluation = None
    if val is not None:
        options = {"precision": args.precision, "num_workers": args.num_workers}
        evaluation = EvaluateHook(model, val, config.test_config, interval, records, visual, **options)
        pictures = folder / "pictures"
        hooks.append(evaluation)
        hooks.append(PicturesHook(model, val, config.test_config, interval, pictures, visual, name, teacher))
    saved = (session.store, model, extras, optimizer, trainer.scaler, session.state)
    return hooks, CheckpointHook(*saved, interval, evaluation)
