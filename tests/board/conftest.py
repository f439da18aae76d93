"""Fixtures of the board tests: a loopback server of their own, and tiny libraries to send to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tvmflow.board.local import read_line, stop
from tvmflow.board.registry import Board
from tvmflow.build.manifest import Manifest
from tvmflow.model import TensorInfo

REPOSITORY = Path(__file__).parents[2]


class Server:
    """A server process whose log the test can read."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.log = folder / "server.log"
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tvmflow.board.server", "--port", "0", *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        line = read_line(self.process, 60)
        assert line.startswith("listening on"), self.log.read_text()
        self.board = Board(name="here", port=int(line.rpartition(":")[2]))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests: each must leave it alive for the next."""
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    stop(server.process)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server that the test may kill or freeze."""
    server = Server(tmp_path)
    yield server
    server.signal(signal.SIGCONT)
    stop(server.process)


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers with arguments of the test's choice, and stops them after it."""
    started: list[Server] = []

    def start(*arguments: str) -> Server:
        started.append(Server(tmp_path, *arguments))
        return started[-1]

    yield start
    for server in started:
        stop(server.process)


def _square_plus_one(target: dict[str, object], path: Path, **export: object) -> Path:
    """A Relax program of two outputs, ``y = x + 1`` and ``z = y * y``, float32 [1, 4], built by stock TVM."""
    import tvm
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 4), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.add(x, relax.const(np.ones((1, 4), "float32"))))
            z = builder.emit(relax.op.multiply(y, y))
            result = builder.emit_output(relax.Tuple([y, z]))
        builder.emit_func_output(result)
    tvm.compile(builder.get(), tvm.target.Target(target)).export_library(str(path), **export)
    return path


@pytest.fixture(scope="session")
def square_plus_one() -> Callable[..., Path]:
    return _square_plus_one


@pytest.fixture(scope="session")
def manifest_of() -> Callable[..., Manifest]:
    """What an artifact of ``square_plus_one`` says of itself: ``manifest_of(arch, features)``."""
    tensor = lambda name: TensorInfo(name, (1, 4), "float32")
    return lambda arch, isa=(): Manifest(arch, arch, isa, (tensor("x"),), (tensor("y"), tensor("z")), "fp32")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _square_plus_one({"kind": "llvm"}, tmp_path_factory.mktemp("tiny") / "tiny.so")


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library in C, with TVM's calling convention: ``rest`` returns at once, the others end or hang their process."""
    folder = tmp_path_factory.mktemp("native")
    bodies = {
        "rest": "",
        "crash": "*(volatile int*)0 = 1;",
        "illegal": "__builtin_trap();",
        "die": "abort();",
        "hang": "for (;;) pause();",
        "leave": "_exit(3);",
        "avx512": '__asm__ volatile("vpxord %zmm0, %zmm0, %zmm0");',
    }
    functions = [
        f"int __tvm_ffi_{name}(void* s, void* a, int n, void* r) {{ {body} return 0; }}" for name, body in bodies.items()
    ]
    source, library = folder / "native.c", folder / "native.so"
    source.write_text("\n".join(["#include <stdlib.h>", "#include <unistd.h>", *functions, ""]))
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    return library
