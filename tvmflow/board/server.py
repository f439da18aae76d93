"""A TVM RPC server that no job can kill: ``python -m tvmflow.board.server --port 9300``.

TVM's own server stops listening for ever when a session crashes or a handshake is malformed, and blocks while a client is
silent. Here several kinds of processes share the work, none of which trusts the next::

    server       accepts, forks, reaps; never reads from a connection
    |- announcer keeps the board in the list of a tracker, where one is named
    '- session   one per connection: handshake with a deadline, waits for its turn, then watches the worker
       '- worker TVM's RPC loop; loads and runs what the client sends, and may crash or hang

One worker runs at a time, so that measurements are not disturbed; a client that comes meanwhile waits, and is told who holds
the board. A session ends when its client hangs up, when its worker dies, or at its time limit. It needs TVM's
runtime and numpy, nothing else.

TVM's RPC is remote code execution without authentication, by design: the server binds to loopback unless told otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import logging
import os
import resource
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tvmflow.board.info import board_info
from tvmflow.board.profile import profile
from tvmflow.board.tracker import announce
from tvmflow.board.wire import GREETING, RPC_MAGIC, RPC_MISMATCH, receive
from tvmflow.errors import EnvironmentProblem
from tvmflow.runtime import cpu, library
from tvmflow.runtime.threads import prepare_thread_pool

HANDSHAKE_SECONDS = 5.0
HANGUP_GRACE_SECONDS = 1.0
MAX_SESSIONS = 64
"""Connections at a time: one works, the others wait or ask; a flood of them must not fill the machine with processes."""
_MAX_KEY = 4096
log = logging.getLogger("tvmflow.board")


@dataclass(frozen=True)
class ServerConfig:
    """Where to listen and what to allow. ``port`` 0 takes a free one; ``session_limit`` is in seconds."""

    host: str = "127.0.0.1"
    port: int = 9300
    key: str = ""
    session_limit: float = 3600.0
    tracker: str = ""
    """``host:port`` of a tracker of TVM that hands this board out under its key."""
    attached: bool = False
    """End when standard input does: its other end closes with the process that started the server, even if that is killed."""


def serve(config: ServerConfig) -> None:
    """Listens until SIGINT or SIGTERM, or, attached, until standard input ends. Raises OSError when it can't.

    Prints ``listening on host:port`` when ready; sessions are logged to standard error.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    if config.host not in ("127.0.0.1", "::1", "localhost"):
        log.warning("bound to %s: whoever reaches this port can run code here", config.host)
    # Before TVM and numpy are loaded: no threads in a process that forks, and a pool that may grow to every core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    prepare_thread_pool(len(cpu.allowed_cpus()))
    _register_functions()
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with (
        socket.create_server((config.host, config.port), family=family, backlog=64) as listener,
        tempfile.TemporaryDirectory(prefix="tvmflow-board-", ignore_cleanup_errors=True) as root,
    ):
        port = listener.getsockname()[1]
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _stop)
        print(f"listening on {config.host}:{port}", flush=True)
        sessions: set[int] = set()
        announcer = _announcer(listener, config, port, Path(root)) if config.tracker else None
        watched: list[socket.socket | int] = [listener, *([0] if config.attached else [])]
        try:
            while True:
                ready, _, _ = select.select(watched, [], [], 0.5)
                if 0 in ready and not os.read(0, 1):
                    return
                _reap(sessions, Path(root))
                listener.setblocking(False)
                try:
                    connection, address = listener.accept()
                except (BlockingIOError, ConnectionAbortedError):
                    continue
                if len(sessions) >= MAX_SESSIONS:
                    log.warning("%s turned away: %d clients are here already", address[0], len(sessions))
                    connection.close()
                    continue
                pid = os.fork()
                if pid == 0:
                    _in_child(partial(_session, listener, connection, address, config, Path(root)))
                sessions.add(pid)
                connection.close()
        finally:
            for pid in sessions:
                _kill_group(pid)
            if announcer:
                os.kill(announcer, signal.SIGKILL)


def _announcer(listener: socket.socket, config: ServerConfig, port: int, root: Path) -> int:
    """The process that keeps the board announced at the tracker."""
    pid = os.fork()
    if pid == 0:
        listener.close()
        _in_child(partial(announce, config.tracker, config.key, port, lambda: _holder(root) is not None))
    return pid


