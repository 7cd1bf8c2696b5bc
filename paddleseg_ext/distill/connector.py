"""What brings a student's and a teacher's feature to one shape: as little as is needed, trained with the student."""

import math
from collections.abc import Callable, Sequence

import paddle.nn.functional as F
from paddle import Tensor, nn

from paddleseg_ext import registry
from paddleseg_ext.config import Component
from paddleseg_ext.errors import ConfigError, closest
from paddleseg_ext.losses.base import Loss

_STRIDES = (4, 8, 16, 32, 64, 2, 1)


def conv1x1(channels_in: int, channels_out: int, norm: bool = True) -> nn.Layer:
    """A 1x1 convolution, and batch norm unless `norm` is false."""
    return _convolution(channels_in, channels_out, 1, norm)


def conv3x3(channels_in: int, channels_out: int, norm: bool = True) -> nn.Layer:
    """A 3x3 convolution, and batch norm unless `norm` is false."""
    return _convolution(channels_in, channels_out, 3, norm)


def mlp(channels_in: int, channels_out: int, hidden: int | None = None) -> nn.Layer:
    """A 1x1 convolution to `hidden` channels (default: as many as the teacher's), ReLU, another 1x1 convolution."""
    hidden = hidden or channels_out
    return nn.Sequential(nn.Conv2D(channels_in, hidden, 1), nn.ReLU(), nn.Conv2D(hidden, channels_out, 1))


PROJECTIONS: dict[str, Callable[..., nn.Layer]] = {"conv1x1": conv1x1, "conv3x3": conv3x3, "mlp": mlp}
KINDS = ("auto", "none")


def register_projection(make: Callable[..., nn.Layer]) -> Callable[..., nn.Layer]:
    """A decorator: `connector: {type: <its name>}` then means this function or class.

    It is called with `channels_in` and `channels_out` and the connector's further arguments, and gives a layer from maps
    [N, channels_in, H, W] to [N, channels_out, H, W].
    """
    PROJECTIONS[make.__name__] = make
    return make


class Connector(nn.Layer):
    """Maps a pair of features to the shape at which they are compared.

    The student's channels become the teacher's by a projection that trains with the student; its resolution becomes the
    teacher's by bilinear resizing (align_corners=False). Tokens [N, L, C] of either side become a map first; a class token
    is dropped. Vectors [N, D] stay as they are.

    Args:
        student, teacher: shapes of the features.
        size: (height, width) of the images that they were seen for; tells tokens' rows and columns.
        component: of type 'auto', which projects by `conv1x1` where the channels differ and the loss needs them equal; or one
            of PROJECTIONS with its arguments, which projects in any case; or 'none', which changes nothing.
        loss: what compares them.

    Raises:
        ValueError: shapes that cannot be brought together.
        ConfigError: arguments that the projection does not take.
    """

    def __init__(
        self,
        student: Sequence[int],
        teacher: Sequence[int],
        size: tuple[int, int],
        component: Component,
        loss: nn.Layer,
    ) -> None:
        super().__init__()
        kind = component.type
        self.steps: list[str] = []
        self.projection: nn.Layer | None = None
        self.resized_to: tuple[int, int] | None = None
        self.grids = (None, None) if kind == "none" else (_grid(student, size), _grid(teacher, size))
        for side, grid in zip(("student", "teacher"), self.grids, strict=True):
            if grid is not None:
                self.steps.append(f"{side}'s tokens as {grid[0]}x{grid[1]}")
        from_shape, to_shape = _as_map_shape(student, self.grids[0]), _as_map_shape(teacher, self.grids[1])
        _check_axes(loss, from_shape, to_shape)
        # The shapes of what comes out, student's and teacher's.
        self.shapes: tuple[Sequence[int], Sequence[int]] = (from_shape, to_shape)
        fits = getattr(loss, "fits", Loss.fits)
        if kind in KINDS and fits(from_shape, to_shape):
            return
        if kind == "none":
            raise ValueError("shapes must be equal, or a connector chosen")
        if len(from_shape) != 4 or len(to_shape) != 4:
            raise ValueError(
                "vectors [N, D] are compared with vectors of the same length alone, and without a projection"
            )
        resized = [*from_shape[:2], *to_shape[2:]]
        if kind != "auto" or not fits(resized, to_shape):
            kind = "conv1x1" if kind == "auto" else kind
            component = Component(kind, component.params, component.where)
            component = component.with_params(channels_in=from_shape[1], channels_out=to_shape[1])
            registry.check_arguments(component, PROJECTIONS[kind])
            self.projection = registry.call(component, PROJECTIONS[kind], dict(component.params))
            self.steps.append(f"{kind} {from_shape[1]} to {to_shape[1]} channels")
            from_shape = [from_shape[0], to_shape[1], *from_shape[2:]]
        if from_shape[2:] != to_shape[2:] and not fits(from_shape, to_shape):
            self.resized_to = (to_shape[2], to_shape[3])
            self.steps.append(f"resize to {to_shape[2]}x{to_shape[3]}")
            from_shape = [*from_shape[:2], *to_shape[2:]]
        self.shapes = (from_shape, to_shape)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        student, teacher = _to_map(student, self.grids[0]), _to_map(teacher, self.grids[1])
        if self.projection is not None:
            student = self.projection(student)
        if self.resized_to is not None:
            # To what the teacher has now: crops of another size give other maps.
            student = F.interpolate(student, teacher.shape[2:], mode="bilinear", align_corners=False)
        return student, teacher

    def describe(self) -> str:
        """What it does, in words, or 'none'."""
        return ", ".join(self.steps) or "none"


