"""Losses between relations: of pixels, of classes, of images."""

from collections.abc import Sequence

from paddle import Tensor

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.losses import functional as F
from paddleseg_ext.losses.base import AnyChannels, Loss, positive
from paddleseg_ext.losses.feature import as_map


class SegPairWiseLoss(AnyChannels):
    """Mean over images and pairs of cells of (a_S - a_T)^2, a the cosine between the mean features of two cells of a grid.

    Channels may differ. Memory grows with the square of the number of cells, not with the resolution.

    Args:
        ignore_index: label value of the pixels left out. Default 255.
        grid: [rows, columns] of cells. Default [2, 2].
        compat: 'paddleslim' for PaddleSlim's loss of this name, the mean of (S - T)^2 over the cells' mean features themselves,
            of equal channels and without a look at labels. Default None.

    Shape: student [N, C, H, W], teacher [N, C', H, W]; label int64 [N, H', W'].
    Raises: ConfigError where a side of the grid is not positive or compat is unknown.
    Source: Liu et al. 2019, arXiv 1903.04197. Usual weight 10.
    """

    def __init__(self, ignore_index: int = 255, grid: tuple[int, int] = (2, 2), compat: str | None = None) -> None:
        super().__init__(ignore_index)
        if compat not in (None, "paddleslim"):
            raise ConfigError(f"SegPairWiseLoss: compat is null or 'paddleslim', but got {compat!r}")
        rows, columns = (int(positive("SegPairWiseLoss: grid", side)) for side in grid)
        self.grid, self.compat = (rows, columns), compat
        if compat is not None:
            self.fits = Loss.fits  # type: ignore[method-assign]

    def forward(self, student: Tensor, teacher: Tensor, label: Tensor | None = None) -> Tensor:
        if self.compat == "paddleslim":
            ours, theirs = (F.average(as_map(x), self.grid, None) for x in (student, teacher.detach()))
            return F.feature_distance(ours, theirs, None, "mse")
        mask = self.mask(student, label)
        return F.pairwise_similarity_distance(as_map(student), as_map(teacher), mask, self.grid)


class IFVDLoss(AnyChannels):
    """Mean over valid pixels of (c_S - c_T)^2, c the cosine between a pixel's feature and its class's mean in the image.

    Channels may differ. Memory grows with classes times pixels.

    Args:
        num_classes: of the data set, whose number is used where it is left out.
        ignore_index: label value of the pixels left out. Default 255.

    Shape: student [N, C, H, W], teacher [N, C', H, W]; label int64 [N, H', W'], needed.
    Raises: ValueError without a label.
    Source: Wang et al. 2020, "Intra-class Feature Variation Distillation for Semantic Segmentation", ECCV. Usual weight 20.
    """

    axes = (4,)

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__(ignore_index)
        self.num_classes = int(positive("IFVDLoss: num_classes", num_classes))

    def forward(self, student: Tensor, teacher: Tensor, label: Tensor | None = None) -> Tensor:
        y, mask = self.labels(student, label)
        return F.intra_class_variation_distance(student, teacher, y, mask, self.num_classes)


class RKDLoss(Loss):
    """distance * mean Huber(d_S - d_T) + angle * mean Huber(cos_S - cos_T) over pairs and triples of images of the batch.

    d: Euclidean distances between the images' features, over their mean; cos: of the angle at the middle one of three.
    Channels and resolution may differ. Memory grows with the square of the batch times the size of a feature.

    Args:
        ignore_index: label value of the pixels left out. Default 255.
        distance, angle: weights of the two parts. Default 25, 50.

    Shape: student [N, ...], teacher [N, ...], N at least 3; label int64 [N, H', W'].
    Raises: ValueError where the batch has fewer than 3 images.
    Source: Park et al. 2019, arXiv 1904.05068.
    """

    axes = (2, 3, 4)
    images = 3  # of a batch, at least

    @staticmethod
    def fits(student: Sequence[int], teacher: Sequence[int]) -> bool:
        return student[0] == teacher[0]

    def __init__(self, ignore_index: int = 255, distance: float = 25.0, angle: float = 50.0) -> None:
        super().__init__(ignore_index)
        self.distance, self.angle = distance, angle

    def forward(self, student: Tensor, teacher: Tensor, label: Tensor | None = None) -> Tensor:
        student, teacher = (F.clean(x, self.mask(x, label)) for x in (student, teacher))
        return F.relational_distance(student, teacher, self.distance, self.angle)


class FSPLoss(Loss):
    """Mean over images and entries of (G_S - G_T)^2, G = F1 F2^T / (H W) between two features of one model.

    What is compared is how a model goes from one layer to a later one. It takes two features a side
    (`student: [layer1, layer2]`); of a model's two, the larger map is averaged to the size of the smaller one.

    Args:
        ignore_index: label value of the pixels left out. Default 255.

    Shape: student and teacher two features each, [N, C1, H1, W1] and [N, C2, H2, W2], of which H and W may differ between the
    sides; label int64 [N, H', W'].
    Source: Yim et al. 2017, "A Gift from Knowledge Distillation", CVPR. Usual weight 1.
    """

    features = 2

    @staticmethod
    def fits(student: Sequence[int], teacher: Sequence[int]) -> bool:
        return list(student[:2]) == list(teacher[:2])

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], label: Tensor | None = None) -> Tensor:
        ours, theirs = (self._flow(side, label) for side in (student, teacher))
        return (ours - theirs.detach()).square().mean()

    def _flow(self, side: Sequence[Tensor], label: Tensor | None) -> Tensor:
        first, second = (as_map(x).astype("float32") for x in side)
        size = (min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3]))
        first, second = (F.average(x, size, self.mask(x, label)) for x in (first, second))
        return F.flow_matrix(first, second, self.mask(first, label))
