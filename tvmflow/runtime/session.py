"""Session: a compiled model, loaded and ready to run. Needs TVM's C++ runtime, neither the compiler nor the package ``tvm``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.build.manifest import Manifest, read_manifest, verify_digest
from tvmflow.errors import ArtifactError, DataError, EnvironmentProblem
from tvmflow.model import TensorInfo
from tvmflow.runtime import cpu, library
from tvmflow.runtime.inputs import Port, ordered
from tvmflow.runtime.profile import RUNS, Profile, profile
from tvmflow.runtime.threads import prepare_thread_pool


def check_machine(manifest: Manifest, where: str) -> None:
    """Raise ArtifactError when this machine can't run the file: before any of its code is mapped."""
    if manifest.arch != cpu.arch():
        raise ArtifactError(
            f"it was compiled for {manifest.arch}, this machine is {cpu.arch()}",
            where=where,
            remedy="run it on a board (`--board`), or compile with `-t native`",
        )
    missing = sorted(set(manifest.isa_required) - cpu.features())
    if missing:
        raise ArtifactError(
            f"it was compiled for {manifest.target} and needs CPU features that this machine lacks: {', '.join(missing)}",
            where=where,
            remedy="compile with `-t native` on this machine; `tvmflow targets detect` shows what it has",
        )
    needed = tuple(int(part) for part in manifest.glibc.split(".")) if manifest.glibc else ()
    present = cpu.glibc_version()
    if present and present < needed:
        raise ArtifactError(
            f"it needs glibc {manifest.glibc}, this system has {'.'.join(map(str, present))}",
            where=where,
            remedy="run it on a newer system",
        )


def load(path: str | Path, *, threads: int | None = None, device: str | None = None, check: bool = True) -> Session:
    """Load a compiled model.

    Parameters
    ----------
    path : the `.so` file that ``compile`` wrote
    threads : CPU threads to use; None takes every physical core that the process may run on
    device : ``cpu`` or ``cuda``; None takes what the file was compiled for
    check : compare the file with its digest first

    Raises ArtifactError when the file is damaged, too new, or for another machine, before any of its code runs;
    EnvironmentProblem when the device or the number of threads is not to be had.
    """
    path = Path(path).resolve()
    manifest = read_manifest(path)
    if check:
        verify_digest(path)
    check_machine(manifest, str(path))
    if device is not None and device != manifest.device:
        raise ArtifactError(
            f"it was compiled for the device {manifest.device!r}, not {device!r}",
            where=str(path),
            remedy="compile it for a target of that device",
        )
    return Session(path, manifest, threads)


class Session:
    """A loaded model. Calls are not to be made from two threads at the same time; load it once for each."""

    def __init__(self, path: Path, manifest: Manifest, threads: int | None = None) -> None:
        wanted = threads if threads is not None else cpu.physical_cores()
        if wanted < 1:
            raise DataError(f"threads must be 1 or more, not {wanted}")
        prepare_thread_pool(max(wanted, cpu.physical_cores()))
        library.load_runtime()
        from tvm_ffi import Tensor, from_dlpack, load_module

        self.path, self.manifest, self.threads = path, manifest, wanted
        self._where = path.name
        self._limit_threads = library.function("runtime.config_threadpool")
        self._use_threads()
        if (pool := library.function("runtime.NumThreads")()) != wanted:
            raise EnvironmentProblem(
                f"{wanted} threads were asked for, TVM's pool in this process has {pool}",
                remedy=f"load before other TVM code runs, or start with TVM_NUM_THREADS={wanted}",
            )
        device = library.find_device(manifest.device)
        self._module: Any = load_module(str(path), keep_module_alive=False)
        self._vm: Any = library.start_machine(self._module, device)
        self._main: Any = self._vm["main"]
        self._on_cpu, self._tensor_type = manifest.device == "cpu", Tensor
        self._read = library.function("runtime.TVMTensorCopyToBytes")
        self._wait = library.waiting_for(device)
        self._names = tuple(info.name for info in manifest.inputs)
        self._results = tuple(info.name for info in manifest.outputs)
        self._ports = [
            Port(info, device, from_dlpack if info.name in manifest.borrowed else None, self._where) for info in manifest.inputs
        ]

    def __call__(self, *arrays: Any) -> Any:
        """Run on arrays (numpy, or anything with DLPack) in the order of the inputs; one numpy array, or a list when several."""
        infos = self.manifest.inputs
        if len(arrays) != len(infos):
            names = ", ".join(i.name for i in infos)
            raise DataError(f"{len(arrays)} inputs given, the model takes {len(infos)}: {names}", where=self._where)
        outputs = self._run(arrays)
        return outputs[0] if len(outputs) == 1 else outputs

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Run on arrays by input name; outputs by name. Raises DataError on a wrong name, shape or dtype."""
        outputs = self._run(ordered(inputs, self._names, self._where))
        return dict(zip(self._results, outputs, strict=True))

    def benchmark(self, inputs: Mapping[str, Any], repeat: int = 10, number: int = 1) -> list[float]:
        """Seconds per call, ``repeat`` times, each the mean of ``number`` calls.

        Inside the clock: the program from its first kernel to its last and the allocation of its outputs, on the device until it
        has finished. Outside: copying inputs in and outputs out. One call goes ahead untimed. Python adds about a microsecond.
        """
        call, wait = self._prepared(inputs)
        call()
        wait()
        seconds = []
        for _ in range(repeat):
            start = time.perf_counter()
            for _ in range(number):
                call()
            wait()
            seconds.append((time.perf_counter() - start) / number)
        return seconds

    def profile(self, inputs: Mapping[str, Any], runs: int = RUNS) -> Profile:
        """Time of each kernel and of whole runs, in turns."""
        call, wait = self._prepared(inputs)
        layers = self._bound(self.manifest.layered)
        return profile(call, layers, wait, self._vm["set_instrument"], runs)

    def close(self) -> None:
        """Free the model's memory. The session can't be used afterwards."""
        self._vm = self._module = self._main = None
        self._ports = []

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _use_threads(self) -> None:
        """TVM keeps one pool for each calling thread, shared by all sessions: set it before every use."""
        self._limit_threads(1, self.threads)

    def _begin(self) -> None:
        if self._vm is None:
            raise DataError("the session is closed", where=self._where)
        self._use_threads()

    def _run(self, values: Sequence[Any]) -> list[np.ndarray]:
        self._begin()
        result = self._main(*[port.tensor(value) for port, value in zip(self._ports, values, strict=True)])
        tensors = [result] if isinstance(result, self._tensor_type) else list(result)
        return [self._array(tensor, info) for tensor, info in zip(tensors, self.manifest.outputs, strict=True)]

    def _array(self, tensor: Any, info: TensorInfo) -> np.ndarray:
        """A copy: a program may hand out an input or a constant. TVM's own copy takes longer than a small kernel."""
        if self._on_cpu:
            return np.from_dlpack(tensor).copy()
        array = np.empty(info.shape, info.dtype)
        self._read(tensor, library.address(array), array.nbytes)
        return array

    def _prepared(self, inputs: Mapping[str, Any]) -> tuple[Callable[[], object], Callable[[], object]]:
        """The program with copies of ``inputs`` bound, and the wait for the device."""
        self._begin()
        for port, value in zip(self._ports, ordered(inputs, self._names, self._where), strict=True):
            port.copy(value)
        return self._bound("main"), self._wait

    def _bound(self, function: str) -> Callable[[], object]:
        """A function of the program with the ports' buffers bound, without Python in between."""
        bound: Callable[[], object] = self._vm[library.bind(self._vm, function, [port.buffer for port in self._ports])]
        return bound
