"""Chooses what runs a teacher, once for a run, and writes the choice beside its checkpoints."""

import json
import logging
import os
import time
from pathlib import Path

from paddleseg_ext.cli.training import Session
from paddleseg_ext.config import Component
from paddleseg_ext.data.loader import TrainLoader
from paddleseg_ext.data.sampler import ResumableSampler
from paddleseg_ext.engine import env
from paddleseg_ext.engine.checkpoint import write_atomically
from paddleseg_ext.inference.job import ExportJob, plain
from paddleseg_ext.inference.runners import BACKENDS
from paddleseg_ext.inference.select import Bounds, Choice, Contest, select
from paddleseg_ext.inference.worker import Worker
from paddleseg_ext.models.weights import digest
from paddleseg_ext.teachers import EngineTeacher, ModelTeacher
from paddleseg_ext.teachers.engine import Wanted
from paddleseg_ext.types import Teacher

_log = logging.getLogger(__name__)

_WORTH = 60.0  # seconds that the layer must cost in the whole run before an engine is looked for
_BATCHES = 2  # that are compared


def faster(session: Session, name: str, layer: ModelTeacher, component: Component, wanted: Wanted) -> Teacher:
    """The teacher run by the engine that --teacher_engine or the file asks for, or by the layer where none will do.

    Args:
        name: the teacher's.
        layer: the teacher as a layer.
        component: what its model was built from.
        wanted: what the engine is to give.
    """
    distill = session.config.distill
    asked = session.args.teacher_engine or distill.engine
    earlier = _earlier(session, name)
    if earlier is not None:
        asked = earlier
    if asked in ("model", "layer"):
        return layer
    images = [batch.images for batch in _first_batches(session)]
    by_layer = wanted.by_layer(layer)
    if asked == "auto":
        by_layer(images[0])
        started = time.perf_counter()
        by_layer(images[0])
        seconds = time.perf_counter() - started
        if env.from_first(int(1e6 * seconds * (session.config.iters - session.state.iteration))) < 1e6 * _WORTH:
            return layer
    facts = session.data.facts
    job = ExportJob(
        *(plain(component), component.params.get("num_classes", facts.num_classes), facts.img_channels),
        wanted=tuple(wanted.names),
        names=tuple(layer.recorder.names),
        distill_config=session.args.distill_config,
        shape=tuple(images[0].shape),
    )
    contest = Contest(
        *(job, layer.model, digest(layer.model), by_layer, images),
        cache=cache_folder(),
        threads=env.threads(),
        reset=env.use_all_cores,
        bounds=Bounds(**distill.bounds),
    )
    # Rank 0 chooses, so that all ranks compute alike.
    known = ["layer", *(f"{n} {precision}" for n in BACKENDS for precision in ("fp16", "bf16", "fp32"))]
    choice = Choice("layer", None)
    if env.rank() == 0:
        auto = asked == "auto"
        choice = select(contest, list(BACKENDS) if auto else [asked], against_layer=auto)
        _log.info("[ENGINE] %s: %s; %s is used", name, "; ".join(map(str, choice.trials)), choice.name)
        _write(session, name, choice.name)
    chosen = known[env.from_first(known.index(choice.name))]
    if env.rank() != 0 and chosen != "layer":
        choice = select(contest, [chosen], against_layer=False)
    if choice.run is None:
        return layer
    size = (images[0].shape[2], images[0].shape[3])
    # On a GPU the layer stays: what its memory would be worth there was not tried.
    folder = contest.cache if isinstance(choice.run, Worker) else None
    return EngineTeacher(layer, choice.run, wanted, env.use_all_cores, contest.bounds, size, folder)


def cache_folder() -> Path:
    """Where exports are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paddleseg_ext" / "engines"


def _first_batches(session: Session) -> list:
    """Real ones, so that what an engine does to them counts."""
    data, config = session.data.train, session.config
    sampler = ResumableSampler(len(data), config.batch_size, session.state.seed, 0, _BATCHES)
    return list(TrainLoader(data, sampler))


def _file(session: Session) -> Path:
    return Path(session.args.save_dir) / "engines.json"


def _earlier(session: Session, name: str) -> str | None:
    """What this run used before it was interrupted: another engine would give other results."""
    try:
        record = json.loads(_file(session).read_text())
    except (OSError, ValueError):
        return None
    if session.resumed_from is None or record.get("run_id") != session.state.run_id:
        return None
    return record["engines"].get(name)


def _write(session: Session, name: str, engine: str) -> None:
    try:
        record = json.loads(_file(session).read_text())
    except (OSError, ValueError):
        record = {}
    if record.get("run_id") != session.state.run_id:
        record = {"run_id": session.state.run_id, "engines": {}}
    record["engines"][name] = engine
    write_atomically(_file(session), json.dumps(record))
