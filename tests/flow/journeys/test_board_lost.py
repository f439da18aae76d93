"""A board that goes away while the command line uses it: exit code 3, and words instead of a traceback."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tvmflow import flow
from tvmflow.board.local import read_line, stop
from tvmflow.board.wire import greet

REPOSITORY = Path(__file__).parents[3]
SECONDS = 90.0


@pytest.fixture(scope="module")
def artifact(network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flow.compile(network, work_dir=tmp_path_factory.mktemp("artifact"), check_import=False).artifact.path


@pytest.fixture
def server() -> Iterator[tuple[psutil.Process, int]]:
    """A board server on this machine, and its port."""
    command = [sys.executable, "-m", "tvmflow.board.server", "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TVM_USE_RUNTIME_LIB": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    yield psutil.Process(process.pid), int(read_line(process, SECONDS).rpartition(":")[2])
    stop(process)


def worker_of(server: psutil.Process) -> psutil.Process:
    """The process that runs the client's job: the session's child."""
    return next(child for session in server.children() for child in session.children())


GONE = "(the session ended with its server|the board hung up)"
"""Which one is said depends on whether the session saw its server die before the connection closed."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "victim", "says"),
    [
        ("run", "server", f"{GONE} while asked to"),
        ("bench", "server", f"{GONE} while asked to"),
        ("run", "worker", "the session was killed by SIGKILL while asked to"),
    ],
)
def test_killed_in_mid_run(
    artifact: Path, server: tuple[psutil.Process, int], tmp_path: Path, verb: str, victim: str, says: str
) -> None:
    process, port = server
    many = tmp_path / "many.npz"
    np.savez(many, image=np.zeros((100_000, 3, 8, 8), "float32"))
    options = {"run": ["--input", many], "bench": ["--runs", 10_000_000]}[verb]
    command = [sys.executable, "-m", "tvmflow", verb, artifact, "--board", f"127.0.0.1:{port}", *options]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    client = subprocess.Popen(
        [str(word) for word in command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + SECONDS
        while greet("127.0.0.1", port, SECONDS)["busy"] is None:
            assert client.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(2)  # the model is there and runs
        (process if victim == "server" else worker_of(process)).send_signal(signal.SIGKILL)
        out, said = client.communicate(timeout=SECONDS)
    finally:
        client.kill()
    assert client.returncode == 3, said
    assert re.search(rf"error: 127\.0\.0\.1:{port}: {says}", said) and "Traceback" not in said
    assert out == ""
