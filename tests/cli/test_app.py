"""What all verbs share: help, exit codes, errors in words, and one JSON object on standard output."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tvmflow import errors

VERBS = ("compile", "quantize", "tune", "run", "bench", "eval", "verify", "inspect", "targets", "board", "doctor")
HEAVY = {"tvm", "numpy", "onnx", "onnxruntime", "torch", "matplotlib", "msgspec", "rich.console"}


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "model.so"
    path.write_bytes(b"")
    return path


def test_help_lists_every_verb_and_imports_nothing_heavy() -> None:
    code = f"import sys; from tvmflow.cli.app import app; sys.exit(', '.join({HEAVY!r} & sys.modules.keys()) or 0)"
    subprocess.run([sys.executable, "-c", code], check=True)
    shown = subprocess.run([sys.executable, "-m", "tvmflow", "--help"], check=True, capture_output=True, text=True).stdout
    assert sorted(line.split()[0] for line in shown.partition("Commands:\n")[2].splitlines()) == sorted(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_whole(cli: Callable[..., Any], verb: str) -> None:
    ran = cli(verb, "--help")
    assert ran.code == 0
    assert "--json" in ran.out or verb == "board"
    assert "..." not in ran.out.partition("Commands:")[2], "a short help was cut"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UserError("no"), 1),
        (errors.ArtifactError("no"), 1),
        (errors.UsageError("no"), 2),
        (errors.BoardError("no"), 3),
        (errors.InternalError("no"), 4),
        (OSError(28, "No space left on device", "x.so"), 3),
        (ZeroDivisionError("no"), 4),
    ],
)
def test_exit_codes_and_error_object(
    cli: Callable[..., Any], fake_flow: ModuleType, artifact: Path, error: Exception, code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    fake_flow.inspect = fail  # type: ignore[attr-defined]
    ran = cli("inspect", artifact, "--json")
    assert ran.code == ran.json["error"]["exit_code"] == code
    assert ran.err.startswith("error: ")
    assert "Traceback" not in ran.err
    assert cli("inspect", artifact).out == ""
    assert "Traceback" in cli("inspect", artifact, "--debug").err


def test_bug_is_called_a_bug(cli: Callable[..., Any], fake_flow: ModuleType, artifact: Path) -> None:
    fake_flow.inspect = lambda *_, **__: {}["no"]  # type: ignore[attr-defined]
    assert "this is a bug in tvmflow: KeyError" in cli("inspect", artifact).err


def test_interrupt(cli: Callable[..., Any], fake_flow: ModuleType, artifact: Path) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    fake_flow.inspect = interrupt  # type: ignore[attr-defined]
    ran = cli("inspect", artifact)
    assert (ran.code, ran.err) == (130, "interrupted\n")


def test_json_stays_alone_whatever_libraries_print(cli: Callable[..., Any], fake_flow: ModuleType, artifact: Path) -> None:
    def noisy(*_: object, **__: object) -> dict[str, float]:
        print("from python")
        os.write(1, b"from native code\n")
        subprocess.run(["echo", "from a child"], check=True)
        return {"worst": float("inf")}

    fake_flow.inspect = noisy  # type: ignore[attr-defined]
    ran = cli("inspect", artifact, "--json")
    assert ran.json == {"worst": None}
    assert all(text in ran.err for text in ("from python", "from native code", "from a child"))
    assert "from native code" in cli("inspect", artifact).out


@pytest.mark.parametrize(
    "arguments", [("--bogus",), ("nosuchverb",), ("compile",), ("bench", "a.so", "--threads", "0"), ("targets", "shwo")]
)
def test_malformed_command_line(cli: Callable[..., Any], arguments: tuple[str, ...]) -> None:
    ran = cli(*arguments, "--json")
    assert ran.code == 2
    assert ran.json["error"]["kind"] == "UsageError"
    assert "--help" in ran.json["error"]["remedy"]


@pytest.mark.parametrize("arguments", [(), ("board",)])
def test_without_a_verb_the_help_is_shown(cli: Callable[..., Any], arguments: tuple[str, ...]) -> None:
    ran = cli(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert "Commands:" in ran.err


def test_version(cli: Callable[..., Any]) -> None:
    import tvmflow

    assert cli("--version").out == f"tvmflow {tvmflow.__version__}\n"


@pytest.mark.parametrize("verb", ["verify", "inspect", "run", "bench"])
def test_missing_file_offers_the_nearest(cli: Callable[..., Any], fake_flow: ModuleType, tmp_path: Path, verb: str) -> None:
    (tmp_path / "mobilenet.so").write_bytes(b"")
    setattr(fake_flow, verb, None)
    ran = cli(verb, tmp_path / "mobilnet.so")
    assert ran.code == 1
    assert "did you mean 'mobilenet.so'?" in ran.err
    assert "no such folder" in cli(verb, tmp_path / "nosuch" / "a.so").err
