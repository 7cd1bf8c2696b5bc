"""Predicts images with a trained model: masks, overlays and, if asked for, probabilities.

python -m paddleseg_ext.cli.predict --config S.yml --model_path output/best_model --image_path photos --save_dir predicted
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from paddleseg.transforms import Compose
from PIL import Image

from paddleseg_ext import registry
from paddleseg_ext.cli import args as flags
from paddleseg_ext.cli.screen import user_errors
from paddleseg_ext.cli.trained import Trained, open_trained
from paddleseg_ext.config import Component
from paddleseg_ext.data.build import dataset_facts
from paddleseg_ext.engine.evaluate import predict, predict_probabilities
from paddleseg_ext.engine.hooks.sinks import ProgressBar
from paddleseg_ext.engine.pictures import palette
from paddleseg_ext.errors import ConfigError, DataError

_log = logging.getLogger(__name__)
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_MASKS, _OVERLAYS, _PROBABILITIES = (
    "pseudo_color_prediction",
    "added_prediction",
    "probabilities",
)  # PaddleSeg's, and ours


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = flags.parser("Predict images with a trained model.")
    flags.add_trained_model(parser)
    flags.add_device(parser)
    add = parser.add_argument
    add("--image_path", type=Path, required=True, help="an image, a .txt list of images, or a folder of them")
    add("--save_dir", type=Path, default=Path("output/result"), help="folder to write to")
    add("--probabilities", action="store_true", help="write float16 [C, H, W] .npy files too")
    add(
        "--custom_color",
        type=int,
        nargs="+",
        metavar="N",
        help="colours instead of PaddleSeg's: red, green, blue of class 0, then of class 1, ..., each 0 to 255",
    )
    args = parser.parse_args(argv)
    with user_errors():
        images = find_images(args.image_path)
        trained = open_trained(args)
        transforms = _transforms(trained.dataset)
        writer = Writer(args.save_dir, colours(args.custom_color, dataset_facts(trained.dataset).num_classes))
        bar = ProgressBar("predicting", "image")
        bar.start(0, len(images))
        broken = []
        try:
            for path, name in images:
                try:
                    _predict_one(trained, transforms, path, name, writer, args.precision, args.probabilities)
                except DataError as error:
                    _log.warning("%s", error)
                    broken.append(str(path))
                bar.advance()
        finally:
            bar.close()
        print(f"{len(images) - len(broken)} images predicted, written to {args.save_dir}")
        if broken:
            raise DataError(
                f"{len(broken)} of {len(images)} images could not be read, the first: {', '.join(broken[:3])}"
            )


def find_images(path: Path) -> list[tuple[Path, Path]]:
    """The images that a path means, each with its name below the folder that is written to.

    A list names one image a line, its first word; names are relative to the list's folder.

    Raises:
        ConfigError: no such path, or no images in it.
    """
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in _IMAGES)
        images = [(p, p.relative_to(path)) for p in found]
    elif path.suffix == ".txt" and path.is_file():
        try:
            words = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.split()]
        except UnicodeDecodeError:
            raise ConfigError(f"--image_path {path}: a list of images is expected, but this is no text") from None
        images = [(path.parent / word, _inside(Path(word))) for word in words]
    elif path.is_file():
        images = [(path, Path(path.name))]
    else:
        raise ConfigError(f"--image_path {path}: no such file or folder")
    if not images:
        raise ConfigError(f"--image_path {path}: no images in it ({', '.join(_IMAGES)})")
    seen: dict[Path, Path] = {}
    for image, name in images:
        if (other := seen.setdefault(name.with_suffix(""), image)) != image:
            mask = name.with_suffix(".png")
            raise ConfigError(
                f"--image_path {path}: {other} and {image} would both become {mask}; predict them into two folders"
            )
    return images


def _inside(path: Path) -> Path:
    """A path of a list as a name below another folder: its last part where it leads elsewhere."""
    return Path(path.name) if path.is_absolute() or ".." in path.parts else path


def colours(given: Sequence[int] | None, classes: int) -> np.ndarray:
    """The palette, uint8 RGB [256, 3]: PaddleSeg's, or the given numbers for the first classes.

    Raises:
        ConfigError: numbers that are no colours, a class without one, or more classes than a mask can hold.
    """
    if classes > 256:
        raise ConfigError(f"masks are PNGs of at most 256 classes, but the model has {classes}")
    table = palette()
    if given is None:
        return table
    if len(given) % 3 or not all(0 <= value <= 255 for value in given):
        raise ConfigError(f"--custom_color takes three numbers from 0 to 255 for each class, but got {list(given)}")
    if len(given) < 3 * classes:
        raise ConfigError(
            f"--custom_color has {len(given) // 3} colours, but the model has {classes} classes: "
            f"class {len(given) // 3} has none"
        )
    count = min(len(given) // 3, 256)
    table[:count] = np.array(given[: 3 * count], np.uint8).reshape(-1, 3)
    return table


def _transforms(dataset: Component) -> Compose:
    parts = dataset.params.get("transforms") or []
    built = [registry.build(part, "transform") for part in parts]
    return Compose(built, img_channels=dataset_facts(dataset).img_channels)


class Writer:
    """Writes what is predicted of an image, each file whole or not at all, under the image's own name."""

    def __init__(self, folder: Path, colours: np.ndarray) -> None:
        self.folder, self.colours = folder, colours
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--save_dir {folder}: cannot be made: {error.strerror}") from None

    def mask(self, name: Path, classes: np.ndarray) -> None:
        """Class numbers as a palette PNG."""
        picture = Image.fromarray(classes.astype(np.uint8), mode="P")
        picture.putpalette(self.colours.tobytes())
        with self._whole(_MASKS, name.with_suffix(".png")) as partial:
            picture.save(partial, format="PNG")

    def overlay(self, name: Path, image: np.ndarray, classes: np.ndarray) -> None:
        """The image, BGR, under its classes' colours."""
        mixed = cv2.addWeighted(image, 0.6, self.colours[classes.astype(np.uint8)][..., ::-1].copy(), 0.4, 0)
        with self._whole(_OVERLAYS, name.with_suffix(".png")) as partial:
            partial.write_bytes(cv2.imencode(".png", mixed)[1].tobytes())

    def probabilities(self, name: Path, values: np.ndarray) -> None:
        """float16 [C, H, W]."""
        with self._whole(_PROBABILITIES, name.with_suffix(".npy")) as partial, partial.open("wb") as file:
            np.save(file, values.astype(np.float16))

    @contextlib.contextmanager
    def _whole(self, kind: str, name: Path) -> Iterator[Path]:
        target = self.folder / kind / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        yield partial
        partial.replace(target)


def _predict_one(
    trained: Trained, transforms: Compose, path: Path, name: Path, writer: Writer, precision: str, probabilities: bool
) -> None:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"{path}: the image cannot be read")
    sample = transforms({"img": str(path)})
    if probabilities:
        values = predict_probabilities(trained.model, sample, trained.test_config, precision)
        classes = values.argmax(axis=0)
        writer.probabilities(name, values)
    else:
        classes = predict(trained.model, sample, trained.test_config, precision)
    writer.mask(name, classes)
    writer.overlay(name, image, classes)


if __name__ == "__main__":
    main()
