"""The teacher as it was stored: what it said of each whole image, brought to where the student sees it."""

import math
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import paddle
from paddle import Tensor

from paddleseg_ext.data.file_marks import name_of
from paddleseg_ext.data.geometry import KEY, Axis
from paddleseg_ext.errors import CacheError
from paddleseg_ext.losses.functional import mixing
from paddleseg_ext.teachers.manifest import Manifest, Stored
from paddleseg_ext.teachers.store import Answer, OutputStore
from paddleseg_ext.types import Batch, TeacherOutputs

_LARGEST_STRIDE = 64


class CachedTeacher:
    """Reads stored outputs and applies to them what was done to the image: flips, scaling, crops.

    A map is taken at the centres of the positions that it would have for the student's image, one for each stride, by bilinear
    interpolation; positions in padding get the nearest value of the image. Time and memory of a batch grow with the positions
    and channels that are taken; nothing is computed by the teacher's network.

    Args:
        store: the outputs.
        root: the folder of the data set, from which images are named; None where it has none.
        full_size: the outputs that are taken at each pixel of the student's image instead.
    """

    def __init__(self, store: OutputStore, root: str | None, full_size: Collection[int] = ()) -> None:
        self.store, self.root, self.full_size = store, root, frozenset(map(str, full_size))

    @paddle.no_grad()
    def __call__(self, batch: Batch) -> TeacherOutputs:
        manifest = self.store.manifest
        answers = [self.store.read(name_of(file, self.root)) for file in batch.files]
        geometry = batch.extra[KEY]
        size, known = tuple(batch.images.shape[2:]), tuple(geometry[0, :, -1].astype(int).tolist())
        if size != known:
            raise CacheError(
                f"{batch.files[0]}: its image is {size[0]}x{size[1]}, but {known[0]}x{known[1]} by the transforms that were "
                "followed; one that says keeps_pixels does not keep them"
            )
        found = {
            tensor.key: paddle.stack([self._taken(tensor, *both) for both in zip(answers, geometry, strict=True)])
            for tensor in manifest.tensors
        }
        outputs = {t.key for t in manifest.tensors if t.is_output}
        logits = tuple(found.get(str(index), paddle.zeros([0])) for index in range(manifest.outputs))
        return TeacherOutputs(logits, {key: x for key, x in found.items() if key not in outputs})

    def _taken(self, tensor: Stored, answer: Answer, geometry: np.ndarray) -> Tensor:
        """One tensor of one image, float32 [C, h, w], as the student sees it."""
        full = tensor.is_output and tensor.key in self.full_size
        arrays = answer.maps[tensor.key]
        spots = []
        for axis, view, stride, cells in zip(geometry, answer.view, tensor.stride, arrays[0].shape[1:], strict=True):
            count = math.ceil(axis[-1] / (1 if full else stride))
            spots.append(positions(Axis(*axis), Axis(*view), count, cells))
        (top, down), (left, across) = (mixing(spot) for spot in spots)
        window = [array[:, top : top + down.shape[1], left : left + across.shape[1]] for array in arrays]
        x = restored(window, tensor, self.store.manifest)
        return paddle.matmul(paddle.to_tensor(down), paddle.matmul(x, paddle.to_tensor(across.T)))


def positions(student: Axis, view: Axis, count: int, cells: int) -> np.ndarray:
    """Where, on a stored axis of `cells` positions, the centres of `count` positions of the student's lie; 0 is its first centre.

    Args:
        student, view: how the student's and the teacher's image came from the image as read.
    """
    centres = (np.arange(count) + 0.5) * student.size / count
    seen = view.after(student.before(centres))
    return (seen * cells / view.size - 0.5).clip(0, cells - 1)


def kept(x: np.ndarray, tensor: Stored, manifest: Manifest, what: str) -> Sequence[np.ndarray]:
    """A tensor [C, h, w] as the arrays that are stored of it.

    Raises:
        CacheError: it does not fit half precision.
    """
    if not np.abs(x).max() <= np.finfo("float16").max:
        raise CacheError(
            f"{what}: values up to {np.abs(x).max():.3g} of the teacher's '{tensor.layer}' do not fit fp16"
        )
    if not manifest.is_sparse(tensor):
        return [x.astype("float16")]
    assert manifest.top_k is not None
    order = np.argsort(-x, axis=0, kind="stable")
    largest, others = (np.take_along_axis(x, part, 0) for part in np.split(order, [manifest.top_k]))
    peak = others.max(0, keepdims=True)
    rest = peak + np.log(np.exp(others - peak).mean(0, keepdims=True))
    kind = manifest.parts(tensor)[1][0]
    return [np.concatenate([largest, rest]).astype("float16"), order[: manifest.top_k].astype(kind)]


def restored(arrays: Sequence[np.ndarray], tensor: Stored, manifest: Manifest) -> Tensor:
    """The inverse of `kept`, float32 on the device. Classes that are not stored share what is left of the probability evenly."""
    values = paddle.to_tensor(np.ascontiguousarray(arrays[0])).astype("float32")
    if not manifest.is_sparse(tensor):
        return values
    classes = paddle.to_tensor(arrays[1].astype("int64"))
    dense = values[-1:].tile([tensor.channels, 1, 1])
    return paddle.put_along_axis(dense, classes, values[:-1], axis=0)


def stride_of(image: Iterable[int], cells: Iterable[int]) -> tuple[int, int] | None:
    """Pixels for one position by height and width, powers of two, or None for what is no map of an image of this size."""
    found = []
    for pixels, count in zip(image, cells, strict=True):
        stride = 2 ** round(math.log2(max(pixels / count, 1)))
        if stride > _LARGEST_STRIDE or abs(count - pixels / stride) > 1:
            return None
        found.append(stride)
    return found[0], found[1]
