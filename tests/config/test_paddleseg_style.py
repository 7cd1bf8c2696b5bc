"""Configurations in the style that PaddleSeg publishes, read by its reader and by ours to the same."""

import pytest
from paddleseg.cvlibs import Config

from paddleseg_ext import config as configuration

FILES = {
    "_base_/cityscapes.yml": """
batch_size: 2
iters: 80000

train_dataset:
  type: Cityscapes
  dataset_root: data/cityscapes
  transforms:
    - type: ResizeStepScaling
      min_scale_factor: 0.5
      max_scale_factor: 2.0
      scale_step_size: 0.25
    - type: RandomPaddingCrop
      crop_size: [1024, 512]
    - type: RandomHorizontalFlip
    - type: Normalize
  mode: train

val_dataset:
  type: Cityscapes
  dataset_root: data/cityscapes
  transforms:
    - type: Normalize
  mode: val

optimizer:
  type: sgd
  momentum: 0.9
  weight_decay: 4.0e-5

lr_scheduler:
  type: PolynomialDecay
  learning_rate: 0.01
  end_lr: 0
  power: 0.9

loss:
  types:
    - type: CrossEntropyLoss
  coef: [1]
""",
    "pspnet/auxiliary.yml": """
_base_: '../_base_/cityscapes.yml'

model:
  type: PSPNet
  backbone:
    type: ResNet50_vd
    output_stride: 8
    pretrained: null
  enable_auxiliary_loss: True
  align_corners: False
  pretrained: null

loss:
  types:
    - type: CrossEntropyLoss
  coef: [1, 0.4]
""",
    "pspnet/inherited.yml": """
_base_: auxiliary.yml

optimizer:
  _inherited_: False
  type: adam
model:
  backbone: {type: ResNet101_vd}
test_config:
  aug_eval: True
  scales: [0.75, 1.0]
  flip_horizontal: True
""",
    "ocrnet/mixed.yml": """
_base_: '../_base_/cityscapes.yml'

model:
  type: OCRNet
  backbone:
    type: HRNet_W18
    pretrained: null
  backbone_indices: [0]

optimizer:
  weight_decay: 0.0001

loss:
  types:
    - type: MixedLoss
      losses:
        - type: CrossEntropyLoss
        - type: LovaszSoftmaxLoss
      coef: [0.8, 0.2]
    - type: CrossEntropyLoss
  coef: [1, 0.4]

test_config:
  is_slide: True
  crop_size: [1024, 512]
  stride: [768, 384]
""",
    "_base_/short.yml": "batch_size: 16\niters: 7\nlr_scheduler: {warmup_iters: 5}\n",
    "pspnet/two_bases.yml": "_base_: ['../_base_/short.yml', auxiliary.yml]\nlr_scheduler: {power: 2}\n",
}
files = pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("_base_")])


@pytest.fixture
def path(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return lambda name: str(tmp_path / name)


def as_dict(component):
    """A component back as YAML has it."""
    if isinstance(component, configuration.Component):
        return {"type": component.type, **{name: as_dict(value) for name, value in component.params.items()}}
    return [as_dict(item) for item in component] if isinstance(component, list) else component


def agree(theirs, ours):
    assert (ours.batch_size, ours.iters) == (theirs.batch_size, theirs.iters)
    assert as_dict(ours.model) == theirs.model_cfg
    assert as_dict(ours.train_dataset) == theirs.train_dataset_cfg
    assert as_dict(ours.val_dataset) == theirs.val_dataset_cfg
    assert as_dict(ours.optimizer) == theirs.optimizer_cfg
    assert as_dict(ours.lr_scheduler) == theirs.lr_scheduler_cfg
    # PaddleSeg's checker adds ignore_index to the losses, as ours does when it builds them.
    assert [term.coef for term in ours.loss] == theirs.loss_cfg["coef"]
    assert [term.loss.type for term in ours.loss] == [loss["type"] for loss in theirs.loss_cfg["types"]]
    given = {name: getattr(ours.test_config, name) for name in theirs.test_config}
    assert given == {n: tuple(v) if isinstance(v, list) else v for n, v in theirs.test_config.items()}


@files
def test_paddlesegs_reader_and_ours_agree(path, name):
    agree(Config(path(name)), configuration.load(path(name)))


@files
def test_they_agree_on_what_flags_and_opts_overwrite(path, name):
    flags = {"learning_rate": 0.02, "batch_size": 3, "iters": 11}
    opts = ["optimizer.momentum=0.8", "lr_scheduler.end_lr=1e-5", "model.backbone.pretrained=None", "model.name=text"]
    opts.append("val_dataset.transforms=[{'type': 'Resize', 'target_size': [64, 32]}]")
    theirs, ours = Config(path(name), opts=opts, **flags), configuration.load(path(name), opts=opts, **flags)
    agree(theirs, ours)
    assert ours.lr_scheduler.params["learning_rate"] == 0.02 and ours.model.params["name"] == "text"


def test_of_several_bases_the_first_goes_over_the_second(path):
    config = configuration.load(path("pspnet/two_bases.yml"))
    assert (config.batch_size, config.iters, config.model.type) == (16, 7, "PSPNet")
    schedule = {"learning_rate": 0.01, "end_lr": 0, "power": 2, "warmup_iters": 5}
    assert config.lr_scheduler.params == schedule
