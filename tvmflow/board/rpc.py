"""The client: run and measure artifacts on a board, with an end in bounded time whatever the board does.

TVM's RPC client waits for ever. Here every byte goes through a relay process (relay.py) that hangs up after a silence, and
whatever TVM raises then becomes one BoardError that says what the board was asked and what became of it.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tvm import rpc  # at once: a board that is connected waits five seconds for words, and a busy machine loads TVM in more

from tvmflow.board.local import read_line, stop
from tvmflow.board.reach import reach, wait_until_free
from tvmflow.board.registry import Board
from tvmflow.board.session import RUN_SECONDS, RemoteSession, check_board, timed
from tvmflow.build.manifest import Manifest, read_manifest, verify_digest
from tvmflow.errors import ArtifactError, BoardError, DataError

CONNECT_SECONDS = 10.0


def connect(board: str | Board, timeout: float = CONNECT_SECONDS, registry: Path | None = None) -> RemoteBoard:
    """Connects to a registered board, ``host:port``, or ``local`` (a server on this machine, stopped on close).

    ``timeout``: seconds to reach it, to wait while another client holds it, and for it to answer anything but a run.
    Raises ConfigError for an unknown name, BoardError when it is absent, silent, busy, or of other versions.
    """
    resources = ExitStack()
    with resources:
        where = resources.enter_context(reach(board, timeout, registry))
        facts = wait_until_free(where, timeout)
        relay = _Relay(where, timeout)
        resources.callback(relay.close)
        return RemoteBoard(where, facts, relay, resources.pop_all())


class _Relay:
    """The relay process between TVM's client and a board."""

    def __init__(self, board: Board, patience: float) -> None:
        command = [
            sys.executable,
            "-I",
            "-S",
            str(Path(__file__).with_name("relay.py")),
            board.host,
            str(board.port),
            str(patience),
        ]
        self.patience = patience
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        port = read_line(self._process, patience + 5)
        if not port:
            stop(self._process)
            raise BoardError(f"lost {board.address} while connecting", where=board.name, remedy="try again")
        self.port = int(port)

    def say(self, command: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command.encode() + b"\n")
        except BrokenPipeError:
            return  # it has ended already; ``ended`` tells why

    def ended(self, wait: float) -> str:
        """Why the relay ended: ``silent SECONDS``, ``closed`` and the session's last words, ``left``; empty while it lives."""
        try:
            self._process.wait(wait)
        except subprocess.TimeoutExpired:
            return ""
        return read_line(self._process, 1.0) or "closed"

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        stop(self._process)


