"""A teacher with other classes than the student's: what the two have in common."""

from collections.abc import Mapping

import paddle
from paddle import Tensor

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.losses.functional import log_softmax

_NONE = -1e30  # the score of a class that is not there


class ClassMap:
    """Brings logits of student and teacher to the student's classes that the teacher knows.

    Several teacher classes may mean one student class: their probabilities add up. Teacher classes that are not mapped
    are left out, so what remains is the distribution given that it is one of the shared classes. Pixels labelled with a
    class that the teacher does not know are ignored.

    Args:
        mapping: teacher class to student class.
        teacher_classes, student_classes: how many each has.
        ignore_index: label of the pixels that count nowhere.
        where: what an error begins with.

    Raises:
        ConfigError: a class that does not exist.
    """

    def __init__(
        self, mapping: Mapping[int, int], teacher_classes: int, student_classes: int, ignore_index: int, where: str
    ) -> None:
        for side, given, count in (
            ("teacher", mapping.keys(), teacher_classes),
            ("student", mapping.values(), student_classes),
        ):
            for number in given:
                if not 0 <= number < count:
                    raise ConfigError(f"{where}: the {side} has no class {number}; it has 0 to {count - 1}")
        self.mapping, self.teacher_classes = dict(mapping), teacher_classes
        self.shared = sorted(set(mapping.values()))
        groups = [[t for t, s in mapping.items() if s == number] for number in self.shared]
        width = max(map(len, groups))
        self._members = paddle.to_tensor([group + [group[0]] * (width - len(group)) for group in groups])
        self._missing = paddle.to_tensor([[_NONE * (i >= len(group)) for i in range(width)] for group in groups])
        table = [self.shared.index(n) if n in self.shared else ignore_index for n in range(student_classes)]
        self._table, self._kept = paddle.to_tensor(table), paddle.to_tensor(self.shared)
        self.width = width

    def __len__(self) -> int:
        return len(self.shared)

    def teacher(self, logits: Tensor) -> Tensor:
        """[N, teacher classes, H, W] to [N, shared, H, W] in float32: the log of the sum of each group's exponentials."""
        images, _, *size = logits.shape
        x = paddle.index_select(logits.astype("float32"), self._members.flatten(), axis=1)
        x = x.reshape([images, len(self), self.width, *size])
        if self.width == 1:
            return x.squeeze(2)
        x = x + self._missing.reshape([1, len(self), self.width, 1, 1])
        # log sum exp = x - log softmax, for any member that is there.
        return (x - log_softmax(x, axis=2))[:, :, 0]

    def student(self, logits: Tensor) -> Tensor:
        """[N, student classes, H, W] to [N, shared, H, W]."""
        return paddle.index_select(logits, self._kept, axis=1)

    def labels(self, labels: Tensor) -> Tensor:
        """Student classes to positions among the shared ones; what is no shared class is ignored, other values stay."""
        known = paddle.logical_and(labels >= 0, labels < self._table.shape[0])
        return paddle.where(known, self._table[paddle.where(known, labels, paddle.zeros_like(labels))], labels)
