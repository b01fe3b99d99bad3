"""The Python of the documents and README's commands run, with less training, smaller networks, MLPs in the commands."""

import re
import shlex
from pathlib import Path

import matplotlib.image
import pytest

from jmeta import cli, demo

ROOT = Path(__file__).parents[1]
SHORTER = {
    r"steps( ?= ?)\d+": r"steps\g<1>2",
    r"episodes=\d+": "episodes=4",
    r"width=\d+": "width=4",
    r"models.conv4\(norm": "models.conv4(width=4, norm",
}
SHORTER_COMMANDS = {
    r"--steps \d+": "--steps 10",
    r"--episodes \d+": "--episodes 4",
    r"--ways 60": "--ways 6",
    r"--queries 15": "--queries 2",
    r"--strided True": "--model mlp --norm batch",
    r"--norm running": "--model mlp --norm running",
}


def blocks(language, document="README.md"):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)


def shortened(text, by):
    for pattern, replacement in by.items():
        text = re.sub(pattern, replacement, text)
    return text


def printed_by(document, capsys):
    """What the Python of a document prints, its blocks run one after another."""
    names = {}
    for block in blocks("python", document):
        exec(shortened(block, SHORTER), names)
    return capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")  # a user's own code may promote ranks and types
def test_the_python_blocks_run_one_after_another(capsys):
    printed = printed_by("README.md", capsys)
    assert re.search(r"accuracy [\d.]+ ± [\d.]+ % \(95 % CI, 4 episodes\)", printed)
    assert "('batch',) True" in printed


@pytest.mark.filterwarnings("ignore")
def test_the_python_blocks_of_your_data_run_one_after_another(capsys):
    printed = printed_by("docs/your-data.md", capsys)
    assert re.search(r"accuracy .* episodes\)\n\[2[5-9], 2[5-9], 2[5-9]\]\n\[\[", printed)
    assert printed.splitlines()[-1].startswith("mean squared error ")


def commands(word):
    """Those of the block of README.md in which the word is."""
    (block,) = (block for block in blocks("bash") if word in block)
    return [line for line in block.splitlines() if line.startswith("jmeta ")]


@pytest.mark.filterwarnings("ignore")  # TFDS warns on import
def test_the_commands_run_one_after_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len(commands("--resume")) == 5
    for command in commands("--resume"):
        run(command, capsys)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_the_commands_on_omniglot_run_one_after_another(tmp_path, monkeypatch, omniglot_files, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    assert len(commands("--archives")) == 4
    for command in commands("--archives"):
        run(command.replace("ARCHIVES", str(omniglot_files / "archives")), capsys)


def run(command, capsys):
    command = shortened(command, SHORTER_COMMANDS)
    assert cli.main(shlex.split(command, comments=True)[1:]) == 0, command + "\n" + capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # matplotlib's dependencies warn
def test_the_demo_prints_both_accuracies_and_draws_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "STEPS", 2)
    monkeypatch.setattr(demo, "EPISODES", 4)
    assert cli.main(["demo", "--out", str(tmp_path / "demo.png")]) == 0
    printed = capsys.readouterr().out
    for moment in ("before", "after"):
        assert re.search(rf"{moment} meta-training: +accuracy [\d.]+ ± [\d.]+ %", printed)
    assert matplotlib.image.imread(tmp_path / "demo.png").shape[:2] == (525, 1350)
