"""The SSH tunnel, with a stand-in for the ssh client."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tvmflow.board.registry import Board
from tvmflow.board.ssh import tunnel, tunnel_command
from tvmflow.board.wire import greet
from tvmflow.errors import BoardError, ConfigError, MissingTool


def test_command() -> None:
    command = tunnel_command(Board(name="rpi", ssh="pi@rpi:2222", port=9300), 4000)
    assert command[0] == "ssh" and command[-1] == "pi@rpi"
    assert command[command.index("-L") + 1] == "127.0.0.1:4000:127.0.0.1:9300"
    assert command[command.index("-p") + 1] == "2222"
    assert "BatchMode=yes" in command and "ExitOnForwardFailure=yes" in command


def test_command_with_ipv6_and_no_port() -> None:
    command = tunnel_command(Board(name="rpi", host="::1", ssh="rpi"), 4000)
    assert "127.0.0.1:4000:[::1]:9300" in command and "-p" not in command


@pytest.mark.parametrize("destination", ["-oProxyCommand=evil", "", "pi@rpi:port"])
def test_destinations_that_are_none(destination: str) -> None:
    with pytest.raises(ConfigError):
        tunnel_command(Board(name="rpi", ssh=destination), 4000)


def stand_in(folder: Path, body: str) -> str:
    script = folder / "ssh"
    script.write_text(f"#!{sys.executable}\n" + textwrap.dedent(body))
    script.chmod(0o755)
    return str(script)


def test_tunnel_forwards_and_closes(tmp_path: Path, server: Any) -> None:
    ssh = stand_in(
        tmp_path,
        """
        import socket, sys, threading
        _, port, host, to = sys.argv[sys.argv.index("-L") + 1].split(":")
        listener = socket.create_server(("127.0.0.1", int(port)))
        def copy(a, b):
            while data := a.recv(65536):
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)
        while True:
            near = listener.accept()[0]
            far = socket.create_connection((host, int(to)))
            threading.Thread(target=copy, args=(near, far), daemon=True).start()
            threading.Thread(target=copy, args=(far, near), daemon=True).start()
        """,
    )
    with tunnel(Board(name="far", port=server.board.port, ssh="pi@far"), 10, ssh) as near:
        assert near.port != server.board.port
        assert greet("127.0.0.1", near.port, 5)["protocol"] == 2
    with pytest.raises(OSError):
        greet("127.0.0.1", near.port, 1)


def test_ssh_that_fails_is_quoted(tmp_path: Path) -> None:
    ssh = stand_in(tmp_path, "import sys; sys.exit('pi@far: Permission denied (publickey).')")
    with pytest.raises(BoardError, match="Permission denied"), tunnel(Board(name="far", ssh="pi@far"), 10, ssh):
        pass


def test_ssh_that_hangs_is_given_up(tmp_path: Path) -> None:
    ssh = stand_in(tmp_path, "import time; time.sleep(60)")
    with pytest.raises(BoardError, match="nothing after"), tunnel(Board(name="far", ssh="pi@far"), 0.5, ssh):
        pass


def test_no_ssh_client(tmp_path: Path) -> None:
    with pytest.raises(MissingTool), tunnel(Board(name="far", ssh="pi@far"), 1, str(tmp_path / "absent")):
        pass
