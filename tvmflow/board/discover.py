"""Boards that are named by the tracker where they are announced: ``tracker://HOST:PORT/KEY``.

A tracker hands boards out on request, but a request of a key that nobody announced blocks for ever, and a board arbitrates
between its clients anyway: the tracker is asked for its list, and the boards are gone to themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvmflow.board.registry import Board
from tvmflow.board.tracker import SECONDS, servers, split
from tvmflow.board.wire import NoAnswer, greet
from tvmflow.errors import BoardError, ConfigError

PREFIX = "tracker://"


def boards_behind(names: Sequence[str]) -> list[str | Board]:
    """``names`` with each ``tracker://HOST:PORT/KEY`` replaced by the boards that are announced there under the key.

    Raises ConfigError for a malformed name, BoardError when the tracker does not answer or has no such board.
    """
    found: list[str | Board] = []
    for name in names:
        found += announced(name) if name.startswith(PREFIX) else [name]
    return found


def announced(name: str, timeout: float = SECONDS) -> list[Board]:
    """The boards that ``tracker://HOST:PORT/KEY`` names. Raises as :func:`boards_behind` does."""
    address, slash, key = name.removeprefix(PREFIX).partition("/")
    if not (slash and key):
        raise ConfigError("names no key", where=name, remedy=f"write {PREFIX}HOST:PORT/KEY")
    host, port = split(address)
    every = servers(host, port, timeout)
    fitting = [server for server in every if server["key"] == f"server:{key}"]
    if not fitting:
        keys = sorted({server["key"].removeprefix("server:") for server in every})
        known = f"; its keys: {', '.join(keys)}" if keys else ", nor under any other"
        raise BoardError(
            f"no board is announced under {key!r}{known}",
            where=f"{host}:{port}",
            remedy=f"start `tvmflow board serve --host ADDRESS --tracker {host}:{port} --key {key}` on the boards",
        )
    addresses = sorted({(str(server["addr"][0]), int(server["addr"][1])) for server in fitting})
    return [Board(f"{a}:{p}", a, p, key) for a, p in addresses]


def first_free(boards: Sequence[Board], timeout: float) -> Board:
    """A board that nobody holds, or the first of all."""
    for board in boards:
        try:
            if greet(board.host, board.port, timeout)["busy"] is None:
                return board
        except (OSError, NoAnswer):
            continue  # whoever connects to it is told what is wrong
    return boards[0]
