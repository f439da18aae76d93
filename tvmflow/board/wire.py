"""What client and server say before TVM's RPC begins, and how to tell by its answers what listens on a port.

TVM's own handshake carries no versions and a client of it has no timeouts. tvmflow's server therefore answers a *greeting* on
the same port: four bytes in, one line of JSON out, connection closed::

    client  b"TVMf"
    server  {"protocol": 1, "versions": {...}, "busy": null, "features": [...], ...}\\n

Everything here is plain sockets with deadlines, standard library only.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any

PROTOCOL = 2
"""Number of tvmflow's board protocol; client and server must agree."""
GREETING = b"TVMf"
RPC_MAGIC = 0xFF271
"""First word of a TVM RPC connection, from tvm/rpc/base.py."""
RPC_MISMATCH = RPC_MAGIC + 2
TRACKER_MAGIC = 0x2F271
_MAX_REPLY = 1 << 20


class NoAnswer(Exception):
    """The peer closed, or answered something else; ``heard`` is what it said."""

    def __init__(self, heard: bytes = b"") -> None:
        super().__init__(heard)
        self.heard = heard


def greet(host: str, port: int, timeout: float) -> dict[str, Any]:
    """The board's facts (see ``info.py``), its versions, and who holds it.

    Raises OSError (TimeoutError when silent) and NoAnswer (something other than tvmflow's server listens there).
    """
    heard = _exchange(host, port, GREETING, timeout, until=b"\n")
    try:
        facts = json.loads(heard)
    except ValueError as error:
        raise NoAnswer(heard) from error
    if not isinstance(facts, dict) or "protocol" not in facts:
        raise NoAnswer(heard)
    return facts


def identify(host: str, port: int, timeout: float) -> str:
    """What listens on a port: ``tvmflow``, ``tvm-rpc-server``, ``tvm-rpc-tracker``, ``silent``, or ``other: <what it said>``.

    Harmless to each of them: TVM's server is asked with a key that it refuses, which takes no session of it.
    Raises OSError when nothing listens there.
    """
    try:
        greet(host, port, timeout)
        return "tvmflow"
    except TimeoutError:
        return "silent"
    except NoAnswer as answer:
        heard = answer.heard
    except ConnectionResetError:
        heard = b""
    if heard:
        return f"other: {heard[:60]!r}"
    key = b"client:tvmflow-probe"
    for name, question, answers in (
        ("tvm-rpc-server", struct.pack("<ii", RPC_MAGIC, len(key)) + key, (RPC_MAGIC, RPC_MISMATCH)),
        ("tvm-rpc-tracker", struct.pack("<i", TRACKER_MAGIC), (TRACKER_MAGIC,)),
    ):
        try:
            reply = _exchange(host, port, question, timeout, size=4)
        except TimeoutError:
            return "silent"
        except ConnectionResetError:
            continue
        if len(reply) == 4 and struct.unpack("<i", reply)[0] in answers:
            return name
    return "other: closes every connection"


def receive(connection: socket.socket, size: int, seconds: float) -> bytes:
    """Exactly ``size`` bytes within ``seconds``, no matter how slowly. Raises OSError, ValueError when the peer closes early."""
    deadline = time.monotonic() + seconds
    data = b""
    while len(data) < size:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = connection.recv(size - len(data))
        if not chunk:
            raise ValueError(f"closed after {len(data)} of {size} bytes")
        data += chunk
    return data


def host_and_port(text: str) -> tuple[str, int] | None:
    """Of ``host:port`` or ``[host]:port``, this machine where the host is left out; None for anything else."""
    host, colon, port = text.rpartition(":")
    if colon and port.isdigit() and 0 < int(port) < 65536:
        return host.strip("[]") or "127.0.0.1", int(port)
    return None


def _exchange(host: str, port: int, question: bytes, timeout: float, until: bytes = b"", size: int = _MAX_REPLY) -> bytes:
    """Sends ``question``; returns what comes back up to ``until``, up to ``size`` bytes, or until the peer closes."""
    deadline = time.monotonic() + timeout
    with socket.create_connection((host, port), timeout=timeout) as connection:
        connection.sendall(question)
        heard = b""
        while len(heard) < size and not (until and heard.endswith(until)):
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            chunk = connection.recv(65536)
            if not chunk:
                break
            heard += chunk
    return heard
