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
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.board import info
from tvmflow.board.local import local_board, read_line, stop
from tvmflow.board.registry import LOCAL, Board, find_board
from tvmflow.board.ssh import tunnel
from tvmflow.board.wire import PROTOCOL, NoAnswer, greet, identify
from tvmflow.build.manifest import Manifest, read_manifest, verify_digest
from tvmflow.errors import ArtifactError, BoardError, DataError, nearest
from tvmflow.runtime.session import as_input

CONNECT_SECONDS = 10.0
RUN_SECONDS = 120.0
"""Longest silence of a board during one call of the model."""
_PREPARED = "tvmflow.prepared"


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


@contextmanager
def reach(board: str | Board, timeout: float, registry: Path | None = None) -> Iterator[Board]:
    """The board with an address that can be connected to from here: looked up, started, lent or tunnelled as needed."""
    with ExitStack() as resources:
        if board == LOCAL:
            yield resources.enter_context(local_board())
            return
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
        """Why the relay ended: ``silent SECONDS``, ``closed``, ``left``; empty while it lives."""
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
        from tvm import rpc

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
        try:
            with self.call("open a session", CONNECT_SECONDS):
                self.rpc = rpc.connect("127.0.0.1", relay.port, f"{board.key} -who={who}")
        except BoardError:
            resources.close()
            raise

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
        told = re.search(r"the session (was .*|reached .*|failed .*|ended with .*)", str(error))
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
        with self.call("tell about itself", CONNECT_SECONDS):
            return json.loads(str(self.rpc.get_function("tvmflow.board.info")()))

    def ping(self) -> None:
        """One round trip."""
        with self.call("answer", CONNECT_SECONDS):
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
        with self.call(f"use {threads} threads", CONNECT_SECONDS):
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


class RemoteSession:
    """A compiled model on a board; the same methods as the local ``Session``."""

    def __init__(self, board: RemoteBoard, module: Any, path: Path, manifest: Manifest, threads: int) -> None:
        from tvm.runtime.vm import VirtualMachine

        self.path, self.manifest, self.threads = path, manifest, threads
        self._board = board
        board.use_threads(threads)
        self._device = board.device(manifest.device)
        with board.call("open the model", RUN_SECONDS):
            self._vm: Any = VirtualMachine(module, self._device)

    def __enter__(self) -> RemoteSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the model on the board; the board stays connected."""
        self._vm = None

    def __call__(self, *arrays: Any) -> Any:
        """Runs on arrays in the order of the inputs; one numpy array, or a list when the model has several outputs."""
        names = [info.name for info in self.manifest.inputs]
        if len(arrays) != len(names):
            raise DataError(f"{len(arrays)} inputs given, the model takes {len(names)}: {', '.join(names)}", where=self.path.name)
        outputs = list(self.run(dict(zip(names, arrays, strict=True))).values())
        return outputs[0] if len(outputs) == 1 else outputs

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Outputs by name. Raises DataError for wrong names, shapes or dtypes, BoardError when the board fails."""
        arrays = self._ordered(inputs)
        with self._board.call("run the model", RUN_SECONDS):
            self._vm.set_input("main", *[self._board.tensor(a, self._device) for a in arrays])
            self._vm.invoke_stateful("main")
            results = self._vm.get_outputs("main")
            tensors = list(results) if isinstance(results, list | tuple) else [results]
            return {info.name: tensor.numpy() for info, tensor in zip(self.manifest.outputs, tensors, strict=True)}

    def benchmark(self, inputs: Mapping[str, Any], repeat: int = 10, number: int = 1) -> list[float]:
        """Seconds per call, measured on the board: ``repeat`` times the mean of ``number`` calls. Some calls go ahead untimed."""
        self._prepare(inputs)
        return timed(self._board, self._vm.module, _PREPARED, self._device, [], repeat, number)

    def profile(self, inputs: Mapping[str, Any], repeat: int = 10) -> list[tuple[str, float]]:
        """Kernels in execution order with their milliseconds on the board, the median over ``repeat`` runs."""
        self._prepare(inputs)
        with self._board.call("profile the model", RUN_SECONDS):
            measure = self._board.rpc.get_function("tvmflow.board.profile")
            return [(name, ms) for name, ms in json.loads(str(measure(self._vm.module, _PREPARED, self.manifest.device, repeat)))]

    def _prepare(self, inputs: Mapping[str, Any]) -> None:
        """Binds the inputs to a function that returns nothing: outputs would cross the network inside of the measured time."""
        arrays = self._ordered(inputs)
        with self._board.call("take the inputs", RUN_SECONDS):
            tensors = [self._board.tensor(a, self._device) for a in arrays]
            self._vm.save_function("main", _PREPARED, *tensors, include_return=False)

    def _ordered(self, inputs: Mapping[str, Any]) -> list[np.ndarray]:
        if self._vm is None:
            raise DataError("the session is closed", where=self.path.name)
        names = [info.name for info in self.manifest.inputs]
        for name in inputs:
            if name not in names:
                raise DataError(f"the model has no input {name!r}", where=self.path.name, remedy=nearest(name, names))
        absent = [name for name in names if name not in inputs]
        if absent:
            raise DataError(f"missing inputs: {', '.join(absent)}", where=self.path.name)
        return [as_input(inputs[info.name], info, self.path.name) for info in self.manifest.inputs]


def check_board(manifest: Manifest, facts: Mapping[str, Any], path: Path, name: str) -> None:
    """Raises ArtifactError in plain words when a board with these ``facts`` can't run an artifact."""
    remedy = "compile for that board's target; `tvmflow targets` lists them"
    if manifest.arch != facts["arch"]:
        raise ArtifactError(f"it was compiled for {manifest.arch}, {name} is {facts['arch']}", where=str(path), remedy=remedy)
    missing = sorted(set(manifest.isa_required) - set(facts["features"]))
    if missing:
        what = f"it needs CPU features that {name} ({facts['cpu']}) lacks: {', '.join(missing)}"
        raise ArtifactError(what, where=str(path), remedy=remedy)
    needed = [int(part) for part in manifest.glibc.split(".")] if manifest.glibc else []
    if facts["glibc"] and facts["glibc"] < needed:
        found = ".".join(map(str, facts["glibc"]))
        raise ArtifactError(
            f"it needs glibc {manifest.glibc}, {name} has {found}", where=str(path), remedy="upgrade the board's system"
        )


def timed(
    board: RemoteBoard, module: Any, function: str, device: Any, arguments: Sequence[Any], repeat: int, number: int
) -> list[float]:
    """Seconds per call by TVM's evaluator on the board; the allowed silence grows with what one call was seen to take."""

    def evaluate(number: int, repeat: int) -> list[float]:
        return list(module.time_evaluator(function, device, number=number, repeat=repeat)(*arguments).results)

    with board.call(f"time {function}", RUN_SECONDS):
        once = evaluate(1, 1)[0]
    with board.call(f"time {function}", RUN_SECONDS + 5 * once * repeat * number):
        return evaluate(number, repeat)
