"""PaddleSeg data sets from their configuration, and the facts about them that models and losses must agree with."""

from dataclasses import dataclass
from typing import Any

import paddle

from paddleseg_ext import registry
from paddleseg_ext.config import Component, Config
from paddleseg_ext.data.check import check_dataset
from paddleseg_ext.errors import ConfigError, DataError


@dataclass(frozen=True)
class DatasetFacts:
    """Number of classes, the label value that counts nowhere, and image channels."""

    num_classes: int
    ignore_index: int = 255
    img_channels: int = 3


def dataset_facts(component: Component) -> DatasetFacts:
    """Read off a data set's arguments or, where its class fixes them, off the class.

    Raises:
        ConfigError: neither says the number of classes.
    """
    cls = registry.component_class(component, "data set")
    values: dict[str, Any] = {}
    for name in ("num_classes", "ignore_index", "img_channels"):
        value = component.params.get(name, getattr(cls, name.upper(), None))
        if value is not None:
            values[name] = value
    if "num_classes" not in values:
        raise ConfigError(f"{component.where}: {component.type} needs the argument 'num_classes'")
    return DatasetFacts(**values)


def agreed_facts(config: Config) -> DatasetFacts:
    """The facts of a configuration's training set, which its validation set must share."""
    assert config.train_dataset is not None
    facts = dataset_facts(config.train_dataset)
    if config.val_dataset is not None and dataset_facts(config.val_dataset) != facts:
        raise ConfigError(
            f"{config.val_dataset.where}: {dataset_facts(config.val_dataset)}, but the training set has {facts}"
        )
    return facts


def build_dataset(component: Component, *, checked: bool = True) -> paddle.io.Dataset:
    """Build a data set and check every file of it.

    Raises:
        ConfigError, DataError
    """
    dataset = registry.build(component, "data set")
    if checked:
        check_dataset(dataset, component.where)
    elif len(dataset) == 0:
        raise DataError(f"{component.where}: the list of samples is empty")
    return dataset
