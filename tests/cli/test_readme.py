"""The README's commands, run as they stand, in order, in one folder that holds what they name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(bash|python)(?: (run|slow))?\n(.*?)^```", re.MULTILINE | re.DOTALL)
DATA = {
    "mobilenetv2_mnist32.onnx": "model.onnx",
    "mnist_calibration.npz": "calibration.npz",
    "mnist_calibration.preprocess.toml": "calibration.preprocess.toml",
    "mnist_heldout.npz": "heldout.npz",
    "mnist_heldout.preprocess.toml": "heldout.preprocess.toml",
}


def blocks() -> list[tuple[str, str, str]]:
    """Language, mark and text of every fenced block."""
    return [match.groups(default="") for match in BLOCK.finditer((ROOT / "README.md").read_text())]


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_every_command_names_a_verb_and_options_that_exist() -> None:
    from typer.main import get_command

    from tvmflow.cli.app import app

    commands = [
        line for language, _, text in blocks() if language == "bash" for line in lines(text) if line.startswith("tvmflow ")
    ]
    assert len(commands) > 20
    for line in commands:
        command, words = get_command(app), line.split()[1:]
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known, line


def run(command: list[str], folder: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("mark", ["run", "slow"])
def test_commands_work(tmp_path: Path, mark: str) -> None:
    """Of a block marked ``run`` or ``slow``, each command must leave with 0."""
    for name, alias in DATA.items():
        shutil.copy(ROOT / "tests" / "data" / name, tmp_path / alias)
    for language, marked, text in blocks():
        if marked != mark:
            continue
        if language == "python":
            run([sys.executable, "-c", text], tmp_path)
        else:
            for line in lines(text):
                program, *words = line.split()
                assert program == "tvmflow", line
                run([sys.executable, "-m", "tvmflow", *words], tmp_path)


def test_links_lead_somewhere() -> None:
    prose = re.sub(r"```.*?```|`[^`]*`", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)\)", prose):
        assert target.startswith("https://") or (ROOT / target).exists(), target
