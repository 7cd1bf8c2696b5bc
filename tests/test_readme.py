"""What the two READMEs and the tutorial say: the same in both languages, about files that exist, by commands that run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from paddleseg_ext.data.fundus import write_fundus
from paddleseg_ext.distill.user_file import load_user_file

ROOT = Path(__file__).resolve().parents[1]
READMES = [ROOT / "README.md", ROOT / "README_cn.md"]
TUTORIAL = ROOT / "docs/tutorial.md"
# The tutorial's own models and data on a scale that takes seconds: other sizes, and no download.
SMALL = ["--iters", "2", "--save_interval", "1", "--batch_size", "2", "--log_iters", "1", "--device", "cpu", "--opts"]
SMALL += [f"{part}_dataset.transforms.0.target_size=[64, 64]" for part in ("train", "val")]


def commands(readme):
    """Every command line of the fenced bash blocks, continuation lines joined, comments left out."""
    blocks = re.findall(r"```bash\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def test_both_languages_give_the_same_commands_and_figures():
    english, chinese = READMES
    assert commands(english) == commands(chinese)
    figures = [re.findall(r"\d\.\d{3,4}", readme.read_text(encoding="utf-8")) for readme in READMES]
    assert figures[0] and figures[0] == figures[1]


@pytest.mark.parametrize("page", [*READMES, *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_every_link_to_a_file_leads_somewhere(page):
    targets = re.findall(r"\]\((?!https?://)([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [t for t in targets if not (page.parent / t).exists()] == []


def test_every_make_target_named_exists():
    makefile = (ROOT / "Makefile").read_text()
    named = {words[1] for words in commands(READMES[0]) if words[0] == "make"}
    assert named >= {"quickstart", "setup"}
    assert [target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def example(readme, language):
    """The one block of this language."""
    (code,) = re.findall(rf"```{language}\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    return code


def test_the_shipped_distill_config_without_its_comment_signs_is_the_readmes_example(tmp_path):
    shipped = (ROOT / "slim/distill/distill_config.py").read_text()
    uncommented = re.sub(
        r"^( *)# (?=mapping_layers\[\"hidden_0|return| {2,}|[\]{}])", r"\1", shipped, flags=re.MULTILINE
    )
    read = []
    for name, code in (
        ("shipped", uncommented),
        *((f"readme_{i}", example(r, "python")) for i, r in enumerate(READMES)),
    ):
        (tmp_path / f"{name}.py").write_text(code)
        user = load_user_file(str(tmp_path / f"{name}.py"))
        layers = [kind(None).mapping_layers() for kind in (user.student_adaptor, user.teacher_adaptor)]
        read.append((layers, [(p.student, p.teacher, p.loss.type, p.weight, p.connector.type) for p in user.pairs]))
    layers = [{"hidden_0": "backbone.bb_3_1"}, {"hidden_0": "backbone.bb_3_2"}]
    assert read == [(layers, [("hidden_0", "hidden_0", "SegChannelwiseLoss", 50.0, "auto")])] * 3
    assert example(READMES[0], "yaml") == example(READMES[1], "yaml")


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*/*_student.yml")), ids=lambda p: p.name)
def test_a_students_file_distils_from_a_teacher_that_was_trained(config):
    head = config.read_text(encoding="utf-8").split("distill_train.py")[1].split("--save_dir")[0]
    assert "--teacher_opts model.pretrained=output/" in head


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The project with drawn images where the tutorial's data belong."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("train.py", "slim", "configs", "paddleseg_ext", "tools", "deploy"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "data").mkdir()
    write_fundus(str(folder / "data/optic_disc_seg"), train=4, val=2, size=(64, 64))
    return folder


# ImageNet weights are a download, which the tests do without; distillation does not need the teacher's.
RANDOM = "model.backbone.pretrained=null"


@pytest.fixture(scope="module")
def trained(checkout):
    """The checkout after the README's tutorial; with what its last command printed."""
    for command in tutorial(READMES[0]):
        text = run(checkout, [sys.executable, *command[1:], *SMALL, RANDOM])
    return checkout, text