def _stop(number: int, frame: Any) -> None:
    raise SystemExit(0)


def _in_child(work: Callable[[], object]) -> None:
    """Runs ``work`` in a forked process that must never return into the code of its parent."""
    code = 1
    try:
        work()
        code = 0
    except SystemExit:
        code = 0
    except BaseException as error:  # a process boundary: whatever it was, it ends here and is logged
        log.error("session failed: %s: %s", type(error).__name__, error)
    finally:
        os._exit(code)


def _reap(sessions: set[int], root: Path) -> None:
    """Buries sessions that ended, with whatever they left running and on disk."""
    for pid in list(sessions):
        # WNOWAIT keeps the process id taken until its group is killed, so that no stranger's group can be hit.
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            continue
        _kill_group(pid)
        os.waitpid(pid, 0)
        sessions.discard(pid)
        shutil.rmtree(root / str(pid), ignore_errors=True)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


# -------- one session


def _session(listener: socket.socket, connection: socket.socket, address: Any, config: ServerConfig, root: Path) -> None:
    listener.close()
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    connection.settimeout(HANDSHAKE_SECONDS)
    try:
        options = _handshake(connection, config, root)
    except (OSError, ValueError, struct.error) as error:
        log.warning("%s: bad handshake: %s", address[0], error)
        return
    if options is None:
        return
    connection.settimeout(None)
    who = f"{options.get('who', 'someone')} from {address[0]}"
    turn = _wait_for_turn(connection, root, who)
    if turn is None:
        log.info("%s left while waiting", who)
        return
    _accept(connection, config.key)
    limit = min(config.session_limit, float(options.get("timeout", config.session_limit)))
    start = time.monotonic()
    log.info("session of %s begins, at most %g s", who, limit)
    end = _run_worker(connection, root / str(os.getpid()), limit, turn)
    log.info("session of %s %s after %.1f s", who, end or "ended", time.monotonic() - start)


def _handshake(connection: socket.socket, config: ServerConfig, root: Path) -> dict[str, str] | None:
    """Reads what the client wants: its options (``-name=value`` words after the key), or None when it is already served."""
    first = receive(connection, 4, HANDSHAKE_SECONDS)
    if first == GREETING:
        facts = board_info(str(root)) | {"key": config.key, "busy": _holder(root)}
        connection.sendall(json.dumps(facts).encode() + b"\n")
        return None
    if struct.unpack("<i", first)[0] != RPC_MAGIC:
        raise ValueError(f"not TVM RPC: {first!r}")
    size = struct.unpack("<i", receive(connection, 4, HANDSHAKE_SECONDS))[0]
    if not 0 < size <= _MAX_KEY:
        raise ValueError(f"key of {size} bytes")
    key, *words = receive(connection, size, HANDSHAKE_SECONDS).decode().split(" ")
    lent = bool(config.tracker) and key.startswith(f"client:{config.key}:")  # by the tracker, with a word for this one session
    if key != f"client:{config.key}" and not lent:
        connection.sendall(struct.pack("<i", RPC_MISMATCH))
        raise ValueError(f"asks for key {key.removeprefix('client:')!r}, this board has {config.key!r}")
    return dict(word[1:].split("=", 1) for word in words if word.startswith("-") and "=" in word)


def _accept(connection: socket.socket, key: str) -> None:
    name = f"server:{key}".encode()
    connection.sendall(struct.pack("<ii", RPC_MAGIC, len(name)) + name)


def _wait_for_turn(connection: socket.socket, root: Path, who: str) -> int | None:
    """The descriptor that holds the board, or None when the client hung up first. The lock dies with its last process."""
    lock = os.open(root / "turn", os.O_RDWR | os.O_CREAT)
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if _hung_up(connection, 0.05):
                return None
            continue
        holder = root / f"holder.{os.getpid()}"
        holder.write_text(json.dumps({"who": who, "since": time.time()}))
        holder.replace(root / "holder")
        return lock


def _holder(root: Path) -> dict[str, Any] | None:
    """Who holds the board and for how many seconds, or None when it is free."""
    probe = os.open(root / "turn", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        try:
            holder = json.loads((root / "holder").read_text())
        except FileNotFoundError:
            return {"who": "someone", "seconds": 0.0}  # between taking the lock and writing the name
        return {"who": holder["who"], "seconds": round(time.time() - holder["since"], 1)}
    finally:
        os.close(probe)


def _hung_up(connection: socket.socket, wait: float) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(wait * 1000))


def _run_worker(connection: socket.socket, workdir: Path, limit: float, turn: int) -> str:
    """Runs the worker to its end, at most ``limit`` seconds; returns why it ended badly, or an empty text."""
    server = os.getppid()
    workdir.mkdir()
    alive, dies = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(alive)
        _in_child(partial(_worker, connection, str(workdir)))
    os.close(dies)
    deadline = time.monotonic() + limit
    poll = select.poll()
    poll.register(alive, select.POLLHUP)
    poll.register(connection, select.POLLRDHUP)
    end, left = "", False
    while True:
        # Half a second at most, to notice a server that was killed, and a worker whose children keep the pipe open.
        events = dict(poll.poll(max(0.0, min(0.5, deadline - time.monotonic())) * 1000))
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if connection.fileno() in events:
            poll.unregister(connection)
            deadline, left = time.monotonic() + HANGUP_GRACE_SECONDS, True
        orphaned = os.getppid() != server
        if orphaned or time.monotonic() >= deadline:
            if orphaned:
                end = "ended with its server"
            else:
                end = "was left by its client in mid-job" if left else f"reached its time limit of {limit:g} s"
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            status = 0
            break
    os.close(turn)
    if status and not end:
        end = (
            f"was killed by {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else "failed in TVM's RPC loop"
        )
    if end:
        _tell(connection, f"the session {end}")
    return end


def _tell(connection: socket.socket, message: str) -> None:
    """The reason as TVM's exception packet: a client in mid-call raises it."""
    connection.setblocking(False)  # a frozen client must not freeze the session too
    with contextlib.suppress(RuntimeError, OSError):
        library.function("rpc.ReturnException")(connection.fileno(), message)
    # To close with requests unread would reset the connection, and the client would lose the message.
    deadline = time.monotonic() + HANGUP_GRACE_SECONDS
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(65536):
                break


# -------- the worker


def _worker(connection: socket.socket, workdir: str) -> None:
    os.chdir(workdir)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        # Short of memory, the kernel shall take the job, not the server.
        Path("/proc/self/oom_score_adj").write_text("1000")
    library.function("rpc.ServerLoop")(connection.fileno())


def upload_path(name: str) -> str:
    """Where a file of the client lies: inside the session's folder, which is the worker's working directory, or not at all.

    The folder itself, which has no name, is what MetaSchedule's runner removes last.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"refused file name {name!r}: it leads out of the session's folder")
    return str(Path.cwd() / path)


def use_device(name: str) -> bool:
    """Loads TVM's library of a device; whether there is one."""
    try:
        library.find_device(name)
    except EnvironmentProblem as problem:
        log.warning("%s", problem.__cause__ or problem)
        return False
    return True


def _register_functions() -> None:
    """The functions that clients call by name. Registered before the first fork; they act in the worker's folder."""
    library.load_runtime()
    import tvm_ffi

    functions: dict[str, Callable[..., str | Any]] = {
        "tvm.rpc.server.workpath": upload_path,
        "tvm.rpc.server.load_module": lambda name: tvm_ffi.load_module(upload_path(name), keep_module_alive=False),
        "tvmflow.board.profile": profile,
        "tvmflow.board.use_device": use_device,
        "tvmflow.board.info": lambda: json.dumps(board_info()),
    }
    for name, function in functions.items():
        tvm_ffi.register_global_func(name, function, override=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tvmflow.board.server", description="tvmflow's board server")
    parser.add_argument("--host", default=ServerConfig.host, help="address to bind; anyone who reaches it can run code here")
    parser.add_argument("--port", type=int, default=ServerConfig.port, help="0 takes a free one")
    parser.add_argument("--key", default=ServerConfig.key)
    parser.add_argument("--session-limit", type=float, default=ServerConfig.session_limit, help="seconds")
    parser.add_argument("--tracker", default=ServerConfig.tracker, help="HOST:PORT of a tracker of TVM; needs a key")
    parser.add_argument("--attached", action="store_true", help="end when standard input ends")
    config = ServerConfig(**vars(parser.parse_args(arguments)))
    if config.tracker and not config.key:
        parser.error("--tracker needs a --key: a tracker hands boards out by it")
    serve(config)


if __name__ == "__main__":
    main()
