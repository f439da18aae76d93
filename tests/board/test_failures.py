"""Boards and clients that misbehave: each ends in an error in bounded time, and the server serves the next client."""

from __future__ import annotations

import json
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tvmflow.board import rpc
from tvmflow.board.info import board_info
from tvmflow.board.reach import check_versions
from tvmflow.board.registry import Board
from tvmflow.board.wire import RPC_MAGIC, greet, identify
from tvmflow.build.manifest import Manifest
from tvmflow.errors import BoardError

X = np.arange(4, dtype="float32")[None]


def still_serves(server: Any, tiny: Path, manifest: Manifest) -> None:
    with rpc.connect(server.board, timeout=60) as board, board.open(tiny, manifest, 1) as session:
        assert session.run({"x": X})["y"].tolist() == (X + 1).tolist()


@contextmanager
def fake(answer: bytes | None) -> Iterator[Board]:
    """Something that accepts every connection and says ``answer``; None says nothing and keeps it open."""
    open_connections = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection = listener.accept()[0]
                except OSError:
                    return
                open_connections.append(connection)
                if answer is not None:
                    with suppress(OSError):  # the client may have left, and the test with it
                        connection.sendall(answer)
                        connection.shutdown(socket.SHUT_WR)

        threading.Thread(target=accept, daemon=True).start()
        yield Board(name="fake", port=listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
    for connection in open_connections:
        connection.close()


@pytest.mark.parametrize(
    ("function", "words"),
    [("crash", "SIGSEGV"), ("illegal", "SIGILL"), ("die", "SIGABRT"), ("leave", "failed in TVM's RPC loop")],
)
def test_crashing_job(server: Any, tiny: Path, native: Path, function: str, words: str, manifest_of: Any) -> None:
    with rpc.connect(server.board) as board:
        with pytest.raises(BoardError, match=words):
            board.time_function(native, function, [], repeat=1)
        with pytest.raises(BoardError, match="the session is over"):
            board.info()
    still_serves(server, tiny, manifest_of("x86_64"))


def test_hanging_job_is_given_up_and_ended(server: Any, tiny: Path, native: Path, manifest_of: Any) -> None:
    with rpc.connect(server.board) as board:
        module = board._load(native)
        with pytest.raises(BoardError, match="no sign of life for 1 s while asked to hang"), board.call("hang", 1):
            module["hang"]()
    still_serves(server, tiny, manifest_of("x86_64"))
    assert "left by its client in mid-job" in server.log.read_text()


def test_session_time_limit(start_server: Any, native: Path, tiny: Path, manifest_of: Any) -> None:
    server = start_server("--session-limit", "1.5")
    with rpc.connect(server.board) as board:
        module = board._load(native)
        with pytest.raises(BoardError, match=r"reached its time limit of 1\.5 s"), board.call("hang", 20):
            module["hang"]()
    still_serves(server, tiny, manifest_of("x86_64"))


def test_server_killed_in_mid_run(own_server: Any, native: Path) -> None:
    with rpc.connect(own_server.board) as board:
        module = board._load(native)
        threading.Timer(0.5, own_server.process.kill).start()
        with pytest.raises(BoardError, match="the session ended with its server while asked to hang"), board.call("hang", 20):
            module["hang"]()


def test_last_words_that_freeing_a_tensor_hears(own_server: Any) -> None:
    """TVM drops what a board says while a remote object is freed; the next call tells it all the same."""
    with rpc.connect(own_server.board) as board:
        tensor = board.tensor(X, board.device())
        session = psutil.Process(own_server.process.pid).children()[0]
        session.children()[0].kill()
        del tensor
        with pytest.raises(BoardError, match="the session was killed by SIGKILL while asked to answer"):
            board.ping()


def test_server_frozen_between_calls(own_server: Any, tiny: Path) -> None:
    own_server.signal(signal.SIGSTOP)
    with pytest.raises(BoardError, match="no answer"):
        rpc.connect(own_server.board, timeout=1)


def test_board_frozen_while_a_remote_tensor_is_freed(own_server: Any) -> None:
    """Freeing holds Python's lock and waits for the board: only another process can end that."""
    board = rpc.connect(own_server.board, timeout=5)
    tensor = board.tensor(X, board.device())
    frozen = psutil.Process(own_server.process.pid).children(recursive=True)
    for process in frozen:
        process.suspend()
    start = time.monotonic()
    del tensor
    with pytest.raises(BoardError, match="no sign of life|hung up"):
        board.info()
    board.close()
    assert time.monotonic() - start < 120
    for process in frozen:
        process.resume()


def test_absent_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(BoardError, match="can't connect"):
        rpc.connect(f"127.0.0.1:{port}", timeout=2)


def test_busy_board_names_its_holder(server: Any) -> None:
    with rpc.connect(server.board):
        assert "127.0.0.1" in greet("127.0.0.1", server.board.port, 60)["busy"]["who"]
        with pytest.raises(BoardError, match="busy: held by .*@.* from 127.0.0.1"):
            rpc.connect(server.board, timeout=0.5)
    with rpc.connect(server.board, timeout=60):
        pass


def test_client_that_waits_gets_its_turn(server: Any) -> None:
    first = rpc.connect(server.board)
    threading.Timer(0.5, first.close).start()
    with rpc.connect(server.board, timeout=60) as second:
        assert second.info()["protocol"] == 2


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"\x00",
        struct.pack("<ii", RPC_MAGIC, -5),
        struct.pack("<ii", RPC_MAGIC, 1 << 30),
        struct.pack("<ii", RPC_MAGIC, 4) + b"\xff\xfe\xfd\xfc",
        struct.pack("<ii", RPC_MAGIC, 20) + b"client: -timeout=abc",
        struct.pack("<ii", RPC_MAGIC, 7) + b"client:" + struct.pack("<Q", 1 << 62) + b"garbage" * 9,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_silent_and_malformed_clients_block_nobody(server: Any, words: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.board.port)) as connection:
        connection.sendall(words)
        time.sleep(0.1)
        assert greet("127.0.0.1", server.board.port, 60)["protocol"] == 2
    with rpc.connect(server.board, timeout=60):
        pass


