"""Artifacts for other processors on emulated boards (`tools/emulated_board setup`): equal to the last bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tvmflow import flow
from tvmflow.board.local import local_board
from tvmflow.target import get_target

TOOL = (sys.executable, str(Path(__file__).parents[2] / "tools" / "emulated_board"))
pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module", autouse=True)
def set_up() -> None:
    probe = subprocess.run([*TOOL, "run", "--cpu", "max", "--", "-c", ""], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(probe.stderr.strip())


@pytest.mark.parametrize("name", ["rpi4", "rpi5"])
def test_artifact_verifies_on_its_board(name: str, every_kernel: dict[str, Any]) -> None:
    """The expected outputs were made on this machine, with other instructions and another storage type."""
    options = dict(every_kernel)
    artifact = flow.compile(options.pop("model"), name, **options).artifact
    command = (*TOOL, "run", "--cpu", str(get_target(name).tvm["mcpu"]), "--", "-m", "tvmflow.board.server")
    with local_board(command, name) as board:
        result = flow.verify(artifact.path, board=board.address, threads=1)
    assert result.passed and result.bit_exact and result.vectors == 2


@pytest.mark.parametrize("place", ["rpi4", "rpi5", "x86-64-v3@Haswell", "x86-64@Nehalem"])
def test_every_integer_tensor(place: str, every_kernel: dict[str, Any], bit_exact: Any, tmp_path: Path) -> None:
    from tvmflow.flow.lower import lower
    from tvmflow.trace import Trace, silent

    where, options = bit_exact.Place.parse(place), dict(every_kernel)
    lowered = lower(options.pop("model"), where.target, Trace(None, silent), **options)
    row = bit_exact.measure(where, bit_exact.reference(lowered, samples=1), "none", tmp_path)
    assert row.integers.tensors > 10 and row.integers.bits == 0, row.integers.worst
    assert row.outputs.bits == 0
