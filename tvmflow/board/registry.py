"""The user's boards: one TOML file that names machines, so that ``--board rpi`` means something.

It lies at ``$TVMFLOW_BOARDS``, or ``tvmflow/boards.toml`` in the user's configuration folder::

    schema = 1

    [boards.rpi]
    host = "192.168.1.20"
    ssh = "pi@rpi"          # optional: reach the server through an SSH tunnel
    target = "rpi4"
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tvmflow.board.wire import host_and_port
from tvmflow.errors import ConfigError, nearest

SCHEMA = 1
DEFAULT_PORT = 9300
LOCAL = "local"
"""Name of the board that is this machine: a loopback server, started for the call."""


class Board(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to reach one board. With ``ssh`` (user@host) the server is ``host:port`` as seen from there."""

    name: str = ""
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    key: str = ""
    """Word that the server was started with (``--key``): guards against the wrong board behind an address, not against people."""
    target: str = ""
    """Name of the target that this board's artifacts are compiled for."""
    ssh: str = ""
    threads: int = 0
    """Threads of a session that asks for none; 0 is one per physical core."""

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class _File(msgspec.Struct, forbid_unknown_fields=True):
    schema: int = SCHEMA
    boards: dict[str, Board] = {}


def registry_path() -> Path:
    """Where the boards are listed: ``$TVMFLOW_BOARDS`` or the user's configuration folder."""
    if named := os.environ.get("TVMFLOW_BOARDS"):
        return Path(named)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "tvmflow" / "boards.toml"


def read_boards(path: Path | None = None) -> dict[str, Board]:
    """Registered boards by name; empty when the file does not exist. Raises ConfigError with the file and the key."""
    path = path or registry_path()
    try:
        data = msgspec.toml.decode(path.read_bytes(), type=_File)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"can't read the list of boards: {error.strerror}", where=str(path)) from error
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        keys = ", ".join(f for f in Board.__struct_fields__ if f != "name")
        raise ConfigError(str(error), where=str(path), remedy=f"keys of a board: {keys}") from error
    if data.schema > SCHEMA:
        raise ConfigError(
            f"schema {data.schema} is newer than this tvmflow knows ({SCHEMA})", where=str(path), remedy="upgrade tvmflow"
        )
    return {name: msgspec.structs.replace(board, name=name) for name, board in data.boards.items()}


def add_board(board: Board, path: Path | None = None) -> None:
    """Registers ``board`` under its name, in place of one of the same name. Raises ConfigError for a name that can't be used."""
    if not board.name or board.name == LOCAL or set(board.name) & set(": \t\n/"):
        raise ConfigError(
            f"{board.name!r} can't be a board's name", remedy=f"use a word without ':', '/' and spaces, other than {LOCAL!r}"
        )
    if not 0 < board.port < 65536:
        raise ConfigError(f"port {board.port} is not between 1 and 65535", where=board.name)
    path = path or registry_path()
    write_boards(read_boards(path) | {board.name: board}, path)


def remove_board(name: str, path: Path | None = None) -> Board:
    """Forgets a board and returns it. Raises ConfigError with the nearest name when it is not registered."""
    path = path or registry_path()
    boards = read_boards(path)
    if name not in boards:
        raise ConfigError(f"no board is registered as {name!r}", where=str(path), remedy=nearest(name, boards) if boards else "")
    removed = boards.pop(name)
    write_boards(boards, path)
    return removed


def write_boards(boards: Mapping[str, Board], path: Path) -> None:
    """Writes the file anew, all or nothing. Raises ConfigError when the folder can't be written."""
    lines = [f"schema = {SCHEMA}"]
    for name, board in sorted(boards.items()):
        lines += ["", f"[boards.{_toml(name)}]"]
        # Defaults other than the address are left out.
        fields = {f: getattr(board, f) for f in Board.__struct_fields__ if f != "name"}
        lines += [f"{f} = {_toml(v)}" for f, v in fields.items() if v or f in ("host", "port")]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False, encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        os.replace(file.name, path)
    except OSError as error:
        raise ConfigError(f"can't write the list of boards: {error.strerror}", where=str(path)) from error


def _toml(value: str | int) -> str:
    """JSON's strings and integers are TOML's too, but for one control character that JSON leaves as it is."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def find_board(name: str, path: Path | None = None) -> Board:
    """Board by registered name, or by ``host:port``. Raises ConfigError with the nearest name."""
    boards = read_boards(path)
    if name in boards:
        return boards[name]
    if address := host_and_port(name):
        return Board(name=name, host=address[0], port=address[1])
    raise ConfigError(
        f"unknown board {name!r}", where=str(path or registry_path()), remedy=f"{nearest(name, [*boards, LOCAL])}; or HOST:PORT"
    )
