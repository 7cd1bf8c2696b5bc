"""Catches internal tensors of a model by the names that an adaptor gives them."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import paddle
from paddle import Tensor, nn

from paddleseg_ext.distill.adaptor import AdaptorBase
from paddleseg_ext.errors import ConfigError, closest

_SPEC = re.compile(
    r"^(?:(?P<layer>[^:\[\]()]+)(?P<input>:input)?|(?:(?P<owner>[^:\[\]()]+)\.)?(?P<method>\w+)\(\))(?:\[(?P<index>\d+)\])?$"
)

# What a tensor is while a model is traced for export: of the old IR, of PIR.
_TENSORS = (Tensor, paddle.static.Variable, paddle.pir.Value)


class Recorder:
    """A context manager: inside it, each forward of the model leaves the adaptor's tensors to be taken.

    Hooks are attached once and come off at the end. A layer that is called several times in a forward gives its last
    tensor.

    Args:
        adaptor: names the tensors by keys.
        names: further layers (`layer`, `layer:input`, `layer[1]`, `layer.method()`), which are their own keys.
        where: what errors say these came from.

    Raises (when entered): ConfigError where a name is no layer of the model, with the closest names.
    """

    def __init__(self, adaptor: AdaptorBase, names: Iterable[str] = (), where: str = "distill.features") -> None:
        self.adaptor, self.names, self._where = adaptor, tuple(names), where
        self._owner = type(adaptor).__name__
        self._caught: dict[str, Tensor] = {}
        self._hooks: list[Any] = []
        self.specs: dict[str, str] = {}  # where each key's tensor is caught

    def __enter__(self) -> "Recorder":
        try:
            for key, spec in self._mapping(add_tensor=False).items():
                self._attach(key, spec, f"{self._owner}: '{key}'")
            for name in self.names:
                if name not in self.specs:
                    self._attach(name, name, self._where)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for hook in reversed(self._hooks):
            hook.remove()
        self._hooks.clear()
        self.specs.clear()
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
        self.specs[key] = spec
        match = _SPEC.match(spec) if isinstance(spec, str) else None
        if match is None:
            raise ConfigError(f"{where}: the name of a layer is expected, but got {spec!r}{_suffixes(spec)}")
        index = int(match["index"]) if match["index"] else None

        def catch(value: Any) -> None:
            self._caught[key] = _as_tensor(value, f"{where}: {spec}", index)

        layer = self._layer(match["owner"] if match["method"] else match["layer"], where)
        if match["method"]:
            self._hooks.append(_MethodHook(layer, match["method"], catch, where))
        elif match["input"]:
            self._hooks.append(layer.register_forward_pre_hook(lambda _layer, inputs: catch(inputs)))
        else:
            self._hooks.append(layer.register_forward_post_hook(lambda _layer, _inputs, output: catch(output)))

    def _layer(self, name: str | None, where: str) -> nn.Layer:
        """The layer of this name, or the model itself for None."""
        model = self.adaptor.model
        if name is None:
            return model
        layers = dict(model.named_sublayers())
        if name not in layers:
            raise ConfigError(f"{where}: {type(model).__name__} has no layer '{name}'{closest(name, layers)}")
        return layers[name]


class _MethodHook:
    """Lets `catch` see what one method of one layer returns, until it is removed; no other layer is touched."""

    def __init__(self, layer: nn.Layer, method: str, catch: Callable[[Any], None], where: str) -> None:
        original = getattr(layer, method, None)
        if not callable(original):
            known = [n for n in dir(type(layer)) if n not in dir(nn.Layer) and callable(getattr(type(layer), n))]
            raise ConfigError(f"{where}: {type(layer).__name__} has no method '{method}'{closest(method, known)}")
        self.layer, self.method = layer, method
        # Where there is one, the method that another hook has put there.
        self.before = vars(layer).get(method)

        def watched(*args: Any, **kwargs: Any) -> Any:
            value = original(*args, **kwargs)
            catch(value)
            return value

        vars(layer)[method] = watched

    def remove(self) -> None:
        if self.before is None:
            del vars(self.layer)[self.method]
        else:
            vars(self.layer)[self.method] = self.before


def _suffixes(spec: Any) -> str:
    """What may follow a layer's name, where something else does."""
    name = re.split(r"[:\[(]", spec)[0] if isinstance(spec, str) else ""
    return closest(spec, (f"{name}:input", f"{name}[0]", f"{name}()")) if name else ""


def _as_tensor(value: Any, where: str, index: int | None = None) -> Tensor:
    if isinstance(value, list | tuple) and (index is not None or len(value) == 1):
        if index is not None and index >= len(value):
            raise ConfigError(f"{where}: there are only {len(value)} elements")
        value = value[index or 0]
    if isinstance(value, list | tuple):
        raise ConfigError(f"{where}: {len(value)} tensors; choose one by a number in brackets, such as [0]")
    if not isinstance(value, _TENSORS):
        raise ConfigError(f"{where}: a tensor is expected, but it is a {type(value).__name__}")
    return value


def no_features(model: nn.Layer) -> Recorder:
    """A recorder that catches nothing."""
    return Recorder(AdaptorBase(model))