def build_connector(
    component: Component, student: Sequence[int], teacher: Sequence[int], size: tuple[int, int], loss: nn.Layer
) -> Connector:
    """The connector of a pair.

    Raises:
        ConfigError: an unknown kind.
        ValueError: shapes that it cannot bring together.
    """
    known = (*KINDS, *PROJECTIONS)
    if component.type not in known:
        raise ConfigError(f"{component.where}: no connector '{component.type}'{closest(component.type, known)}")
    for name in component.params if component.type in KINDS else ():
        raise ConfigError(f"{component.where}: {component.type} takes no argument '{name}'")
    return Connector(student, teacher, size, component, loss)


def as_map(feature: Tensor, size: tuple[int, int]) -> Tensor:
    """A feature of images of this size as maps [N, C, H, W], be it maps, tokens [N, L, C] or vectors [N, C].

    Raises:
        ValueError: another shape.
    """
    x = _to_map(feature, _grid(feature.shape, size))
    return x if x.ndim == 4 else x.reshape([*x.shape, 1, 1])


def _convolution(channels_in: int, channels_out: int, size: int, norm: bool) -> nn.Layer:
    convolution = nn.Conv2D(channels_in, channels_out, size, padding=size // 2, bias_attr=None if not norm else False)
    return nn.Sequential(convolution, nn.BatchNorm2D(channels_out)) if norm else convolution


def _grid(shape: Sequence[int], size: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of tokens [N, L, C] of an image of this size; None for what is no token sequence."""
    if len(shape) == 4 or len(shape) == 2:
        return None
    if len(shape) != 3:
        raise ValueError("maps [N, C, H, W], tokens [N, L, C] or vectors [N, D] are expected")
    for stride in _STRIDES:
        rows, columns = math.ceil(size[0] / stride), math.ceil(size[1] / stride)
        if rows * columns in (shape[1], shape[1] - 1):
            return rows, columns
    raise ValueError(f"{shape[1]} tokens are no grid of a {size[0]}x{size[1]} image")


def _as_map_shape(shape: Sequence[int], grid: tuple[int, int] | None) -> Sequence[int]:
    return list(shape) if grid is None else [shape[0], shape[2], *grid]


def _check_axes(loss: nn.Layer, *shapes: Sequence[int]) -> None:
    """Raise ValueError where the loss would take an axis of these for another."""
    for shape in shapes:
        if len(shape) not in getattr(loss, "axes", Loss.axes):
            hint = "; `connector: auto` makes them of tokens [N, L, C]" if len(shape) == 3 else ""
            raise ValueError(f"{type(loss).__name__} compares maps [N, C, H, W]{hint}")


def _to_map(x: Tensor, grid: tuple[int, int] | None) -> Tensor:
    if grid is not None:
        x = x[:, x.shape[1] - grid[0] * grid[1] :]  # a class token comes first
        return x.transpose([0, 2, 1]).reshape([x.shape[0], x.shape[2], *grid])
    return x
