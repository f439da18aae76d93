"""Builds candidates in worker processes and times them on boards, the candidates of one kernel in turns.

A group (the incumbent of a kernel and its challengers) is one library: built by one process of TVM's worker pool, loaded in one
session of a board, its functions timed round after round on the same arguments. Whatever the machine does meanwhile, it does to
all of them, so their ratios hold where their times do not. This machine is a board too (``local``: our server on the loopback
device), so that one way of measuring serves all, and a candidate that crashes or hangs ends a session and nothing else.

Kernels are timed on one thread, also those that run on several: on two, the winner of one thread is on average 1.6 % and at most
6 % behind that of two (nine convolutions of ResNet-50, Zen 5), and one log serves sessions of any number of threads.

Several boards take groups from one queue, each as it gets free; a tracker of TVM may name them (board/discover.py).
MetaSchedule's runners time each candidate by itself, in a server that does not survive a crashed one. Its LocalBuilder is the
same worker pool, but took 27 to 33 seconds for a small convolution that ``build_group`` builds in 0.2.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, TypeAlias

import msgspec
import numpy as np

from tvmflow.board.local import local_board
from tvmflow.board.registry import LOCAL, Board
from tvmflow.board.rpc import RemoteBoard, connect
from tvmflow.errors import BoardError, MissingTool
from tvmflow.kernels import spec as ks
from tvmflow.schedule.template import Tile
from tvmflow.target import Target

BUILD_SECONDS = 120.0
BUILDS_OF_A_WORKER = 100
"""Groups after which a build worker starts anew: LLVM's memory grows, and starting costs one to two seconds."""
CONNECT_SECONDS = 30.0
HANG_SECONDS = 30.0
"""Silence after which a candidate is taken to hang."""
ROUNDS = 4
SAMPLES, SAMPLE_SECONDS = 4, 2e-3
"""A round of a candidate is four samples, each the mean of as many calls as fill two milliseconds: less than a time slice, so
that on a busy machine some are undisturbed."""
HOPELESS = 1.5
"""A candidate that was this much slower than the incumbent in one round is not timed again."""
UNSTEADY = 1.02
"""The machine is disturbed while the third best sample of the incumbent, or of the fastest, is this far above its best."""
MOST_ROUNDS = 16


@dataclass(frozen=True)
class Group:
    """Candidates of one kernel that are compared with each other; the first is the incumbent."""

    kernel: ks.Kernel
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Outcome:
    """``seconds`` per call in each sample; empty with the reason in ``error`` when it failed."""

    seconds: tuple[float, ...]
    error: str = ""

    @property
    def best(self) -> float:
        return min(self.seconds)


class Measurer(Protocol):
    """What the search needs: groups as they get ready, in any order, each with the outcomes of its tiles in their order."""

    def measure(self, groups: Sequence[Group]) -> Iterator[tuple[Group, list[Outcome]]]: ...


class Argument(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]


class Built(msgspec.Struct, frozen=True):
    """A group's library: functions ``c0``, ``c1``, ... and the arguments of each."""

    library: str
    arguments: tuple[tuple[Argument, ...], ...]


def build_group(kernel: ks.Kernel, tiles: Sequence[Tile], target: Target, library: str) -> Built:
    """The work of a build process: code of all candidates, linked into ``library``."""
    from tvmflow.build.link import link
    from tvmflow.tune.generate import generate

    module, functions = generate(kernel, tiles, target)
    module.export_library(library, fcompile=lambda _, objects, **__: link([Path(o) for o in objects], Path(library), target))
    return Built(library, tuple(tuple(Argument(str(p.dtype), tuple(map(int, p.shape))) for p in f.params) for f in functions))


_Work: TypeAlias = tuple[Group, Future[Built]]


