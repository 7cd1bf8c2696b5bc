"""What a folder with an exported model says of it: `serving.yml`, or the text files of Paddle Serving, or nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from paddleseg_ext.errors import ConfigError, closest
from paddleseg_ext.service.prototxt import read_prototxt
from paddleseg_ext.service.spec import DATATYPES, ModelSpec, TensorSpec, find

FILE = "serving.yml"
_PROTOTXTS = ("serving_server_conf.prototxt", "serving_client_conf.prototxt")
_MODELS = (".pdmodel", ".json", ".onnx")
_KEYS = ("name", "version", "model", "params", "inputs", "outputs", "preprocessing")
_TENSOR_KEYS = ("name", "alias", "datatype", "shape")


@dataclass(frozen=True)
class ServedFolder:
    """A folder that can be served.

    model, params: its files; an ONNX model has no params. name, version: of the model, "": not said. source: the file that
    says it. inputs, outputs: what is said of them, empty where nothing is. whole: whether it says it all; Paddle Serving
    leaves out sizes that may change. preprocessing: what inputs have gone through, as a tree of plain values.
    """

    model: Path
    params: Path | None
    name: str = ""
    version: str = ""
    source: Path | None = None
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    whole: bool = True
    preprocessing: Mapping[str, Any] = field(default_factory=dict)

    def joined(self, spec: ModelSpec) -> ModelSpec:
        """What the model's own file says (`spec`), with names, aliases and order from here.

        Raises:
            ConfigError: the two contradict each other.
        """
        inputs, outputs = self.inputs or spec.inputs, self.outputs or spec.outputs
        missing = [t.name for t in spec.inputs if not find(inputs, t.name)]
        if missing:
            raise ConfigError(f"{self.source}: the input '{missing[0]}' of {self.model.name} is missing")
        return ModelSpec(
            self.name or spec.name,
            self.version or spec.version,
            tuple(self._joined(t, spec.inputs, "input") for t in inputs),
            tuple(self._joined(t, spec.outputs, "output") for t in outputs),
        )

    def _joined(self, said: TensorSpec, own: Sequence[TensorSpec], kind: str) -> TensorSpec:
        tensor = next((t for t in own if t.name == said.name), None)
        if tensor is None:
            known = closest(said.name, [t.name for t in own])
            raise ConfigError(f"{self.source}: {self.model.name} has no {kind} '{said.name}'{known}")
        sizes = [size for size in tensor.shape if size >= 0]
        same = all(a == b or -1 in (a, b) for a, b in zip(said.shape, tensor.shape, strict=False))
        fits = same and len(said.shape) == len(tensor.shape) if self.whole else list(said.shape) in (sizes, [-1])
        if not fits or said.datatype != tensor.datatype:
            raise ConfigError(
                f"{self.source}: {kind} '{said.name}' is {tensor.datatype} {list(tensor.shape)} in {self.model.name}, "
                f"but {said.datatype} {list(said.shape)} here"
            )
        # A file may fix a size that the model leaves open, or leave open (as the batch) what tracing has fixed.
        return replace(said, shape=said.shape if self.whole else tensor.shape, alias=said.alias or said.name)


def read_folder(folder: Path) -> ServedFolder:
    """What there is in a folder. Raises ConfigError."""
    if not folder.is_dir():
        raise ConfigError(f"--model {folder}: no such folder")
    if (folder / FILE).is_file():
        return _read_yaml(folder / FILE)
    model, params = _model_files(folder)
    for name in _PROTOTXTS:
        if (folder / name).is_file():
            inputs, outputs = read_prototxt(folder / name)
            return ServedFolder(model, params, "", "", folder / name, inputs, outputs, whole=False)
    return ServedFolder(model, params)


def write_yaml(folder: Path, spec: ModelSpec, model: str, params: str | None, preprocessing: Mapping[str, Any]) -> None:
    """Write `serving.yml`."""

    def tensors(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
        return [{**asdict(t), "shape": list(t.shape)} for t in specs]

    content = {
        **{"name": spec.name, "version": spec.version, "model": model, "params": params},
        **{"inputs": tensors(spec.inputs), "outputs": tensors(spec.outputs), "preprocessing": dict(preprocessing)},
    }
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, allow_unicode=True)
    (folder / FILE).write_text(text, encoding="utf-8")


def _model_files(folder: Path) -> tuple[Path, Path | None]:
    if (folder / "__model__").is_file() and (folder / "__params__").is_file():
        return folder / "__model__", folder / "__params__"
    found = [p for p in sorted(folder.iterdir()) if p.suffix in _MODELS and (_params(p) or p.suffix == ".onnx")]
    if len(found) != 1:
        said = f"{len(found)} models in it ({', '.join(p.name for p in found)})" if found else "no model in it"
        raise ConfigError(
            f"--model {folder}: {said}; one is expected: NAME.pdmodel or NAME.json with NAME.pdiparams, or "
            "__model__ with __params__"
        )
    return found[0], _params(found[0])


def _params(model: Path) -> Path | None:
    params = model.with_suffix(".pdiparams")
    return params if params.is_file() else None


def _read_yaml(path: Path) -> ServedFolder:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not YAML: {getattr(error, 'problem', error)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    content = _mapping(path, "the file", content, _KEYS)
    files = {key: content.get(key) for key in ("model", "params")}
    paths: dict[str, Path | None] = {"params": None}
    for key, name in files.items():
        if name is None and key == "params":
            continue
        # A name and not a path: a file from elsewhere must not lead out of its folder.
        if not isinstance(name, str) or Path(name).name != name or not (path.parent / name).is_file():
            raise ConfigError(f"{path}: {key}: the name of a file beside it is expected, but got {name!r}")
        paths[key] = path.parent / name
    preprocessing = content.get("preprocessing") or {}
    if not isinstance(preprocessing, dict):
        raise ConfigError(f"{path}: preprocessing: a mapping is expected, but got {preprocessing!r}")
    for key in ("name", "version"):
        if not isinstance(content.get(key, ""), str):
            raise ConfigError(f"{path}: {key}: a text is expected, but got {content[key]!r}")
    model = paths["model"]
    assert model is not None
    return ServedFolder(
        *(model, paths["params"], content.get("name", ""), content.get("version", ""), path),
        inputs=_tensors(path, "inputs", content.get("inputs")),
        outputs=_tensors(path, "outputs", content.get("outputs")),
        preprocessing=preprocessing,
    )


def _tensors(path: Path, key: str, content: Any) -> tuple[TensorSpec, ...]:
    if not isinstance(content, list) or not content:
        raise ConfigError(f"{path}: {key}: a list of tensors is expected, but got {content!r}")
    tensors = []
    for index, item in enumerate(content):
        where = f"{key}[{index}]"
        item = _mapping(path, where, item, _TENSOR_KEYS)
        name, alias = item.get("name"), item.get("alias") or item.get("name")
        if not (isinstance(name, str) and name and isinstance(alias, str)):
            raise ConfigError(f"{path}: {where}: a name, and perhaps an alias, is expected, but got {item!r}")
        datatype, shape = item.get("datatype"), item.get("shape")
        if datatype not in DATATYPES:
            raise ConfigError(
                f"{path}: {where}.datatype: one of {', '.join(DATATYPES)} is expected, but got {datatype!r}"
            )
        if not isinstance(shape, list) or not all(type(size) is int and size >= -1 for size in shape):
            raise ConfigError(f"{path}: {where}.shape: sizes, -1 for any, are expected, but got {shape!r}")
        tensors.append(TensorSpec(name, datatype, tuple(shape), alias))
    names = [name for t in tensors for name in {t.name, t.alias}]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{path}: {key}: '{twice[0]}' names two tensors")
    return tuple(tensors)


def _mapping(path: Path, where: str, content: Any, keys: Sequence[str]) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: {where}: a mapping with {', '.join(keys)} is expected, but got {content!r}")
    unknown = [key for key in content if key not in keys]
    if unknown:
        raise ConfigError(f"{path}: {where}: no key {unknown[0]!r}{closest(str(unknown[0]), keys)}")
    return content
