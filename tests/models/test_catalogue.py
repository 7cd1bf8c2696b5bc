"""The catalogue's models are written in arguments that the models take."""

import copy

import pytest

from paddleseg_ext import registry
from paddleseg_ext.config import Component
from paddleseg_ext.models import catalogue


def values(tree):
    """Everything in nested dictionaries and lists that is neither."""
    if isinstance(tree, dict | list):
        return [v for item in (tree.values() if isinstance(tree, dict) else tree) for v in values(item)]
    return [tree]


@pytest.mark.parametrize("name", sorted(catalogue.CATALOGUE))
def test_a_model_and_its_backbone_take_the_arguments_given(name):
    params = catalogue.model_config(name, 7)
    for kind, given in (("model", params), ("backbone", params.get("backbone"))):
        if given is not None:
            component = Component(given["type"], {k: v for k, v in given.items() if k != "type"}, "catalogue")
            registry.check_arguments(component, registry.component_class(component, kind))


@pytest.mark.parametrize("name", sorted(catalogue.CATALOGUE))
def test_its_losses_are_registered_one_for_each_output(name):
    losses = catalogue.CATALOGUE[name].losses
    given = catalogue.loss_config(name, 7, len(losses) if losses else 3)
    assert {loss["type"] for loss in given} <= set(registry.names("loss"))
    assert len(given) == (len(losses) if losses else 3)


@pytest.mark.parametrize("name", ["KNet", "MaskFormer"])
def test_the_number_of_classes_is_put_in_wherever_it_is_repeated(name):
    filled = [*values(catalogue.model_config(name, 7)), *values(catalogue.loss_config(name, 7, 1))]
    assert filled.count(7) >= 2 and catalogue.NUM_CLASSES not in filled


def test_a_configuration_may_be_changed_without_changing_the_catalogue():
    before = copy.deepcopy(catalogue.CATALOGUE)
    config = catalogue.model_config("KNet", 7)
    config["backbone"]["type"] = "other"
    config["kernel_update_head_params"]["kernel_updator_cfg"]["in_channels"] = 0
    catalogue.loss_config("STDCSeg", 7, 4)[3]["type"] = "other"
    assert before == catalogue.CATALOGUE
