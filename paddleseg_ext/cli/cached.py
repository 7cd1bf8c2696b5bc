"""The stored outputs that stand for a teacher, found and checked against the run."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paddleseg_ext.cli.training import Session
from paddleseg_ext.config import Component, Config, FeaturePair, OutputPair
from paddleseg_ext.data.file_marks import name_of
from paddleseg_ext.data.geometry import follow
from paddleseg_ext.distill.distiller import names
from paddleseg_ext.errors import CacheError, ConfigError, closest
from paddleseg_ext.inference.job import plain
from paddleseg_ext.models import without_pretrained
from paddleseg_ext.models.weights import digest
from paddleseg_ext.teachers import CachedTeacher, ModelTeacher
from paddleseg_ext.teachers.manifest import as_json
from paddleseg_ext.teachers.store import OutputStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFiles:
    """The images of a data set by names that do not depend on its folder: each one's number as a sample, and its path."""

    root: str | None
    numbers: Mapping[str, int]
    paths: Mapping[str, str]

    def check(self, store: OutputStore, *, all_of_them: bool = True) -> None:
        """Make sure that a store is of these images as they are now.

        Raises:
            CacheError: one is missing there (if `all_of_them` are wanted) or has changed.
        """
        for name, path in self.paths.items():
            if name not in store:
                if all_of_them:
                    known = len(store.manifest.names)
                    raise CacheError(
                        f"{store.folder}: nothing of {name} is stored there; its {known} images are others"
                    )
            elif not store.mark(name).fits(path):
                raise CacheError(f"{path} has changed since the teacher's outputs were stored in {store.folder}")


def image_files(session: Session) -> ImageFiles:
    """Those that are trained on.

    Raises:
        CacheError: the data set lists no files.
    """
    dataset = session.config.train_dataset
    assert dataset is not None
    root = str(dataset.params["dataset_root"]) if dataset.params.get("dataset_root") else None
    numbers: dict[str, int] = {}
    paths: dict[str, str] = {}
    for number, entry in enumerate(getattr(session.data.train, "file_list", None) or ()):
        name = name_of(str(entry[0]), root)
        numbers.setdefault(name, number)
        paths.setdefault(name, str(entry[0]))
    if not paths:
        raise CacheError(f"{dataset.where}: outputs are stored by image file, and this data set lists none")
    return ImageFiles(root, numbers, paths)


def cache_folder(session: Session) -> str | None:
    """Where the teacher's outputs are stored: --teacher_cache or the file's; None where a teacher is to compute.

    Raises:
        ConfigError: the run asks for another kind of teacher, or for an engine.
    """
    args = session.args
    folder: str | None = args.teacher_cache or session.config.distill.cache
    if folder is None:
        return None
    if args.teacher_engine:
        raise ConfigError(f"--teacher_engine {args.teacher_engine}: nothing is left to run, {folder} has the outputs")
    check_kind(session.config, folder)
    return folder


def check_kind(config: Config, folder: str) -> None:
    """Raise ConfigError where it is not one trained teacher that a student's file asks for."""
    distill = config.distill
    if distill.kind != "model" or distill.teachers:
        given = "distill.teachers" if distill.teachers else f"distill.teacher: {distill.kind}"
        raise ConfigError(f"{config.path}: {given}: stored outputs ({folder}) are those of one trained teacher")


def follow_images(session: Session) -> None:
    """Let the training images say how they were transformed.

    Raises:
        ConfigError: they are transformed in a way that cannot be followed.
    """
    assert session.config.train_dataset is not None
    follow(session.data.train, f"{session.config.train_dataset.where}.transforms")


def open_cached(session: Session, folder: str) -> CachedTeacher:
    """The teacher as it was stored in a folder.

    Raises:
        CacheError: there is nothing whole there, or not of these images.
        ConfigError: its classes are others.
    """
    config, facts = session.config, session.data.facts
    store, files = OutputStore(folder), image_files(session)
    files.check(store)
    manifest = store.manifest
    if config.distill.class_map is None and manifest.classes != facts.num_classes:
        raise ConfigError(
            f"{folder}: the teacher has {manifest.classes} classes, the student {facts.num_classes}; "
            f"distill.class_map in {config.path} says which are the same"
        )
    full_size = {pair.teacher for pair in config.distill.outputs if pair.resolution == "label"}
    _log.info(
        "[CACHE] %s stands for the teacher, %s: %s",
        folder,
        manifest.model["type"],
        "; ".join(map(str, manifest.tensors)),
    )
    return CachedTeacher(store, files.root, full_size)


def check_teacher(teacher: CachedTeacher, layer: ModelTeacher, component: Component, file: str) -> None:
    """Make sure that a teacher which is at hand is the one whose outputs were stored.

    Raises:
        CacheError: it is another.
    """
    folder, manifest = teacher.store.folder, teacher.store.manifest
    if as_json(plain(without_pretrained(component))) != manifest.model:
        raise CacheError(f"{folder} holds the outputs of another model than {file} has ({manifest.model['type']})")
    found = digest(layer.model)
    if found != manifest.weights:
        raise CacheError(
            f"{folder} holds the outputs of other weights than {file} has: "
            f"SHA-256 {manifest.weights[:12]}... stored, {found[:12]}... given"
        )
    for tensor in manifest.tensors:
        spec = layer.recorder.specs.get(tensor.key, tensor.layer)
        if not tensor.is_output and spec != tensor.layer:
            raise CacheError(f"{folder}: '{tensor.key}' was stored of the layer '{tensor.layer}', and is now '{spec}'")


def check_asked(teacher: CachedTeacher, outputs: Sequence[OutputPair], features: Sequence[FeaturePair]) -> None:
    """Make sure that what the pairs compare was stored.

    Raises:
        CacheError: something was not.
    """
    stored = [tensor.key for tensor in teacher.store.manifest.tensors]
    asked = [(str(pair.teacher), f"output {pair.teacher}", pair.where) for pair in outputs]
    asked += [(name, f"feature '{name}'", pair.where) for pair in features for name in names(pair.teacher)]
    for key, said, where in asked:
        if key not in stored:
            raise CacheError(
                f"{where}: {teacher.store.folder} holds no {said} of the teacher{closest(key, stored)}; "
                "cache_teacher stores what the student's file asks for"
            )
