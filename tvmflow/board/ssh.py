"""An SSH tunnel to a board's server, by the system's ``ssh`` client: keys, agents and jump hosts work as the user set them up."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tvmflow.board.local import stop
from tvmflow.board.registry import Board
from tvmflow.errors import BoardError, ConfigError, MissingTool


def tunnel_command(board: Board, local_port: int, ssh: str = "ssh") -> list[str]:
    """The command that forwards ``127.0.0.1:local_port`` to the board's server through ``board.ssh``.

    Raises ConfigError for a destination that ssh would read as an option.
    """
    destination, _, port = board.ssh.partition(":")
    if not destination or destination.startswith("-") or (port and not port.isdigit()):
        raise ConfigError(
            f"{board.ssh!r} is no SSH destination", where=board.name, remedy="write it as user@host or user@host:port"
        )
    host = f"[{board.host}]" if ":" in board.host else board.host
    return [
        ssh,
        "-N",
        "-T",
        *("-o", "BatchMode=yes"),  # a password prompt would hang; it becomes an error that says so
        *("-o", "ExitOnForwardFailure=yes"),
        *("-o", "ConnectTimeout=10"),
        *("-o", "ServerAliveInterval=5"),
        *("-L", f"127.0.0.1:{local_port}:{host}:{board.port}"),
        *(("-p", port) if port else ()),
        destination,
    ]


@contextmanager
def tunnel(board: Board, timeout: float, ssh: str = "ssh") -> Iterator[Board]:
    """Opens the tunnel for the block; yields the board as reached through it. Raises MissingTool, BoardError."""
    if shutil.which(ssh) is None:
        raise MissingTool(
            "the ssh client is not installed", where=board.name, remedy="install OpenSSH's client (Debian: openssh-client)"
        )
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            tunnel_command(board, port, ssh), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=words
        )
        try:
            deadline = time.monotonic() + timeout
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    words.seek(0)
                    said = words.read().decode(errors="replace").strip().splitlines()
                    raise BoardError(
                        f"no SSH tunnel to {board.ssh}: {said[-1] if said else f'nothing after {timeout:g} s'}",
                        where=board.name,
                        remedy=f"see whether `ssh {board.ssh.partition(':')[0]} true` works without a question",
                    )
                time.sleep(0.05)
            yield Board(name=board.name, port=port, key=board.key, target=board.target, threads=board.threads)
        finally:
            stop(process)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
