"""Reaching a board: find it, start or tunnel to it, see that it is free and that both sides fit together."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tvmflow.board import discover, info
from tvmflow.board.local import local_board
from tvmflow.board.registry import LOCAL, Board, find_board
from tvmflow.board.ssh import tunnel
from tvmflow.board.wire import PROTOCOL, NoAnswer, greet, identify
from tvmflow.errors import BoardError


@contextmanager
def reach(board: str | Board, timeout: float, registry: Path | None = None) -> Iterator[Board]:
    """The board with an address that can be connected to from here: looked up, started, lent or tunnelled as needed."""
    with ExitStack() as resources:
        if board == LOCAL:
            yield resources.enter_context(local_board())
            return
        if isinstance(board, str) and board.startswith(discover.PREFIX):
            where = discover.first_free(discover.announced(board, timeout), timeout)
        else:
            where = board if isinstance(board, Board) else find_board(board, registry)
        if where.ssh:
            where = resources.enter_context(tunnel(where, timeout))
        yield where


def greeting(board: Board, timeout: float) -> dict[str, Any]:
    """The board's facts. Raises BoardError that names what is wrong: absent, silent, or something else on that port."""
    serve = f"start `tvmflow board serve` there; `tvmflow board check {board.name}` tells more"
    try:
        return greet(board.host, board.port, timeout)
    except TimeoutError:
        what = f"no answer from {board.address} within {timeout:g} s: the machine is off, the network blocks, or it is frozen"
    except NoAnswer:
        found = _identify(board, timeout)
        what = f"{board.address} is not a tvmflow board server but: {found}"
    except ConnectionResetError:
        what = f"{board.address} accepts connections and drops them"
    except OSError as error:
        what = f"can't connect to {board.address}: {error.strerror or error}"
    raise BoardError(what, where=board.name, remedy=serve)


def _identify(board: Board, timeout: float) -> str:
    try:
        return identify(board.host, board.port, timeout)
    except OSError as error:
        return f"unclear ({error})"


def wait_until_free(board: Board, timeout: float) -> dict[str, Any]:
    """The board's facts once nobody holds it, its versions checked. Raises BoardError when it stays busy too long."""
    deadline = time.monotonic() + timeout
    while True:
        facts = greeting(board, timeout)
        check_versions(board.name, facts)
        if facts["key"] != board.key:
            what = f"the key {board.key!r} was given, this board has {facts['key']!r}"
            raise BoardError(what, where=board.name, remedy=f"use --key {facts['key']}" if facts["key"] else "leave the key out")
        holder = facts["busy"]
        if holder is None:
            return facts
        if time.monotonic() > deadline:
            what = f"busy: held by {holder['who']} for {holder['seconds']:.0f} s"
            raise BoardError(what, where=board.name, remedy="wait for it, or end that session")
        time.sleep(0.1)


def check_versions(name: str, facts: Mapping[str, Any]) -> None:
    """Raises BoardError that says which side to upgrade when the two sides do not fit together.

    Post-releases (``0.27.0.post1``) differ in packaging only; everything before them must be equal.
    """
    if facts["protocol"] != PROTOCOL:
        older = "on the board" if facts["protocol"] < PROTOCOL else "here"
        what = f"speaks board protocol {facts['protocol']}, this tvmflow speaks {PROTOCOL}"
        raise BoardError(what, where=name, remedy=f"upgrade tvmflow {older}")
    mine = info.versions()
    for key, package in (("tvm", "apache-tvm"), ("tvm_ffi", "apache-tvm-ffi")):
        theirs = str(facts["versions"].get(key, "0"))
        if _release(theirs) != _release(mine[key]):
            behind = _release(theirs) < _release(mine[key])
            place, version = ("on the board", mine[key]) if behind else ("here", theirs)
            raise BoardError(
                f"has {package} {theirs}, this machine has {mine[key]}",
                where=name,
                remedy=f"upgrade {place}: pip install {package}=={version}",
            )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.partition(".post")[0].partition("+")[0]))