def tutorial(page):
    """The commands that train on the tutorial's own data."""
    return [w for w in commands(page) if w[1:2] and w[1].endswith("train.py") and "optic_disc" in " ".join(w)]


def test_the_tutorial_runs_word_for_word_teacher_student_and_distillation(trained):
    folder, text = trained
    assert len(tutorial(READMES[0])) == 3
    for command in tutorial(READMES[0]):
        save_dir = folder / command[command.index("--save_dir") + 1]
        assert (save_dir / "best_model/model.pdparams").is_file()
        assert (save_dir / "pictures").is_dir()
    assert re.search(r"\[TEACHER\] mIoU 0\.\d{4}", text)
    assert "distill/KLLoss" in text


def test_the_examples_of_internal_tensors_train_the_tutorials_student(trained):
    folder, _ = trained
    command = tutorial(READMES[0])[2]
    student = command[command.index("--student_config") + 1]
    (folder / "mine.py").write_text(example(READMES[0], "python"))
    (folder / "mine.yml").write_text(f"_base_: {student}\n" + example(READMES[0], "yaml"))
    changed = ["mine.yml" if word == student else word for word in command]
    text = run(
        folder, [sys.executable, *changed[1:-1], "output/tensors", "--distill_config", "mine.py", *SMALL, RANDOM]
    )
    for pair in ("hidden_0", "backbone.bb_3_1"):
        assert re.search(rf"distill/SegChannelwiseLoss_{pair}: .*conv1x1 512 to 2048 channels, weight 50", text)


def test_the_tutorial_in_docs_goes_on_from_there_to_a_report_and_an_export(trained):
    folder, _ = trained
    steps = commands(TUTORIAL)
    assert steps[:3] == tutorial(READMES[0])
    for name, text in re.findall(r"<!-- file: (\S+) -->\n```yaml\n(.*?)```", TUTORIAL.read_text(), re.DOTALL):
        (folder / name).write_text(text)
    small = ["--device", "cpu", "--opts", next(word for word in SMALL if word.startswith("val_dataset"))]
    said = {}
    for command in steps[3:]:
        name = command[1] if command[1].endswith(".py") else command[2].rsplit(".", 1)[-1]
        options = {"inspect": ["--input_size", "64", "64"], "report": ["--device", "cpu"]}
        options["slim/distill/distill_train.py"] = [*SMALL, RANDOM]
        said[name] = run(folder, [sys.executable, *command[1:], *options.get(name, small)])
    assert list(said) == ["inspect", "slim/distill/distill_train.py", "report", "val", "predict", "export"]
    assert "backbone.bb_3_1 [1, 512, 8, 8]  <-  backbone.bb_3_2 [1, 2048, 8, 8]" in said["inspect"]
    assert "conv1x1 512 to 2048 channels" in said["slim/distill/distill_train.py"]
    assert "mIoU" in said["val"] and "2 images predicted" in said["predict"] and "model.onnx" in said["export"]
    page = (folder / "output/report/report.html").read_text()
    assert all(role in page for role in ("student alone", "teacher", "distilled", "SegChannelwiseLoss"))


def test_the_newer_tutorials_paths_and_its_spelling_work_too(checkout):
    """PaddleSeg moved the scripts to tools/ and deploy/slim/; the configuration is a first-edition file name there too."""
    configs = "./configs/quick_start/deeplabv3p_resnet{}_os8_optic_disc_512x512_1k_{}.yml"
    student = configs.format(18, "student")
    common = [*("--num_workers", "0", "--seed", "0", "--save_dir", "output/newer"), *SMALL]
    run(checkout, [sys.executable, "tools/train.py", "--config", student, *common])
    # A teacher of the student's kind is enough here, and quicker.
    distill = ["deploy/slim/distill/distill_train.py", "--teather_config", student, "--student_config", student]
    weights = "model.pretrained=output/newer/iter_2/model.pdparams"
    run(checkout, [sys.executable, *distill, "--teacher_opts", weights, *common])


def run(folder, command):
    done = subprocess.run(command, cwd=folder, text=True, timeout=300, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout
