"""Boards lent by a TVM RPC tracker: one request with a deadline, where TVM's own client waits for ever for an absent device."""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any

import msgspec

from tvmflow.board.registry import Board
from tvmflow.board.wire import TRACKER_MAGIC
from tvmflow.errors import BoardError, ConfigError

REQUEST, SUMMARY = 4, 6
"""Codes of tvm/rpc/base.py."""


def request_board(board: Board, timeout: float) -> Board:
    """The board that the tracker lends under ``board.key``, with the address and one-time key to use.

    Raises BoardError within ``timeout`` seconds when the tracker is absent or has no free board of that key.
    """
    host, _, port = board.tracker.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"{board.tracker!r} is no tracker address", where=board.name, remedy="write it as HOST:PORT")
    deadline = time.monotonic() + timeout
    try:
        with socket.create_connection((host, int(port)), timeout=timeout) as connection:
            connection.sendall(struct.pack("<i", TRACKER_MAGIC))
            if struct.unpack("<i", _receive(connection, 4, deadline))[0] != TRACKER_MAGIC:
                raise BoardError(f"{board.tracker} is not a TVM RPC tracker", where=board.name)
            _send(connection, [REQUEST, board.key, "", 1])
            status, address = _receive_json(connection, deadline)
    except TimeoutError as error:
        what = f"the tracker {board.tracker} had no free board under the key {board.key!r} within {timeout:g} s"
        raise BoardError(
            what, where=board.name, remedy="start a server there with that key, or wait for one to become free"
        ) from error
    except (OSError, ValueError) as error:
        raise BoardError(
            f"no answer from the tracker {board.tracker}: {error}", where=board.name, remedy="start the tracker"
        ) from error
    if status != 0:
        raise BoardError(f"the tracker {board.tracker} refused: {address}", where=board.name)
    lent_host, lent_port, key = address
    return msgspec.structs.replace(board, host=lent_host, port=int(lent_port), key=key, tracker="")


def _send(connection: socket.socket, value: Any) -> None:
    data = json.dumps(value).encode()
    connection.sendall(struct.pack("<i", len(data)) + data)


def _receive_json(connection: socket.socket, deadline: float) -> Any:
    size = struct.unpack("<i", _receive(connection, 4, deadline))[0]
    return json.loads(_receive(connection, size, deadline))


def _receive(connection: socket.socket, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = connection.recv(size - len(data))
        if not chunk:
            raise ConnectionResetError("it closed the connection")
        data += chunk
    return data
