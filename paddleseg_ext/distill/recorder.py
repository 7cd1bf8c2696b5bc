"""Catches internal tensors of a model by the names that an adaptor gives them."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from paddle import Tensor, nn

from paddleseg_ext.distill.adaptor import AdaptorBase
from paddleseg_ext.errors import ConfigError, closest

_SPEC = re.compile(r"^(?P<layer>[^:\[\]]+)(?P<input>:input)?(?:\[(?P<index>\d+)\])?$")


class Recorder:
    """A context manager: inside it, each forward of the model leaves the adaptor's tensors to be taken.

    Hooks are attached once and come off at the end. A layer that is called several times in a forward gives its last
    tensor.

    Args:
        adaptor: names the tensors by keys.
        names: further layers (`layer`, `layer:input`, `layer[1]`), which are their own keys.

    Raises (when entered): ConfigError where a name is no layer of the model, with the closest names.
    """

    def __init__(self, adaptor: AdaptorBase, names: Iterable[str] = ()) -> None:
        self.adaptor, self.names = adaptor, tuple(names)
        self._owner = type(adaptor).__name__
        self._caught: dict[str, Tensor] = {}
        self._hooks: list[Any] = []
        self._keys: set[str] = set()

    def __enter__(self) -> "Recorder":
        try:
            for key, spec in self._mapping(add_tensor=False).items():
                self._attach(key, spec, f"{self._owner}: '{key}'")
            for name in self.names:
                if name not in self._keys:
                    self._attach(name, name, "distill.features")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._keys.clear()
        self._caught.clear()

    def take(self) -> dict[str, Tensor]:
        """What the last forward left, by key; the recorder keeps no reference to it."""
        caught, self._caught = self._caught, {}
        for key, value in self._mapping(add_tensor=True).items():
            if not isinstance(value, str):
                caught[key] = _as_tensor(value, f"{self._owner}: '{key}'")
        return caught

    def _mapping(self, *, add_tensor: bool) -> Mapping[str, Any]:
        self.adaptor.add_tensor = add_tensor
        try:
            return self.adaptor.mapping_layers() or {}
        except AttributeError as error:
            raise ConfigError(
                f"{self._owner}.mapping_layers: {error}; a tensor must be set by the model's forward, "
                "and is asked for inside `if self.add_tensor:`"
            ) from None
        finally:
            self.adaptor.add_tensor = False

    def _attach(self, key: str, spec: Any, where: str) -> None:
        self._keys.add(key)
        match = _SPEC.match(spec) if isinstance(spec, str) else None
        if match is None:
            raise ConfigError(f"{where}: the name of a layer is expected, but got {spec!r}")
        layers = dict(self.adaptor.model.named_sublayers())
        layer = layers.get(match["layer"])
        if layer is None:
            model = type(self.adaptor.model).__name__
            raise ConfigError(f"{where}: {model} has no layer '{match['layer']}'{closest(match['layer'], layers)}")
        index = int(match["index"]) if match["index"] else None

        def catch(value: Any) -> None:
            self._caught[key] = _as_tensor(value, f"{where}: {spec}", index)

        if match["input"]:
            self._hooks.append(layer.register_forward_pre_hook(lambda _layer, inputs: catch(inputs)))
        else:
            self._hooks.append(layer.register_forward_post_hook(lambda _layer, _inputs, output: catch(output)))


def _as_tensor(value: Any, where: str, index: int | None = None) -> Tensor:
    if isinstance(value, list | tuple) and (index is not None or len(value) == 1):
        if index is not None and index >= len(value):
            raise ConfigError(f"{where}: there are only {len(value)} elements")
        value = value[index or 0]
    if isinstance(value, list | tuple):
        raise ConfigError(f"{where}: {len(value)} tensors; choose one by a number in brackets, such as [0]")
    if not isinstance(value, Tensor):
        raise ConfigError(f"{where}: a tensor is expected, but it is a {type(value).__name__}")
    return value


def no_features(model: nn.Layer) -> Recorder:
    """A recorder that catches nothing."""
    return Recorder(AdaptorBase(model))
