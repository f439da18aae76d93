"""A relay between TVM's RPC client, which waits for ever, and a board: it hangs up when the board stays silent.

A process of its own, ``python relay.py HOST PORT SECONDS``, because TVM's client may wait while it holds Python's lock
(freeing a remote tensor does), where no thread of the same process could interrupt it. Standard library only, no imports of
tvmflow: it starts in milliseconds.

Standard output: the local port, then, when it ends, the reason: ``silent SECONDS``, ``closed`` (by the board), after which come
the session's last words if it said any, or ``left`` (by us).
Standard input: ``busy SECONDS`` before a call that may take that long without a byte from the board, ``idle`` after it; at
its end (the parent closed it or died) the relay ends too.
"""

from __future__ import annotations

import os
import re
import select
import socket
import sys
import time

_CHUNK = 1 << 18
_MAX_PENDING = 1 << 20
_LAST_WORDS = 1024
_LAST_WORDS_SECONDS = 0.5


def relay(client: socket.socket, board: socket.socket, control: int, patience: float) -> str:
    """Forwards both ways until one side ends; returns the reason. ``patience`` is the limit of silence outside of calls."""
    for side in (client, board):
        side.setblocking(False)
        side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer: dict[socket.socket, socket.socket] = {client: board, board: client}
    pending = {client: bytearray(), board: bytearray()}
    commands = heard = b""
    busy: float | None = None
    asked = False
    progress = time.monotonic()
    while True:
        limit = busy if busy is not None else patience
        waiting = busy is not None or asked
        left = progress + limit - time.monotonic()
        if waiting and left <= 0:
            return f"silent {limit:g}"
        readable = [side for side in (client, board) if len(pending[peer[side]]) < _MAX_PENDING]
        writable = [side for side in (client, board) if pending[side]]
        watched: list[int | socket.socket] = [control, *readable]
        ready, free, _ = select.select(watched, writable, [], left if waiting else None)
        if control in ready:
            data = os.read(control, 4096)
            if not data:
                return "left"
            *lines, commands = (commands + data).split(b"\n")
            for line in lines:
                busy = float(line.split()[1]) if line.startswith(b"busy") else None
                asked, progress = False, time.monotonic()
        for side in (client, board):
            try:
                if side in ready:
                    data = side.recv(_CHUNK)
                    if not data and side is board:
                        _pass_on(pending[client], client)
                        return _closed(heard)
                    if not data:
                        return "left"
                    if side is board:
                        heard = (heard + data)[-_LAST_WORDS:]
                    pending[peer[side]] += data
                    asked, progress = side is client, time.monotonic()
                if side in free:
                    del pending[side][: side.send(pending[side])]
                    progress = time.monotonic()
            except BlockingIOError:
                continue
            except OSError:
                return "left" if side is client else _closed(heard)


def _closed(heard: bytes) -> str:
    """The reason for which a board ends a session comes right before it closes.

    TVM raises it in the call that waits, but drops it where that call frees a remote object: those must not fail.
    """
    told = re.findall(rb"the session [ -~]+", heard)
    return f"closed {told[-1].decode()}" if told else "closed"


def _pass_on(data: bytearray, client: socket.socket) -> None:
    """Sends what is left. To close with requests of the client unread would reset its connection and take that with it."""
    deadline = time.monotonic() + _LAST_WORDS_SECONDS
    client.settimeout(_LAST_WORDS_SECONDS)
    try:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        while (left := deadline - time.monotonic()) > 0:
            client.settimeout(left)
            if not client.recv(_CHUNK):
                return
    except OSError:
        return


def main() -> None:
    host, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection((host, port), timeout=seconds) as board:
        print(listener.getsockname()[1], flush=True)
        listener.settimeout(seconds)
        client = listener.accept()[0]
        with client:
            reason = relay(client, board, sys.stdin.fileno(), seconds)
    print(reason, flush=True)


if __name__ == "__main__":
    main()
