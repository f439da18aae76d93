"""What the command line says of artifacts and boards that this tvmflow does not fit together with."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tvmflow.board.info import board_info
from tvmflow.build.artifact import sign
from tvmflow.build.elf import data_object
from tvmflow.build.manifest import (
    DIGEST,
    DIGEST_SIZE,
    MANIFEST,
    SCHEMA,
    SELF_TEST,
    Manifest,
    encode_manifest,
    encode_vectors,
)
from tvmflow.model import TensorInfo
from tvmflow.runtime import cpu

Cli = Callable[..., Any]


def write_artifact(path: Path, **changes: Any) -> Path:
    """A file that says of itself what an artifact says, and has no program: it must be refused, or wanted, before that."""
    x = TensorInfo("x", (1, 4), "float32")
    manifest = msgspec.structs.replace(Manifest(cpu.arch(), cpu.arch(), (), (x,), (x,), "fp32"), **changes)
    zeros = [np.zeros((1, 4), "float32")]
    sections = {
        MANIFEST: encode_manifest(manifest),
        SELF_TEST: encode_vectors([(zeros, zeros)]),
        DIGEST: bytes(DIGEST_SIZE),
    }
    path.write_bytes(data_object(sections, cpu.arch()))
    sign(path)
    return path


@pytest.mark.parametrize("verb", ["inspect", "run", "verify", "bench"])
def test_artifact_of_a_newer_schema(cli: Cli, tmp_path: Path, verb: str) -> None:
    path = write_artifact(tmp_path / "newer.so", schema=SCHEMA + 1)
    ran = cli(verb, path, "--json")
    assert ran.code == 1
    error = ran.json["error"]
    assert error["kind"] == "ArtifactError" and error["where"] == str(path)
    assert f"newer tvmflow (schema {SCHEMA + 1}, this one reads up to {SCHEMA})" in error["what"]
    assert "upgrade tvmflow" in error["remedy"]
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("verb", ["run", "verify", "bench"])
def test_artifact_for_a_processor_with_more_instructions(cli: Cli, tmp_path: Path, verb: str) -> None:
    ran = cli(verb, write_artifact(tmp_path / "new.so", target="zen9", isa_required=("avx9",)), "--json")
    assert ran.code == 1 and "Traceback" not in ran.err
    error = ran.json["error"]
    assert error["kind"] == "ArtifactError" and error["remedy"]
    assert "compiled for zen9 and needs CPU features that this machine lacks: avx9" in error["what"]


@pytest.fixture
def board_of() -> Iterator[Callable[..., str]]:
    """``board_of(tvm="0.25.0", ...)`` is the address of a board that tells these versions of itself, and nothing more."""
    listeners = []

    def serve(listener: socket.socket, answer: bytes) -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            with connection:
                connection.recv(4)
                connection.sendall(answer)

    def start(**versions: str) -> str:
        facts = board_info() | {"key": "", "busy": None}
        facts["versions"] |= versions
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=serve, args=(listener, json.dumps(facts).encode() + b"\n"), daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.mark.parametrize("verb", ["run", "verify", "bench"])
@pytest.mark.parametrize(("theirs", "where"), [("0.25.0", "on the board"), ("99.0.0", "here")])
def test_board_of_another_tvm_version(
    cli: Cli, tmp_path: Path, board_of: Callable[..., str], verb: str, theirs: str, where: str
) -> None:
    address = board_of(tvm=theirs)
    ran = cli(verb, write_artifact(tmp_path / "model.so"), "--board", address)
    assert ran.code == 3 and ran.out == ""
    assert f"error: {address}: has apache-tvm {theirs}, this machine has" in ran.err
    assert f"-> upgrade {where}: pip install apache-tvm==" in ran.err
    assert "Traceback" not in ran.err


def test_check_of_a_board_of_another_tvm_version(cli: Cli, board_of: Callable[..., str]) -> None:
    ran = cli("board", "check", board_of(tvm="0.25.0"), "--json")
    assert ran.code == 3
    reachable, versions = ran.json["checks"]
    assert reachable["ok"] and not versions["ok"]
    assert "0.25.0" in versions["detail"] and "pip install apache-tvm==" in versions["remedy"]
