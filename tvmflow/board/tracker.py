"""TVM's RPC tracker, where boards announce themselves under a key.

``python -m tvm.exec.rpc_tracker`` runs one. A board that serves with ``--tracker HOST:PORT --key KEY`` is one of its servers:
TVM's own clients may request it, as MetaSchedule's RPCRunner does.

The protocol is that of tvm/rpc/tracker.py: a magic word both ways, then JSON messages behind their size. Plain sockets with
deadlines, standard library only.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from tvmflow.board.wire import TRACKER_MAGIC, host_and_port, receive
from tvmflow.errors import BoardError, ConfigError

SECONDS = 5.0
"""Within which a tracker answers."""
ASK_SECONDS = 1.0
UNUSED_SECONDS = 5
"""A board that was handed to a client who does not come is announced again after this."""
_SUCCESS, _PUT, _UPDATE_INFO, _SUMMARY, _PENDING = 0, 3, 5, 6, 7
_MAX_REPLY = 1 << 24
log = logging.getLogger("tvmflow.board")


def announce(tracker: str, key: str, port: int, held: Callable[[], bool]) -> None:
    """Keeps this machine's server on ``port`` among those that a tracker hands out, until the calling process loses its parent.

    Each announcement is good for one client. The next follows when that one has gone (``held`` says whether one is here).
    """
    host, tracker_port = split(tracker)
    parent, complained = os.getppid(), False
    while os.getppid() == parent:
        try:
            with _Connection(host, tracker_port, SECONDS) as connection:
                log.info("announced as %r at %s", key, tracker)
                complained = False
                _keep_announced(connection, key, port, held, parent)
        except (OSError, ValueError) as error:
            if not complained:
                log.warning("no tracker at %s: %s; trying on", tracker, error)
            complained = True
            time.sleep(ASK_SECONDS)


def _keep_announced(connection: _Connection, key: str, port: int, held: Callable[[], bool], parent: int) -> None:
    connection.ask(_UPDATE_INFO, {"key": f"server:{key}", "addr": [None, port]})
    ticket, used, unused = "", True, 0
    while os.getppid() == parent:
        if ticket not in connection.ask(_PENDING):
            if held():
                used = True
            elif used or unused >= UNUSED_SECONDS:
                ticket, used, unused = f"{key}:{secrets.token_hex(8)}", False, 0
                connection.ask(_PUT, key, [port, ticket], None)
            else:
                unused += 1
        time.sleep(ASK_SECONDS)


def servers(host: str, port: int, timeout: float) -> list[dict[str, Any]]:
    """What is announced at a tracker: ``key``, ``server:`` and the word, and ``addr``. Raises BoardError when none answers."""
    try:
        with _Connection(host, port, timeout) as connection:
            code, summary = connection.ask(_SUMMARY)
    except (OSError, ValueError) as error:
        raise BoardError(
            f"no tracker answers: {getattr(error, 'strerror', None) or error}",
            where=f"{host}:{port}",
            remedy="start `python -m tvm.exec.rpc_tracker` there, or name the boards themselves",
        ) from error
    return list(summary["server_info"]) if code == _SUCCESS else []


class _Connection:
    """A conversation with a tracker. Raises OSError when it does not answer in time, ValueError for what is no tracker."""

    def __init__(self, host: str, port: int, timeout: float) -> None:
        self._timeout = timeout
        self._socket = socket.create_connection((host, port), timeout=timeout)
        with contextlib.ExitStack() as undo:
            undo.callback(self._socket.close)
            self._socket.sendall(struct.pack("<i", TRACKER_MAGIC))
            if receive(self._socket, 4, self._timeout) != struct.pack("<i", TRACKER_MAGIC):
                raise ValueError("something else listens there")
            undo.pop_all()

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close()

    def ask(self, *message: Any) -> Any:
        text = json.dumps(message).encode()
        self._socket.sendall(struct.pack("<i", len(text)) + text)
        (size,) = struct.unpack("<i", receive(self._socket, 4, self._timeout))
        if not 0 < size <= _MAX_REPLY:
            raise ValueError(f"an answer of {size} bytes")
        return json.loads(receive(self._socket, size, self._timeout))


def split(address: str) -> tuple[str, int]:
    """Host and port of a tracker. Raises ConfigError for anything else."""
    found = host_and_port(address)
    if found is None:
        raise ConfigError(f"{address!r} is no address of a tracker", remedy="write HOST:PORT; TVM's tracker listens on 9190")
    return found
