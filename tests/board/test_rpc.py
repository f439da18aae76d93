"""A healthy board: run, measure, refuse politely."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from tvmflow.board import rpc
from tvmflow.board.local import read_line
from tvmflow.board.registry import Board, add_board
from tvmflow.errors import ArtifactError, BoardError, ConfigError, DataError

ROOT = Path(__file__).parents[2]
X = np.arange(4, dtype="float32")[None]


def test_run_and_benchmark(server: Any, tiny: Path, manifest_of: Any) -> None:
    with rpc.connect(server.board) as board, board.open(tiny, manifest_of("x86_64"), threads=1) as session:
        result = session.run({"x": X})
        assert result["y"].tolist() == (X + 1).tolist() and result["z"].tolist() == ((X + 1) ** 2).tolist()
        assert [a.tolist() for a in session(X)] == [(X + 1).tolist(), ((X + 1) ** 2).tolist()]
        times = session.benchmark({"x": X}, repeat=3, number=2)
        assert len(times) == 3 and all(t > 0 for t in times)
        assert session.run({"x": X})["y"].tolist() == (X + 1).tolist()


def test_profile(server: Any, tiny: Path, manifest_of: Any) -> None:
    with rpc.connect(server.board) as board, board.open(tiny, manifest_of("x86_64"), 1) as session:
        found = session.profile({"x": X}, runs=3)
        assert [name for name, _ in found.kernels] == ["add", "multiply"]
        assert found.whole > 0 and all(ms >= 0 for _, ms in found.kernels)
        assert session.run({"x": X})["y"].tolist() == (X + 1).tolist()


def test_two_sessions_in_a_row_and_leaked_references(server: Any, tiny: Path, manifest_of: Any) -> None:
    leaked = []
    for _ in range(2):
        board = rpc.connect(server.board, timeout=60)
        leaked.append((board, board.tensor(X, board.device()), board.open(tiny, manifest_of("x86_64"), 1)))
        board.close()
    assert len(leaked) == 2


def test_local_starts_and_stops_a_server(tiny: Path, manifest_of: Any) -> None:
    with rpc.connect("local") as board:
        port = board.board.port
        with board.open(tiny, manifest_of("x86_64"), threads=1) as session:
            assert session.run({"x": X})["y"].tolist() == (X + 1).tolist()
        assert board.info()["arch"] == board.facts["arch"]
    with pytest.raises(BoardError, match="can't connect"):
        rpc.connect(f"127.0.0.1:{port}", timeout=2)


def test_local_server_ends_with_a_killed_client() -> None:
    code = "import time, tvmflow.board.local as l\nwith l.local_board() as board: print(board.port, flush=True), time.sleep(90)"
    client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)})
    port = int(read_line(client, 90))
    server = psutil.Process(client.pid).children()[0]
    client.kill()
    client.communicate()
    server.wait(30)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_time_function(server: Any, native: Path) -> None:
    with rpc.connect(server.board) as board:
        times = board.time_function(native, "rest", [X, X], repeat=2, number=3)
    assert len(times) == 2


def test_registered_name(server: Any, tmp_path: Path) -> None:
    file = tmp_path / "boards.toml"
    add_board(Board(name="desk", port=server.board.port), file)
    with rpc.connect("desk", registry=file) as board:
        assert board.name == "desk" and board.facts["busy"] is None
    with pytest.raises(ConfigError, match="did you mean 'desk'"):
        rpc.connect("dsk", registry=file)


def test_wrong_cpu_is_refused_before_upload(server: Any, tiny: Path, manifest_of: Any) -> None:
    with rpc.connect(server.board) as board:
        with pytest.raises(ArtifactError, match="compiled for aarch64, here is x86_64"):
            board.open(tiny, manifest_of("aarch64"), 1)
        with pytest.raises(ArtifactError, match="needs CPU features that here .* lacks: asimddp, warp9"):
            board.open(tiny, manifest_of("x86_64", ("sse2", "warp9", "asimddp")), 1)


def test_library_without_manifest_is_refused(server: Any, tiny: Path) -> None:
    with rpc.connect(server.board) as board, pytest.raises(ArtifactError, match="no tvmflow manifest"):
        board.session(tiny)


def test_wrong_inputs(server: Any, tiny: Path, manifest_of: Any) -> None:
    with rpc.connect(server.board) as board, board.open(tiny, manifest_of("x86_64"), 1) as session:
        with pytest.raises(DataError, match="no input 'X'"):
            session.run({"X": X})
        with pytest.raises(DataError, match="missing inputs: x"):
            session.run({})
        with pytest.raises(DataError, match="shape 4"):
            session.run({"x": X[0]})
        with pytest.raises(DataError, match="float64"):
            session(X.astype("float64"))
        session.close()
        with pytest.raises(DataError, match="closed"):
            session(X)


def test_more_threads_than_cores(server: Any, tiny: Path, manifest_of: Any) -> None:
    with rpc.connect(server.board) as board, pytest.raises(BoardError, match="instead of 4096"):
        board.open(tiny, manifest_of("x86_64"), threads=4096)


def test_a_server_started_with_one_tvm_thread_gives_every_core(
    start_server: Any, tiny: Path, manifest_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TVM_NUM_THREADS", "1")
    with rpc.connect(start_server().board) as board:
        cores = int(board.facts["cores"])
        board.use_threads(cores)
        with board.open(tiny, manifest_of("x86_64")) as session:
            assert session.threads == board.facts["physical_cores"]
            assert session.run({"x": X})["y"].tolist() == (X + 1).tolist()


@pytest.mark.parametrize("name", ["../escaped", "/tmp/tvmflow-escaped", "a/../../b"])
def test_upload_out_of_the_session_folder_is_refused(server: Any, name: str) -> None:
    with rpc.connect(server.board) as board:
        with pytest.raises(BoardError, match="refused file name"), board.call("upload", 5):
            board.rpc.get_function("tvm.rpc.server.upload")(name, bytearray(b"x"))
        with board.call("upload", 5):
            board.rpc.upload(bytearray(b"x"), "fine")
    assert not Path("/tmp/tvmflow-escaped").exists()


def test_upload_without_a_name_is_refused_and_the_session_goes_on(server: Any) -> None:
    """The folder itself is a name that MetaSchedule's runner removes, but no file."""
    with rpc.connect(server.board) as board:
        with pytest.raises(BoardError, match="could not upload"), board.call("upload", 5):
            board.rpc.get_function("tvm.rpc.server.upload")("", bytearray(b"x"))
        with board.call("upload", 5):
            board.rpc.upload(bytearray(b"x"), "fine")


def test_wrong_key(server: Any) -> None:
    with pytest.raises(BoardError, match="the key 'other' was given, this board has ''"):
        rpc.connect(Board(name="here", port=server.board.port, key="other"), timeout=3)


def test_library_replaced_while_its_older_self_is_loaded(
    server: Any, native: Path, tiny: Path, tmp_path: Path, manifest_of: Any
) -> None:
    path = tmp_path / "same.so"
    with rpc.connect(server.board) as board:
        path.write_bytes(tiny.read_bytes())
        with board.open(path, manifest_of("x86_64"), 1) as session:
            path.write_bytes(native.read_bytes())
            assert board.time_function(path, "rest", [], repeat=1)
            assert session.run({"x": X})["y"].tolist() == (X + 1).tolist()


def test_absent_device(server: Any, tiny: Path, manifest_of: Any) -> None:
    manifest = msgspec.structs.replace(manifest_of("x86_64"), device="vulkan")
    with rpc.connect(server.board) as board, pytest.raises(BoardError, match="no vulkan device"):
        board.open(tiny, manifest, 1)