class RemoteBoard:
    """One session on a board; nobody else gets it before ``close``. Use it in a ``with`` block."""

    def __init__(self, board: Board, facts: Mapping[str, Any], relay: _Relay, resources: ExitStack) -> None:
        self.board = board
        self.facts = facts
        """What the board told of itself before the session began; see ``info.board_info``."""
        self._relay = relay
        self._resources = resources
        self._lost = ""
        self._uploads = 0
        self.rpc: Any = None
        """TVM's own session, for calls inside of ``call``; outside of it, the ``timeout`` of ``connect`` bounds each silence."""
        who = re.sub(r"\s", "_", f"{_user()}@{platform.node()}")
        with ExitStack() as undo:
            undo.callback(resources.close)
            with self.call("open a session", relay.patience):
                self.rpc = rpc.connect("127.0.0.1", relay.port, f"{board.key} -who={who}")
            undo.pop_all()

    @property
    def name(self) -> str:
        return self.board.name

    def __enter__(self) -> RemoteBoard:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the session on the board, also when remote tensors are still alive here."""
        self._lost = self._lost or "it is closed"
        self._resources.close()

    @contextmanager
    def call(self, what: str, seconds: float) -> Iterator[None]:
        """Guards calls of TVM's RPC: at most ``seconds`` of silence, and a BoardError for whatever goes wrong."""
        if self._lost:
            raise BoardError(f"can't {what}: the session is over, {self._lost}", where=self.name, remedy="connect again")
        self._relay.say(f"busy {seconds:g}")
        try:
            yield
        except (BoardError, DataError, ArtifactError):
            raise
        except Exception as error:  # TVM raises whatever class the other process's error names: a process boundary
            raise self._explain(what, error) from error
        finally:
            self._relay.say("idle")

    def _explain(self, what: str, error: Exception) -> BoardError:
        message = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = re.sub(r"^.*?\b\w*Error: ", "", message[-1]) if message else type(error).__name__
        ended = self._relay.ended(1.0)
        if ended.startswith("silent"):
            self._lost = f"no sign of life for {ended.split()[1]} s"
            return BoardError(
                f"{self._lost} while asked to {what}",
                where=self.name,
                remedy=f"`tvmflow board check {self.name}`; a reboot frees a frozen board",
            )
        told = re.search(r"the session (was .*|reached .*|failed .*|ended with .*)", f"{error}\n{ended}")
        if told:
            self._lost = f"it {told[1].strip()}"
            remedy = "the artifact uses instructions that this CPU lacks" if "SIGILL" in told[1] else "see the server's log"
            return BoardError(f"{told[0].strip()} while asked to {what}", where=self.name, remedy=remedy)
        if ended:
            self._lost = "the board hung up"
            return BoardError(
                f"the board hung up while asked to {what}",
                where=self.name,
                remedy="the server was stopped, or its machine rebooted; see its log",
            )
        return BoardError(f"could not {what}: {said}", where=self.name)

    def info(self) -> dict[str, Any]:
        """The board's facts as they are now, asked through the session."""
        with self.call("tell about itself", self._relay.patience):
            return json.loads(str(self.rpc.get_function("tvmflow.board.info")()))

    def ping(self) -> None:
        """One round trip."""
        with self.call("answer", self._relay.patience):
            self.rpc.get_function("runtime.NumThreads")()

    def session(self, artifact: Path | str, threads: int = 0) -> RemoteSession:
        """Uploads and opens an artifact, ``threads`` 0 taking the board's default.

        Raises ArtifactError, before anything is loaded there, when the file is damaged or the board can't run it.
        """
        path = Path(artifact)
        manifest = read_manifest(path)
        verify_digest(path)
        return self.open(path, manifest, threads)

    def open(self, library: Path, manifest: Manifest, threads: int = 0) -> RemoteSession:
        """Uploads and opens a Relax VM library; ``manifest`` tells what it takes and needs. Raises as ``session`` does."""
        check_board(manifest, self.facts, library, self.name)
        module = self._load(library)
        return RemoteSession(self, module, library, manifest, threads or self.board.threads or int(self.facts["physical_cores"]))

    def time_function(
        self, library: Path, function: str, arguments: Sequence[np.ndarray], repeat: int, number: int = 1, threads: int = 1
    ) -> list[float]:
        """Seconds per call of one function of a library on array arguments: ``repeat`` times the mean of ``number`` calls."""
        module = self._load(library)
        self.use_threads(threads)
        with self.call(f"time {function}", RUN_SECONDS):
            tensors = [self.tensor(a, self.device()) for a in arguments]
        return timed(self, module, function, self.device(), tensors, repeat, number)

    def use_threads(self, threads: int) -> None:
        """Sets the size of the remote thread pool. Raises BoardError when the board has fewer cores."""
        with self.call(f"use {threads} threads", self._relay.patience):
            self.rpc.get_function("runtime.config_threadpool")(1, threads)
            got = int(self.rpc.get_function("runtime.NumThreads")())
        if got != threads:
            raise BoardError(
                f"gives {got} threads instead of {threads}", where=self.name, remedy=f"ask for at most {self.facts['cores']}"
            )

    def device(self, name: str = "cpu") -> Any:
        """TVM's handle of the board's ``cpu`` or ``cuda`` device. Raises BoardError when the board has none of that name."""
        import tvm

        if name != "cpu":
            with self.call(f"use its {name} device", RUN_SECONDS):
                if not self.rpc.get_function("tvmflow.board.use_device")(name):
                    raise BoardError(f"it has no {name} device", where=self.name, remedy="compile for its CPU")
        return self.rpc.device(tvm.device(name, 0).dlpack_device_type(), 0)

    def tensor(self, array: np.ndarray, device: Any) -> Any:
        """A copy of ``array`` in the board's memory."""
        import tvm

        return tvm.runtime.empty(array.shape, str(array.dtype), device).copyfrom(np.ascontiguousarray(array))

    def _load(self, path: Path) -> Any:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"can't read it: {error.strerror}", where=str(path)) from error
        # A name of its own for each upload: writing into a library that is still loaded there would crash the session.
        self._uploads += 1
        name = f"{self._uploads}-{path.name}"
        with self.call(f"load {path.name}", RUN_SECONDS):
            self.rpc.upload(bytearray(data), name)
            module = self.rpc.load_module(name)
            self.rpc.remove(name)
            return module


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        return str(os.getuid())
