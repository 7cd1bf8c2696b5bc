"""Images without labels beside those that have them: a student can learn them from its teacher."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from paddle.io import Dataset

from paddleseg_ext.data.check import check_images
from paddleseg_ext.errors import ConfigError, DataError
from paddleseg_ext.types import UNLABELLED


class WithUnlabelled(Dataset):
    """A PaddleSeg data set, and after it images that are transformed alike and whose labels are UNLABELLED.

    What the transforms add around an image (padding) is ignored as ever.

    Args:
        dataset: has `file_list`, `transforms` and `ignore_index`.
        listed: a text file with an image in each line (what follows a space is passed over), relative to `root`.
        root: the data set's folder.
        where: the place in the configuration, for messages.

    Raises:
        DataError: the list or an image is missing, or it is empty.
        ConfigError: the data set makes more than labels of its samples.
    """

    def __init__(self, dataset: Any, listed: str, root: str, where: str) -> None:
        super().__init__()
        if getattr(dataset, "edge", False) or not hasattr(dataset, "file_list"):
            raise ConfigError(f"{where}: works with data sets of images and label files, without `edge`")
        try:
            lines = Path(listed).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{where}: {listed} cannot be read: {error}") from None
        images = [str(Path(root, line.split()[0])) for line in lines if line.strip()]
        if not images:
            raise DataError(f"{where}: {listed} lists no image")
        check_images(images, where)
        self.dataset, self.labelled = dataset, len(dataset)
        self.file_list = [*dataset.file_list, *([image, None] for image in images)]
        # Labels are uint8 until they are transformed; this value is no class and is not ignored.
        self._mark = 254 if dataset.ignore_index != 254 else 253

    def __len__(self) -> int:
        return len(self.file_list)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < self.labelled:
            return dict(self.dataset[index])
        path = self.file_list[index][0]
        image = cv2.imread(path, self.dataset.transforms.read_flag)
        if image is None:
            raise DataError(f"{path}: cannot be read")
        label = np.full(image.shape[:2], self._mark, "uint8")
        sample = {"trans_info": [], "img": image.astype("float32"), "label": label, "gt_fields": ["label"]}
        sample = self.dataset.transforms(sample)
        label = sample["label"].astype("int64")
        sample["label"] = np.where(label == self._mark, UNLABELLED, label)
        return dict(sample)
