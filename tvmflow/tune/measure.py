"""Builds and times candidates with MetaSchedule's builder and runners, in worker processes here or over RPC on a board.

A candidate that crashes or hangs takes a worker with it, not the search. The builder's and the runner's own functions are
replaced: the stock ones import every tensor intrinsic in each worker (seconds), and fill arguments with values that
no quantized network has.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tvm

from tvmflow.errors import MissingTool
from tvmflow.kernels import spec as ks
from tvmflow.schedule.template import Tile, template_for
from tvmflow.target import Target

BUILD_SECONDS = 120.0
RUN_SECONDS = 60.0
REPEAT, REPEAT_MS = 5, 8
"""Times of a candidate: five, each the mean of as many calls as fill eight milliseconds."""


@dataclass(frozen=True)
class Candidate:
    kernel: ks.Kernel
    tile: Tile


@dataclass(frozen=True)
class Outcome:
    """``seconds`` per call of each repeat; empty with the reason in ``error`` when it failed."""

    seconds: tuple[float, ...]
    error: str = ""


class Measurer(Protocol):
    """What the search needs: outcomes in the order of the candidates."""

    def measure(self, candidates: Sequence[Candidate]) -> list[Outcome]: ...


def build_candidate(module: tvm.IRModule, target: Any, _params: Any) -> Any:
    """MetaSchedule's ``f_build``: plain code generation, for CUDA in the environment that embeds machine code."""
    if target.kind.name != "cuda":
        return tvm.tirx.build(module, target=target)
    from tvmflow.build import cuda

    with target, cuda.compiler_environment(), tvm.transform.PassContext(config=cuda.PASS_CONFIG):
        return tvm.tirx.build(module, target=target)


class MetaScheduleMeasurer:
    """Local builder; the runner is local, or MetaSchedule's RPC runner on ``board``."""

    def __init__(self, target: Target, board: str | None = None, workers: int = 2) -> None:
        try:
            from tvm.s_tir.meta_schedule.builder import LocalBuilder
            from tvm.s_tir.meta_schedule.runner import EvaluatorConfig, LocalRunner, RPCConfig, RPCRunner
        except ImportError as error:
            raise MissingTool(
                f"tuning needs {error.name}", remedy="pip install tvmflow again: its requirements are incomplete"
            ) from error
        self.target, self.board = target, board
        self._folder = tempfile.TemporaryDirectory(prefix="tvmflow-tune-")
        export = _Export(target, self._folder.name)
        self._builder = LocalBuilder(max_workers=workers, timeout_sec=BUILD_SECONDS, f_build=build_candidate, f_export=export)
        evaluator = EvaluatorConfig(number=1, repeat=REPEAT, min_repeat_ms=REPEAT_MS)
        if board is None:
            os.environ["TVM_NUM_THREADS"] = "1"  # read by the runner's worker when it starts
            self._runner: Any = LocalRunner(timeout_sec=RUN_SECONDS, evaluator_config=evaluator, f_alloc_argument=fill_arguments)
        else:
            # the tracker's fields are not used: the session is opened by our own client
            config = RPCConfig(tracker_host="-", tracker_port=1, tracker_key=board, session_timeout_sec=int(RUN_SECONDS))
            self._runner = RPCRunner(
                rpc_config=config,
                evaluator_config=evaluator,
                f_create_session=open_board,
                f_alloc_argument=fill_remote_arguments,
                f_cleanup=close_board,
            )

    def measure(self, candidates: Sequence[Candidate]) -> list[Outcome]:
        """Builds all, then runs those that built, one at a time."""
        from tvm.s_tir.meta_schedule.arg_info import TensorInfo
        from tvm.s_tir.meta_schedule.builder import BuilderInput
        from tvm.s_tir.meta_schedule.runner import RunnerInput

        device = self.target.device()
        modules = [_module(c, self.target) for c in candidates]
        built = self._builder.build([BuilderInput(m, device) for m in modules])
        outcomes: list[Outcome | None] = [Outcome((), _reason(b.error_msg)) if b.error_msg else None for b in built]
        waiting = [i for i, o in enumerate(outcomes) if o is None]
        kind = "cuda" if self.target.cuda else "cpu"
        inputs = []
        for i in waiting:
            info = [TensorInfo(str(p.dtype), [int(d) for d in p.shape]) for p in modules[i]["main"].params]
            inputs.append(RunnerInput(built[i].artifact_path, kind, info))
        for i, future in zip(waiting, self._runner.run(inputs), strict=True):
            result = future.result()
            failed = result.error_msg is not None
            outcomes[i] = Outcome((), _reason(result.error_msg)) if failed else Outcome(tuple(float(s) for s in result.run_secs))
            Path(str(built[i].artifact_path)).unlink(missing_ok=True)
        return [o if o is not None else Outcome((), "was not measured") for o in outcomes]


def _module(candidate: Candidate, target: Target) -> tvm.IRModule:
    function = template_for(candidate.kernel, target).emit(candidate.kernel, candidate.tile, "main")
    return tvm.IRModule({"main": function.with_attr("global_symbol", "main")})


def _reason(message: Any) -> str:
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    return lines[-1][:300] if lines else "unknown"


class _Export:
    """MetaSchedule's ``f_export``: one shared library per candidate, linked for the target."""

    def __init__(self, target: Target, folder: str) -> None:
        self.target, self.folder = target, folder

    def __call__(self, module: Any) -> str:
        from tvmflow.build.link import link

        handle, path = tempfile.mkstemp(suffix=".so", dir=self.folder)
        os.close(handle)
        module.export_library(path, fcompile=lambda out, objects, **_: link([Path(o) for o in objects], Path(path), self.target))
        return path


def fill_arguments(device: Any, arguments: Any, repeats: int) -> list[list[Any]]:
    """MetaSchedule's ``f_alloc_argument``: bytes and floats of a quantized network, in the runner's process."""
    return [[tvm.runtime.tensor(_values(dtype, shape), device) for _, dtype, shape in arguments] for _ in range(repeats)]


def fill_remote_arguments(_session: Any, device: Any, arguments: Any, repeats: int) -> list[list[Any]]:
    """The same on a board."""
    return [
        [tvm.runtime.empty(shape, dtype, device).copyfrom(_values(dtype, shape)) for _, dtype, shape in arguments]
        for _ in range(repeats)
    ]


def _values(dtype: str, shape: Sequence[int]) -> np.ndarray:
    """int8 and uint8 over their range; int32 tables of zeros (zero points, shifts); floats in (0, 1), no denormals, no NaN."""
    rng = np.random.default_rng(0)
    if dtype in ("int8", "uint8"):
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max + 1, shape).astype(dtype)
    if dtype.startswith("int"):
        return np.zeros(shape, dtype)
    return rng.uniform(0.1, 1.0, shape).astype(dtype)


_BOARDS: dict[int, Any] = {}
"""Open boards by session, in the runner's worker process: MetaSchedule hands back the session only."""


def open_board(config: Any) -> Any:
    """MetaSchedule's ``f_create_session``: through our client, which bounds every wait."""
    from tvmflow.board.rpc import connect

    board = connect(config.tracker_key, timeout=RUN_SECONDS)
    board.use_threads(1)
    _BOARDS[id(board.rpc)] = board
    return board.rpc


def close_board(session: Any, _path: Any) -> None:
    """MetaSchedule's ``f_cleanup``."""
    board = _BOARDS.pop(id(session), None)
    if board is not None:
        board.close()
