"""A board that goes away while the command line uses it: exit code 3, and words instead of a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from tvmflow import flow
from tvmflow.board.local import read_line, stop

REPOSITORY = Path(__file__).parents[3]
SECONDS = 300.0
MID_RUN_WAITS, MID_RUN_SECONDS = 200, 0.5
"""Waits for the client, or seconds of computing, after which a worker is in mid-run: it opens a model in 30 and 0.05."""


@pytest.fixture(scope="module")
def artifact(network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flow.compile(network, work_dir=tmp_path_factory.mktemp("artifact"), check_import=False).artifact.path


@pytest.fixture
def server() -> Iterator[tuple[psutil.Process, int]]:
    """A board server on this machine, and its port."""
    command = [sys.executable, "-m", "tvmflow.board.server", "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    yield psutil.Process(process.pid), int(read_line(process, SECONDS).rpartition(":")[2])
    stop(process)


def running_worker(server: psutil.Process) -> psutil.Process | None:
    """The process that runs the client's job, the session's child, once it is in the middle of it."""
    with suppress(psutil.NoSuchProcess):  # a session that answers a greeting only ends at once
        for session in server.children():
            for worker in session.children():
                waits, seconds = worker.num_ctx_switches().voluntary, sum(worker.cpu_times()[:2])
                if waits > MID_RUN_WAITS or seconds > MID_RUN_SECONDS:
                    return worker
    return None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "victim", "says"),
    [
        ("run", "server", "the session ended with its server"),
        ("bench", "server", "the session ended with its server"),
        ("run", "worker", "the session was killed by SIGKILL"),
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
        while (worker := running_worker(process)) is None:
            assert client.poll() is None, client.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (process if victim == "server" else worker).kill()
        out, said = client.communicate(timeout=SECONDS)
    finally:
        client.kill()
    assert client.returncode == 3, said
    # with what it was busy depends on how fast this machine is
    assert f"error: 127.0.0.1:{port}: {says} while asked to " in said and "Traceback" not in said
    assert out == ""