class BoardMeasurer:
    """Builds on this machine, runs on ``boards``: registered names, ``host:port``, or ``local``."""

    def __init__(self, target: Target, boards: Sequence[str | Board] = ()) -> None:
        try:
            from tvm.support.popen_pool import PopenPoolExecutor
        except ImportError as error:
            remedy = "pip install tvmflow again: its requirements are incomplete"
            raise MissingTool(f"tuning needs {error.name}", remedy=remedy) from error
        self.target = target
        self._boards = {board if isinstance(board, str) else board.name: board for board in boards or (LOCAL,)}
        self.lost: dict[str, str] = {}
        """Boards that were given up on the way, and why."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._overlap = LOCAL not in self._boards or cores >= 4
        """Whether builds and runs may go on at a time; on a small machine the builds would disturb the runs."""
        workers = cores if LOCAL not in self._boards else max(1, cores - 2 * self._overlap)
        self._resources = ExitStack()
        self._folder = self._resources.enter_context(tempfile.TemporaryDirectory(prefix="tvmflow-tune-"))
        self._pool = PopenPoolExecutor(workers, timeout=BUILD_SECONDS, maximum_process_uses=BUILDS_OF_A_WORKER)
        self._resources.callback(self._pool.shutdown)
        self._libraries = 0
        self._sessions: dict[str, RemoteBoard] = {}

    def __enter__(self) -> BoardMeasurer:
        if LOCAL in self._boards:
            self._boards[LOCAL] = self._resources.enter_context(local_board())
        return self

    def __exit__(self, *exception: object) -> None:
        for name in self._boards:
            self._hang_up(name)
        self._resources.close()

    def measure(self, groups: Sequence[Group]) -> Iterator[tuple[Group, list[Outcome]]]:
        """Builds all, and times each on the first board that is free. Between two calls the boards are free for others.

        Raises BoardError when no board is left; what was on them then has no outcome, for it is not to blame.
        """
        builds = [(group, self._build(group)) for group in groups]
        if not self._overlap:
            wait([build for _, build in builds])
        waiting: SimpleQueue[_Work | None] = SimpleQueue()
        for item in builds:
            waiting.put(item)
        done: SimpleQueue[tuple[Group, list[Outcome]] | BaseException] = SimpleQueue()
        threads = [threading.Thread(target=self._serve, args=(b, waiting, done), daemon=True) for b in self._boards]
        for thread in threads:
            thread.start()
        left, serving = len(builds), len(self._boards)
        try:
            while left:
                found = done.get()
                if isinstance(found, tuple):
                    left -= 1
                    yield found
                    continue
                serving -= 1
                if not serving or not isinstance(found, BoardError):
                    raise found
                self.lost[found.where] = found.what
        finally:  # also when the caller wants no more: what is on a board ends, the rest is left
            while not waiting.empty():
                if (work := waiting.get()) is not None:
                    work[1].cancel()
            for _ in threads:
                waiting.put(None)
            for thread in threads:
                thread.join()

    def _serve(self, board: str, waiting: SimpleQueue[_Work | None], done: SimpleQueue[Any]) -> None:
        """A board's thread. A board that is lost leaves its group to the others."""
        try:
            while (work := waiting.get()) is not None:
                try:
                    done.put((work[0], self._outcomes(board, *work)))
                except BoardError:
                    waiting.put((work[0], self._build(work[0])))
                    raise
        except BaseException as error:  # the thread's boundary: what is not handed over would be lost
            done.put(error)
        finally:
            self._hang_up(board)

    def _build(self, group: Group) -> Future[Built]:
        self._libraries += 1
        library = str(Path(self._folder) / f"{self._libraries}.so")
        return self._pool.submit(build_group, group.kernel, group.tiles, self.target, library)

    def _outcomes(self, board: str, group: Group, build: Future[Built]) -> list[Outcome]:
        """Outcomes of a group; when it fails as a whole, of each candidate alone. Raises BoardError when the board is lost."""
        try:
            built = build.result()
        except Exception as error:  # whatever the build process raised or died of
            reason = str(error)
        else:
            session = self._session(board)
            try:
                return [Outcome(times) for times in time_group(session, built, "cuda" if self.target.cuda else "cpu")]
            except BoardError as error:
                reason = error.what
            finally:
                Path(built.library).unlink(missing_ok=True)
            self._hang_up(board)
            self._session(board)  # the candidate's fault only if the board still answers
        if len(group.tiles) == 1:
            return [Outcome((), _last_line(reason))]
        alone = [Group(group.kernel, (tile,)) for tile in group.tiles]
        return [outcome for single in alone for outcome in self._outcomes(board, single, self._build(single))]

    def _session(self, board: str) -> RemoteBoard:
        if board not in self._sessions:
            self._sessions[board] = connect(self._boards[board], timeout=CONNECT_SECONDS)
            self._sessions[board].use_threads(1)
        return self._sessions[board]

    def _hang_up(self, board: str) -> None:
        session = self._sessions.pop(board, None)
        if session is not None:
            session.close()


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "unknown"


