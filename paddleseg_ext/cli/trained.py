"""What the commands with a trained model share: the model, its configuration, and how it is applied."""

import argparse
import dataclasses
from dataclasses import dataclass
from typing import Any

from paddle import nn

from paddleseg_ext import config as configuration
from paddleseg_ext.cli.screen import start_logging
from paddleseg_ext.config import Component, Config, TestConfig
from paddleseg_ext.data.build import dataset_facts
from paddleseg_ext.engine import env
from paddleseg_ext.errors import ConfigError
from paddleseg_ext.models import build_trained_model


@dataclass(frozen=True)
class Trained:
    """A model with its weights, in eval mode, the data set it is for, and how it is applied to an image."""

    model: nn.Layer
    config: Config
    dataset: Component
    test_config: TestConfig


def open_trained(args: argparse.Namespace) -> Trained:
    """Read `--config`, build the model and load `--model_path`.

    Raises:
        UserError: something that the user can mend.
    """
    start_logging(env.rank())
    device = env.set_device(args.device)
    env.check_precision(args.precision, device)
    config = configuration.load(args.config, opts=args.opts)
    if config.val_dataset is None:
        raise ConfigError(f"{config.path}: the key 'val_dataset' is missing")
    facts = dataset_facts(config.val_dataset)
    model = build_trained_model(config.model, args.model_path, facts.num_classes, facts.img_channels)
    return Trained(model, config, config.val_dataset, _test_config(args, config.test_config))


def _test_config(args: argparse.Namespace, default: TestConfig) -> TestConfig:
    given = {name: getattr(args, name) for name in ("aug_eval", "flip_horizontal", "flip_vertical", "is_slide")}
    changes: dict[str, Any] = {name: True for name, value in given.items() if value}
    for name in ("scales", "crop_size", "stride"):
        if getattr(args, name):
            changes[name] = tuple(getattr(args, name))
    merged = dataclasses.replace(default, **changes)
    if merged.is_slide and not (merged.crop_size and merged.stride):
        raise ConfigError("--is_slide needs --crop_size and --stride")
    if merged.leaves_gaps:
        raise ConfigError(
            f"--stride {list(merged.stride or ())} leaves gaps between windows of --crop_size {list(merged.crop_size or ())}"
        )
    if min(merged.scales) <= 0:
        raise ConfigError(f"--scales are above 0, but got {list(merged.scales)}")
    return merged