def facts(**changes: object) -> bytes:
    return json.dumps(board_info() | {"key": "", "busy": None} | changes).encode() + b"\n"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol": 0}, "upgrade tvmflow on the board"),
        ({"protocol": 99}, "upgrade tvmflow here"),
        ({"versions": {"tvm": "0.25.0", "tvm_ffi": "0.1.14"}}, "upgrade on the board: pip install apache-tvm=="),
        ({"versions": {"tvm": "0.31.0", "tvm_ffi": "0.1.14"}}, "upgrade here: pip install apache-tvm==0.31.0"),
    ],
)
def test_version_skew(changes: dict[str, object], words: str) -> None:
    with fake(facts(**changes)) as board, pytest.raises(BoardError) as error:
        rpc.connect(board, timeout=2)
    assert words in str(error.value)


def test_post_releases_fit_together() -> None:
    mine = board_info()
    mine["versions"]["tvm_ffi"] = mine["versions"]["tvm_ffi"].partition(".post")[0] + ".post0"
    check_versions("board", mine)


@pytest.mark.parametrize(
    ("answer", "found"), [(b"SSH-2.0-OpenSSH_9\r\n", "other: b'SSH-2.0"), (b"", "other: closes"), (None, "silent")]
)
def test_something_else_on_the_port(answer: bytes | None, found: str) -> None:
    with fake(answer) as board:
        assert identify("127.0.0.1", board.port, 0.5).startswith(found)
        with pytest.raises(BoardError):
            rpc.connect(board, timeout=0.5)


@pytest.mark.slow
def test_tvms_own_server_and_tracker_are_told_apart() -> None:
    from tvm.rpc import Server as StockServer
    from tvm.rpc.tracker import Tracker

    stock = StockServer(host="127.0.0.1")
    tracker = Tracker(host="127.0.0.1")
    try:
        assert identify("127.0.0.1", stock.port, 60) == "tvm-rpc-server"
        assert identify("127.0.0.1", tracker.port, 60) == "tvm-rpc-tracker"
        with pytest.raises(BoardError, match="tvm-rpc-server"):
            rpc.connect(f"127.0.0.1:{stock.port}", timeout=60)
    finally:
        stock.terminate()
        tracker.terminate()


def test_sigterm_ends_the_server_and_its_sessions(own_server: Any, native: Path) -> None:
    with rpc.connect(own_server.board):
        own_server.signal(signal.SIGTERM)
        assert own_server.process.wait(60) == 0
    with pytest.raises(BoardError):
        rpc.connect(own_server.board, timeout=1)
