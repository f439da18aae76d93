"""Emulated boards: the same server, client and refusals on another processor. Needs `tools/emulated_board setup`."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvmflow.board.local import local_board
from tvmflow.board.registry import Board
from tvmflow.board.rpc import connect
from tvmflow.board.wire import greet
from tvmflow.build.link import link
from tvmflow.errors import ArtifactError, BoardError
from tvmflow.target import get_target

TOOL = (sys.executable, str(Path(__file__).parents[2] / "tools" / "emulated_board"))
SERVER = ("-m", "tvmflow.board.server")
X = np.arange(4, dtype="float32")[None]
pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module", autouse=True)
def set_up() -> None:
    probe = subprocess.run([*TOOL, "run", "--cpu", "max", "--", "-c", ""], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(probe.stderr.strip())


@pytest.fixture(scope="module")
def rpi4() -> Iterator[Board]:
    with local_board((*TOOL, "run", "--cpu", "cortex-a72", "--", *SERVER), "rpi4") as board:
        yield board


@pytest.fixture(scope="module")
def haswell() -> Iterator[Board]:
    with local_board((*TOOL, "run-x86", "--cpu", "Haswell", "--", sys.executable, *SERVER), "haswell") as board:
        yield board


@pytest.fixture(scope="module")
def tiny_arm(tmp_path_factory: pytest.TempPathFactory, square_plus_one: Any) -> Path:
    target = get_target("rpi4")
    into = tmp_path_factory.mktemp("arm") / "tiny.so"
    return square_plus_one(
        target.tvm, into, fcompile=lambda out, objects, **_: link([Path(o) for o in objects], Path(out), target)
    )


def test_cross_compiled_program_runs(rpi4: Board, tiny_arm: Path, manifest_of: Any) -> None:
    with connect(rpi4, 30) as board, board.open(tiny_arm, manifest_of("aarch64", get_target("rpi4").features), 1) as session:
        result = session.run({"x": X})
        assert result["y"].tolist() == (X + 1).tolist() and result["z"].tolist() == ((X + 1) ** 2).tolist()
        assert len(session.benchmark({"x": X}, repeat=2)) == 2


def test_features_are_the_emulated_processors(rpi4: Board, tiny_arm: Path, manifest_of: Any) -> None:
    with connect(rpi4, 30) as board:
        assert board.facts["arch"] == "aarch64"
        with pytest.raises(ArtifactError, match="asimddp"):
            board.open(tiny_arm, manifest_of("aarch64", get_target("rpi5").features), 1)


def test_x86_library_on_arm_is_refused(rpi4: Board, tiny: Path, tiny_arm: Path, manifest_of: Any) -> None:
    with connect(rpi4, 30) as board:
        with pytest.raises(ArtifactError, match="compiled for x86_64, rpi4 is aarch64"):
            board.open(tiny, manifest_of("x86_64"), 1)
        with pytest.raises(BoardError, match="could not load"):  # a manifest that lies
            board.open(tiny, manifest_of("aarch64"), 1)
        with board.open(tiny_arm, manifest_of("aarch64"), 1) as session:
            assert session.run({"x": X})["y"].tolist() == (X + 1).tolist()


def test_lesser_x86_processor(haswell: Board, tiny: Path, native: Path, manifest_of: Any) -> None:
    with connect(haswell, 30) as board:
        assert "avx2" in board.facts["features"]
        with pytest.raises(ArtifactError, match="avx512f"):
            board.open(tiny, manifest_of("x86_64", ("avx2", "avx512f")), 1)
        with board.open(tiny, manifest_of("x86_64", ("avx2",)), 1) as session:
            assert session.run({"x": X})["y"].tolist() == (X + 1).tolist()
        with pytest.raises(BoardError, match="SIGILL.*\n.*instructions that this CPU lacks"):
            board.time_function(native, "avx512", [], repeat=1)
    with connect(haswell, 30) as board:
        assert board.info()["arch"] == "x86_64"


def test_up_and_down() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    subprocess.run([*TOOL, "up", "--cpu", "cortex-a76", "--port", str(port)], check=True, capture_output=True)
    try:
        assert "asimddp" in greet("127.0.0.1", port, 30)["features"]
    finally:
        subprocess.run([*TOOL, "down", "--port", str(port)], check=True)
    again = subprocess.run([*TOOL, "down", "--port", str(port)], capture_output=True, text=True)
    assert again.returncode and "no server of ours" in again.stderr
