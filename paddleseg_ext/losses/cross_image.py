"""Similarities of pixels across images: within the batch, and to a memory of earlier ones."""

from collections.abc import Sequence

import paddle
import paddle.distributed as dist
from paddle import Tensor, nn

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.losses import functional as F
from paddleseg_ext.losses.base import Loss, positive


class ClassQueue(nn.Layer):
    """The latest `size` vectors of each class, oldest out first. Its content is state: it is saved with the loss.

    Args:
        classes, size, channels: it holds float32 [classes, size, channels].
    """

    def __init__(self, classes: int, size: int, channels: int) -> None:
        super().__init__()
        self.classes, self.size = classes, size
        # One row more, which takes what belongs nowhere.
        self.register_buffer("rows", paddle.zeros([classes * size + 1, channels]))
        self.register_buffer("written", paddle.zeros([classes], "int64"))  # vectors ever put in, by class

    @property
    def filled(self) -> Tensor:
        """How many vectors each class has, int64 [classes]."""
        return self.written.clip(max=self.size)

    def vectors(self) -> Tensor:
        """What it holds, [classes, size, channels]; only the first `filled` of a class mean anything."""
        return self.rows[:-1].reshape([self.classes, self.size, -1])

    @paddle.no_grad()
    def put(self, vectors: Tensor, classes: Tensor) -> None:
        """Add vectors [M, channels] of classes int64 [M]; those of a class that does not exist are left out."""
        members = paddle.nn.functional.one_hot(classes.clip(0, self.classes), self.classes + 1)[:, :-1]
        members = members * (classes >= 0).astype(members.dtype).unsqueeze(1)
        order = members.cumsum(0).astype("int64")  # 1 for a class's first of these vectors
        counts = order[-1]
        number = (order * members.astype("int64")).sum(1)
        own = classes.clip(0, self.classes - 1)
        # What the later ones of the same class would overwrite at once is not written at all.
        lives = paddle.logical_and(number > 0, counts[own] - number < self.size)
        slots = own * self.size + (self.written[own] + number - 1) % self.size
        nowhere = paddle.full_like(slots, self.classes * self.size)
        rows = paddle.scatter(self.rows, paddle.where(lives, slots, nowhere), vectors.astype("float32"))
        self.rows.set_value(rows)
        self.written.set_value(self.written + counts)

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` vectors of each class at random, [classes * count, channels], and which of them exist, bool."""
        draw = paddle.rand([self.classes, count]) * self.filled.astype("float32").unsqueeze(1)
        slots = paddle.minimum(draw.astype("int64"), (self.filled - 1).clip(min=0).unsqueeze(1))
        slots = slots + self.size * paddle.arange(self.classes).unsqueeze(1)
        exist = (self.filled > 0).unsqueeze(1).expand([self.classes, count])
        return self.rows[slots.flatten()], exist.flatten()


class CIRKDLoss(Loss):
    """batch * B + pixel * P + region * R: the student's pixels shall resemble other pixels as the teacher's do.

    Features are divided by their length per pixel, f. B: mean over pairs of images i, j of the batch and pixels of i of
    KL(softmax(f_T f_T' / t) || softmax(f_S f_S' / t)), the softmax over j's pixels. P and R: the same of the batch's pixels
    against a memory of the teacher's earlier pixels, and of its earlier means of a class in an image, balanced by class. The
    memories hold only pixels that the labels say to be of their class, are saved with the loss, and are the same in all
    processes of a run.

    Time and memory grow with (N samples)^2 + N samples contrast, not with the resolution squared; the memories take
    classes (pixel_memory + region_memory) C floats.

    Args:
        num_classes: of the data set, whose number is used where it is left out.
        ignore_index: label value of the pixels left out. Default 255.
        temperature: t, above 0. Default 0.1.
        batch, pixel, region: weights of the parts. Default 1, 0.1, 0.1; with 0 a part is not computed.
        samples: at most so many pixels of an image are compared, drawn anew each time. Default 256.
        contrast: of each memory about so many vectors are compared with, as many of each class. Default 1024.
        pixel_memory, region_memory: vectors of each class that are kept. Default 2000, 200.
        updates: so many pixels of each class and image go into the memory. Default 16.

    Shape: student and teacher [N, C, H, W]; label int64 [N, H', W'], needed.
    Raises: ConfigError where an argument is not positive; ValueError without a label.
    Source: Yang et al. 2022, arXiv 2204.06986 (whose code fills the pixel memory of a class with other pixels).
    """

    axes = (4,)

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        temperature: float = 0.1,
        batch: float = 1.0,
        pixel: float = 0.1,
        region: float = 0.1,
        samples: int = 256,
        contrast: int = 1024,
        pixel_memory: int = 2000,
        region_memory: int = 200,
        updates: int = 16,
    ) -> None:
        super().__init__(ignore_index)
        self.num_classes = int(positive("CIRKDLoss: num_classes", num_classes))
        self.temperature = positive("CIRKDLoss: temperature", temperature)
        if min(batch, pixel, region) < 0:
            raise ConfigError(f"CIRKDLoss: batch, pixel and region are not below 0, but got {batch}, {pixel}, {region}")
        self.batch, self.pixel, self.region = batch, pixel, region
        self.samples = int(positive("CIRKDLoss: samples", samples))
        self.contrast = max(1, int(positive("CIRKDLoss: contrast", contrast)) // self.num_classes)
        self.updates = int(positive("CIRKDLoss: updates", updates))
        self.sizes = (
            int(positive("CIRKDLoss: pixel_memory", pixel_memory)),
            int(positive("CIRKDLoss: region_memory", region_memory)),
        )
        self.pixels: ClassQueue | None = None
        self.regions: ClassQueue | None = None

    def prepare(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        self.pixels, self.regions = (ClassQueue(self.num_classes, size, teacher[1]) for size in self.sizes)

    def forward(self, student: Tensor, teacher: Tensor, label: Tensor | None = None) -> Tensor:
        assert self.pixels is not None and self.regions is not None, "prepare() comes first"
        y, mask = self.labels(student, label)
        valid = mask.flatten(1)
        chosen, counts = random_positions(valid, self.samples)
        a_s, a_t = (unit_pixels(x, chosen, counts) for x in (student, teacher.detach()))
        loss = paddle.zeros([])
        if self.batch > 0:
            loss = self.batch * batch_similarity_kl(a_s, a_t, counts, self.temperature)
        for queue, weight in ((self.pixels, self.pixel), (self.regions, self.region)):
            if weight > 0:
                vectors, exist = queue.sample(self.contrast)
                ours, theirs = (paddle.matmul(a, vectors, transpose_y=True) / self.temperature for a in (a_s, a_t))
                loss = loss + weight * F.masked_kl(ours, theirs, exist, counts)
        if self.training:
            self._remember(F.clean(teacher, mask), y.flatten(1), valid)
        return loss

    @paddle.no_grad()
    def _remember(self, teacher: Tensor, label: Tensor, valid: Tensor) -> None:
        """Put pixels and means of each class of each image into the memories.

        Args:
            teacher: float32 [N, C, H, W].
            label, valid: int64 and bool [N, H W].
        """
        assert self.pixels is not None and self.regions is not None
        images, channels = teacher.shape[:2]
        numbers = paddle.arange(self.num_classes).reshape([1, -1, 1])
        members = paddle.logical_and(label.unsqueeze(1) == numbers, valid.unsqueeze(1))  # [N, classes, H W]
        positions, exist = random_positions(members.flatten(0, 1), self.updates)
        every = exist.reshape([images, -1])
        pixels = unit_pixels(teacher, positions.reshape(every.shape), every).reshape([-1, channels])
        flat = teacher.flatten(2)
        shares = members.astype("float32") / F.lengths(flat)
        means = F.unit_vectors(paddle.matmul(shares, flat, transpose_y=True), axis=2).reshape([-1, channels])
        nowhere = paddle.full([1], -1, "int64")
        own = paddle.arange(self.num_classes).tile([images])  # of each row of `members`
        classes = paddle.where(exist > 0, own.unsqueeze(1).expand(exist.shape), nowhere).flatten()
        present = paddle.where(members.flatten(0, 1).any(1), own, nowhere)
        for queue, vectors, kinds in ((self.pixels, pixels, classes), (self.regions, means, present)):
            queue.put(*gathered(vectors, kinds))


def unit_pixels(x: Tensor, positions: Tensor, counts: Tensor) -> Tensor:
    """The vectors of some pixels over their length, float32 [N, A, C]; 0 where one does not count.

    Args:
        x: [N, C, H, W].
        positions: int64 [N, A], of pixels counted row by row.
        counts: float32 [N, A], 1 for the pixels that exist and 0 for the rest.
    """
    images, channels, height, width = x.shape
    rows = x.flatten(2).transpose([0, 2, 1]).flatten(0, 1)
    places = positions + height * width * paddle.arange(images).unsqueeze(1)
    found = paddle.gather(rows, places.flatten()).astype("float32").reshape([images, -1, channels])
    return F.unit_vectors(paddle.where(counts.unsqueeze(2) > 0, found, paddle.zeros([1])), axis=2)


def random_positions(valid: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Up to `count` random positions of each row that are True in bool [R, L], and which of them are: int64, float32 [R, count].

    Where a row has fewer, the rest of its positions are False ones.
    """
    draw = (paddle.rand(valid.shape) + 1e-6) * valid.astype("float32")
    top, positions = paddle.topk(draw, min(count, valid.shape[1]), axis=1)
    return positions, (top > 0).astype("float32")


def batch_similarity_kl(student: Tensor, teacher: Tensor, counts: Tensor, temperature: float) -> Tensor:
    """Mean over images i, j and pixels of i of KL of the softmax over j's pixels of similarities / temperature.

    Args:
        student, teacher: unit vectors [N, A, C]; channels may differ.
        counts: float32 [N, A], 1 for the pixels that exist and 0 for the rest.
    """
    images, pixels = counts.shape

    def similarities(x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        return paddle.matmul(flat, flat, transpose_y=True).reshape([images, pixels, images, pixels]) / temperature

    exist = counts.reshape([1, 1, images, pixels]) > 0
    rows = counts.unsqueeze(2).expand([images, pixels, images])
    # Images without a pixel are no partners.
    partner = (counts.sum(1) > 0).astype("float32").reshape([1, 1, images])
    return F.masked_kl(similarities(student), similarities(teacher), exist, rows * partner)


@paddle.no_grad()
def gathered(vectors: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of all processes, in the order of their ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return vectors, classes
    parts: list[list[Tensor]] = [[], []]
    for part, tensor in zip(parts, (vectors, classes), strict=True):
        dist.all_gather(part, tensor)
    return paddle.concat(parts[0]), paddle.concat(parts[1])
