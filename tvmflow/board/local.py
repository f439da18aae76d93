"""The board ``local``: a loopback server on this machine, started for one call and stopped after it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from tvmflow.board.registry import LOCAL, Board
from tvmflow.errors import BoardError

START_SECONDS = 120.0
"""A board starts in a second or two; a loaded or emulated machine may need many times that."""


@contextmanager
def local_board(command: Sequence[str] = (sys.executable, "-m", "tvmflow.board.server"), name: str = LOCAL) -> Iterator[Board]:
    """Runs ``command --port 0 --attached`` (by default our server under this Python) until the block ends, or this process;
    yields where it listens.

    Raises BoardError with what the server printed when it does not come up.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--port", "0", "--attached"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
        try:
            yield Board(name=name, port=_listening_port(process, log, name))
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a child process: politely, then not."""
    process.terminate()
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


def read_line(process: subprocess.Popen[bytes], seconds: float) -> str:
    """First line that a child prints, or an empty text when it ends or ``seconds`` pass first."""
    assert process.stdout is not None
    deadline, heard = time.monotonic() + seconds, b""
    descriptor = process.stdout.fileno()
    while not heard.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        byte = os.read(descriptor, 1) if ready else b""
        if not byte:
            return ""
        heard += byte
    return heard.decode(errors="replace").strip()


def _listening_port(process: subprocess.Popen[bytes], log: IO[bytes], name: str) -> int:
    line = read_line(process, START_SECONDS)
    if line.startswith("listening on "):
        return int(line.rpartition(":")[2])
    log.seek(0)
    said = log.read().decode(errors="replace").strip().splitlines()
    raise BoardError(
        f"the server did not start: {said[-1] if said else 'no output'}",
        where=name,
        remedy="run `tvmflow board serve` to see why",
    )
