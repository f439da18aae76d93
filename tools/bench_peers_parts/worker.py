"""A process of one runtime, in that runtime's own environment, driven over a pipe by the benchmark. Needs NumPy only.

    worker.py prepare PEER MODEL PRECISION CALIBRATION FOLDER     makes what the runtime loads
    worker.py serve PEER FOLDER PRECISION THREADS CALIBRATION     loads it, then measures on command
    worker.py sessions PEER FOLDER PRECISION COUNT CALIBRATION    loads it so many times, then runs all at once on command
    worker.py peak THREADS                                        the machine's peak, on command

Commands are JSON lines on standard input, replies JSON lines on what was standard output: libraries print there, so it is moved.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Run = Callable[[dict[str, np.ndarray]], np.ndarray]
"""Inputs by name, as the user has them (float32, NCHW), to the first output, as the user wants it (float32)."""
Reply = dict[str, Any]
PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""


class Peer(Protocol):
    """What a module ``peer_NAME`` has."""

    def version(self) -> str: ...

    def prepare(self, model: Path, precision: str, calibration: Path, folder: Path) -> None:
        """Converts and quantizes an ONNX model: everything that happens once, before deployment."""

    def serve(self, folder: Path, precision: str, threads: int) -> Run: ...


def load(name: str) -> Any:
    return importlib.import_module(f"bench_peers_parts.peer_{name}")


def samples(calibration: Path) -> list[dict[str, np.ndarray]]:
    """Each a dictionary that the model takes as it is."""
    with np.load(calibration) as arrays:
        columns = {name: arrays[name] for name in arrays.files}
    return [{name: np.ascontiguousarray(c[i]) for name, c in columns.items()} for i in range(len(next(iter(columns.values()))))]


def turn(run: Run, inputs: dict[str, np.ndarray], seconds: float, warm: float) -> Reply:
    """Runs for ``warm`` seconds, then timed ones for ``seconds``, three at least."""
    end = time.perf_counter() + warm
    while time.perf_counter() < end:
        run(inputs)
    times: list[float] = []
    cpu, begin = time.process_time(), time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        run(inputs)
        times.append(time.perf_counter() - start)
    return {"times": times, "wall": time.perf_counter() - begin, "cpu": time.process_time() - cpu}


def serve(pipe: Any, name: str, folder: str, precision: str, threads: str, calibration: str) -> None:
    peer, inputs = load(name), samples(Path(calibration))[0]
    start = time.perf_counter()
    run = peer.serve(Path(folder), precision, int(threads))
    loaded = time.perf_counter()
    output = run(inputs)
    ready = {
        "version": peer.version(),
        "load_seconds": loaded - start,
        "first_run_seconds": time.perf_counter() - loaded,
        "resident_bytes": resident(),
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "output": np.asarray(output, np.float32).ravel().tolist(),
    }
    answer(pipe, ready, lambda asked: turn(run, inputs, asked["seconds"], asked["warm"]))


def sessions(pipe: Any, name: str, folder: str, precision: str, count: str, calibration: str) -> None:
    """Each session has inputs of its own, and what it makes of them alone is what it must make of them beside the others."""
    peer, inputs = load(name), samples(Path(calibration))[: int(count)]
    runs = [peer.serve(Path(folder), precision, 1) for _ in inputs]
    alone = [np.array(run(x)) for run, x in zip(runs, inputs, strict=True)]

    def together(asked: Reply) -> Reply:
        start = threading.Barrier(len(runs))

        def work(run: Run, given: dict[str, np.ndarray], expected: np.ndarray) -> tuple[int, int]:
            done = wrong = 0
            start.wait()
            end = time.perf_counter() + asked["seconds"]
            while time.perf_counter() < end:
                wrong += not np.array_equal(run(given), expected)
                done += 1
            return done, wrong

        with ThreadPoolExecutor(len(runs)) as pool:
            cpu, begin = time.process_time(), time.perf_counter()
            done, wrong = zip(*pool.map(work, runs, inputs, alone), strict=True)
        wall, used = time.perf_counter() - begin, time.process_time() - cpu
        return {"runs": done, "wrong": sum(wrong), "wall": wall, "cpu": used}

    answer(pipe, {"version": peer.version(), "resident_bytes": resident()}, together)


def peak(pipe: Any, threads: str) -> None:
    from tvmflow.runtime.session import prepare_thread_pool

    prepare_thread_pool(int(threads))
    import tvm

    from tvmflow.bench.peak import peak_meter
    from tvmflow.runtime import cpu
    from tvmflow.target import get_target

    tvm.get_global_func("runtime.config_threadpool")(1, int(threads))
    meter = peak_meter(get_target("native"), int(threads), features=cpu.features()).fastest()

    def measure(asked: Reply) -> Reply:
        cpu, begin = time.process_time(), time.perf_counter()
        found = meter.measure()
        while time.perf_counter() - begin < asked["seconds"]:
            found = found.best(meter.measure())
        used = {"wall": time.perf_counter() - begin, "cpu": time.process_time() - cpu}
        return {"int8_gops": found.int8_gops, "fp32_gflops": found.fp32_gflops, **used}

    answer(pipe, {}, measure)


def answer(pipe: Any, ready: Reply, respond: Callable[[Reply], Reply]) -> None:
    """Says that it is ready, then replies to each command until the input ends."""
    print(json.dumps(ready), file=pipe, flush=True)
    for line in sys.stdin:
        print(json.dumps(respond(json.loads(line))), file=pipe, flush=True)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    verb, *rest = sys.argv[1:]
    if sys.platform == "linux":  # a benchmark that is killed must not leave stopped processes behind
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if verb == "prepare":
        name, model, precision, calibration, folder = rest
        load(name).prepare(Path(model), precision, Path(calibration), Path(folder))
        return
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    {"serve": serve, "sessions": sessions, "peak": peak}[verb](pipe, *rest)


if __name__ == "__main__":
    main()
