"""The runtimes that are compared, and an environment for each: none of them can disturb another's packages."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PARTS = Path(__file__).resolve().parent
ROOT = PARTS.parents[1]
LONGEST = 3600.0
"""Seconds for one installation."""


class Unavailable(Exception):
    """Why a runtime can't be measured: shown in its row."""


@dataclass(frozen=True)
class Peer:
    """A runtime. Its module is ``peer_NAME.py``."""

    name: str
    precisions: tuple[str, ...]
    requirements: tuple[str, ...] = ()
    """For pip; none: it runs in the environment of this tool."""
    transformers_only: tuple[str, ...] = ()
    """Precisions that are meant for transformers."""


OURS = Peer("tvmflow", ("fp32", "int8"))
PEERS = (
    Peer("onnxruntime", ("fp32", "int8", "int8-dynamic"), ("onnxruntime", "onnx"), transformers_only=("int8-dynamic",)),
    Peer("openvino", ("fp32", "bf16", "int8", "int8-bf16"), ("openvino", "nncf", "onnx")),
    Peer(
        "litert",
        ("fp32", "int8", "int8-dynamic"),
        ("torch==2.13.0", "litert-torch", "ai-edge-litert", "onnx"),
        transformers_only=("int8-dynamic",),
    ),
    # Its converter needs torch; any other version than ours would bring 5 GB for GPUs.
    Peer("ncnn", ("fp32", "int8"), ("torch==2.13.0", "ncnn", "pnnx", "onnx")),
    Peer("torch", ("fp32", "int8"), ("torch==2.13.0", "torchao", "onnx")),
)


def folder() -> Path:
    return Path(os.environ.get("TVMFLOW_PEERS") or Path.home() / ".cache" / "tvmflow" / "peers")


def environment() -> dict[str, str]:
    """For each process of each runtime: this checkout's code, and nothing that sets a number of threads."""
    paths = (ROOT, ROOT / "tools", ROOT / "tools" / "model_zoo")
    kept = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    return kept | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1"}


def python(peer: Peer) -> Path:
    """The interpreter of a runtime's environment, which is made first when it isn't there. Raises Unavailable."""
    if not peer.requirements:
        return Path(sys.executable)
    place = folder() / peer.name
    found, stamp = place / "bin" / "python", place / ".installed"
    want = hashlib.sha256("\n".join(peer.requirements).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == want:
        return found
    print(f"installing {' '.join(peer.requirements)} into {place}", file=sys.stderr)
    place.parent.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", place], peer)
    _run([found, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *peer.requirements], peer)
    stamp.write_text(want)
    return found


def _run(command: list[str | Path], peer: Peer) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"not installed: pip took more than {LONGEST:.0f} s") from error
    if done.returncode:
        raise Unavailable(f"not installed: {last_line(done.stderr)}")


def last_line(text: str) -> str:
    """What a failed program said last, cut to a table's width."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and "[notice]" not in line]
    said = [line for line in lines if not line.startswith("->")]  # a remedy, which the cause stands before
    return said[-1][:200] if said else "it said nothing"