def time_group(board: RemoteBoard, built: Built, device_name: str) -> list[tuple[float, ...]]:
    """Seconds per call of each function of a group in each sample. Raises BoardError when one crashes or hangs."""
    device = board.device(device_name)
    name = Path(built.library).name
    with board.call("load candidates", HANG_SECONDS):
        board.rpc.upload(bytearray(Path(built.library).read_bytes()), name)
        module = board.rpc.load_module(name)
        board.rpc.remove(name)
        wanted = {(n, a) for arguments in built.arguments for n, a in enumerate(arguments)}
        tensors = {key: board.tensor(_values(key[1]), device) for key in wanted}

    def seconds(index: int, number: int, repeat: int) -> list[float]:
        with board.call(f"time candidate {index}", HANG_SECONDS):
            evaluator = module.time_evaluator(f"c{index}", device, number=number, repeat=repeat)
            return [float(s) for s in evaluator(*(tensors[n, a] for n, a in enumerate(built.arguments[index]))).results]

    numbers = []
    for index in range(len(built.arguments)):
        (once,) = seconds(index, 1, 1)
        once = min(seconds(index, _calls(once, SAMPLE_SECONDS / 4), 2))  # the first call was a cold one
        numbers.append(_calls(once, SAMPLE_SECONDS))
    return in_turns(lambda index: seconds(index, numbers[index], SAMPLES), len(numbers))


def _calls(once: float, seconds: float) -> int:
    return max(1, ceil(seconds / max(once, 1e-9)))


def in_turns(samples: Callable[[int], list[float]], count: int) -> list[tuple[float, ...]]:
    """Rounds over ``samples(0 .. count - 1)``, of which 0 is the incumbent: the hopeless leave, a disturbed machine gets more."""
    times: list[list[float]] = [[] for _ in range(count)]
    racing = list(range(count))
    for turn in range(1, MOST_ROUNDS + 1):
        for index in racing:
            times[index] += samples(index)
        racing = [i for i in racing if i == 0 or min(times[i]) < HOPELESS * min(times[0])]
        if turn >= ROUNDS and all(sorted(times[i])[2] < UNSTEADY * min(times[i]) for i in {0, fastest(times)}):
            break
    return [tuple(t) for t in times]


def fastest(times: Sequence[Sequence[float]]) -> int:
    return min(range(len(times)), key=lambda i: min(times[i]))


def _values(argument: Argument) -> np.ndarray:
    """int8 and uint8 over their range; int32 tables of zeros (zero points, shifts); floats in (0, 1), no denormals, no NaN.

    They are what a quantized network holds: MetaSchedule's random fill has other values, which take other times.
    """
    rng = np.random.default_rng(0)
    if argument.dtype in ("int8", "uint8"):
        info = np.iinfo(argument.dtype)
        return rng.integers(info.min, info.max + 1, argument.shape).astype(argument.dtype)
    if argument.dtype.startswith("int"):
        return np.zeros(argument.shape, argument.dtype)
    return rng.uniform(0.1, 1.0, argument.shape).astype(argument.dtype)
