"""Prepared models, kept under a hash of all that they were made from."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

from bench_peers_parts.environments import OURS, PARTS, Peer, folder, python
from bench_peers_parts.process import prepare
from figures_parts.runner import code_digest

SAME = {"bf16": "fp32", "int8-bf16": "int8"}
"""Precisions that differ in how a file is run, not in the file."""


def prepared(peer: Peer, precision: str, model: Path, calibration: Path) -> Path:
    """The folder that the runtime loads. Raises Unavailable."""
    interpreter, precision = python(peer), SAME.get(precision, precision)
    digest = hashlib.sha256(f"{peer.name} {precision} {peer.requirements}".encode())
    for path in (model, calibration, PARTS / f"peer_{peer.name}.py"):
        digest.update(path.read_bytes())
    if peer is OURS:
        digest.update(code_digest().encode())
    made = folder() / "prepared" / f"{model.stem}-{peer.name}-{precision}-{digest.hexdigest()[:12]}"
    if made.exists():
        return made
    print(f"preparing {model.stem} for {peer.name} {precision}", file=sys.stderr, flush=True)
    part = made.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    prepare(interpreter, (peer.name, model, precision, calibration, part))
    return part.rename(made)
