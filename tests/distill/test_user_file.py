"""The file that users edit."""

import pytest

from paddleseg_ext.distill.adaptor import AdaptorBase
from paddleseg_ext.distill.user_file import load_user_file
from paddleseg_ext.errors import ConfigError

TUTORIAL = """
from paddleslim.dygraph.dist import AdaptorBase

def prepare_distill_adaptor():
    class StudentAdaptor(AdaptorBase):
        def mapping_layers(self):
            mapping_layers = {}
            mapping_layers['hidden_0'] = 'conv2'
            if self.add_tensor:
                mapping_layers["hidden_1"] = self.model.reshape_out
            return mapping_layers

    class TeatherAdaptor(AdaptorBase):
        def mapping_layers(self):
            return {'hidden_0': 'conv2'}

    return StudentAdaptor, TeatherAdaptor

def prepare_distill_config():
    config_1 = {
        'feature_type': 'hidden',
        's_feature_idx': 0,
        't_feature_idx': 0,
        'loss_function': 'SegChannelwiseLoss',
        'weight': 1.0
    }
    return [config_1]
"""
ADAPTORS = (
    "from paddleseg_ext.distill import AdaptorBase\ndef prepare_distill_adaptor(): return AdaptorBase, AdaptorBase\n"
)
PAIR = "{'s_feature_idx': 0, 't_feature_idx': 1, 'loss_function': 'SegChannelwiseLoss'}"


@pytest.fixture
def read(tmp_path):
    def load(text):
        (tmp_path / "mine.py").write_text(text)
        return load_user_file(str(tmp_path / "mine.py"))

    return load


def test_a_file_written_for_the_tutorial_works_as_it_is(read):
    user = read(TUTORIAL)
    assert issubclass(user.student_adaptor, AdaptorBase) and user.teacher_adaptor.__name__ == "TeatherAdaptor"
    (pair,) = user.pairs
    assert (pair.student, pair.teacher, pair.loss.type, pair.weight) == (
        "hidden_0",
        "hidden_0",
        "SegChannelwiseLoss",
        1,
    )


def test_further_keys_are_arguments_of_the_loss(read):
    (pair,) = read(
        ADAPTORS + f"def prepare_distill_config(): return [{{**{PAIR}, 'temperature': 2, 'weight': 5}}]"
    ).pairs
    assert pair.loss.params == {"temperature": 2} and pair.weight == 5 and pair.teacher == "hidden_1"


@pytest.mark.parametrize("nothing", ["[]", "None"])
def test_no_pairs_is_allowed(read, nothing):
    assert read(ADAPTORS + f"def prepare_distill_config(): return {nothing}").pairs == ()


def test_the_file_that_ships_distils_the_outputs_only():
    from pathlib import Path

    user = load_user_file(str(Path(__file__).resolve().parents[2] / "slim/distill/distill_config.py"))
    assert user.pairs == ()


def config(returned):
    return ADAPTORS + f"def prepare_distill_config(): return {returned}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (", r"mine.py:1: '\(' was never closed"),
        ("import nowhere", "mine.py: does not run: ModuleNotFoundError: No module named 'nowhere'"),
        ("def prepare_distill_config(): return []", "the function prepare_distill_adaptor is missing"),
        (
            ADAPTORS + "def prepare_distil_config(): return []",
            "prepare_distill_config is missing; closest: 'prepare_distil_c",
        ),
        ("def prepare_distill_adaptor(): return 3", "returns the classes StudentAdaptor, TeacherAdaptor"),
        ("def prepare_distill_adaptor(): return int, str", "int must subclass paddleseg_ext.distill.AdaptorBase"),
        (config("{}  or 3"), "prepare_distill_config returns a list, but got a int"),
        (config("[3]"), r"prepare_distill_config\[0\]: a dict with .* is expected, but got 3"),
        (config("[{'s_feature_idx': 0, 'loss_function': 'KLLoss'}]"), "the key 't_feature_idx' is missing"),
        (config(f"[{PAIR}, {{**{PAIR}, 'weight': 'much'}}]"), r"config\[1\]: weight is a number, but got 'much'"),
        (config(f"[{{**{PAIR}, 'loss_function': len}}]"), "loss_function is the name of a loss"),
    ],
)
def test_what_is_wrong_is_named(read, text, message):
    with pytest.raises(ConfigError, match=message):
        read(text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.py: no such file \(--distill_config\)"):
        load_user_file(str(tmp_path / "nowhere.py"))
