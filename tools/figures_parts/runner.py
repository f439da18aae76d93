"""Runs measurements, each in a process of its own and each once: what is finished is kept under a hash of code and question."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 1200.0
"""Seconds after which a measurement is given up."""
LABELS = ("precision", "contender", "threads", "how", "judged")
"""What tells measurements of a step apart, kept with each."""
Record = dict[str, Any]


def code_digest() -> str:
    """Hash of everything that a figure depends on besides the model and its data."""
    digest = hashlib.sha256(sys.version.encode())
    for folder, pattern in (
        ("tvmflow", "*.py"),
        ("tvmflow", "*.toml"),
        ("targets", "*"),
        ("tuning_logs", "*"),
        ("tools/figures_parts", "*.py"),
    ):
        for path in sorted((ROOT / folder).rglob(pattern)):
            if path.is_file():
                digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Runner:
    """Runs measurements, each once."""

    work: Path
    code: str
    started: float

    def run(self, model: str, step: str, **asked: Any) -> Record:
        """What the measurement gave: its own keys, or ``error``, or ``skipped``; with ``seconds`` and ``peak_memory_bytes``."""
        folder = self.work / model
        folder.mkdir(parents=True, exist_ok=True)
        job = {"step": step, "model": model, "folder": str(folder), **asked}
        key = hashlib.sha256((self.code + json.dumps(job, sort_keys=True)).encode()).hexdigest()[:16]
        kept = folder / "results" / f"{step}-{key}.json"
        label = {k: v for k, v in asked.items() if k in LABELS}
        title = " ".join([model, step, *(str(v) for k, v in label.items() if k != "judged")])
        if kept.exists():
            found = json.loads(kept.read_text())
        else:
            kept.parent.mkdir(exist_ok=True)
            found = child(job, kept)
            if not {"error", "skipped"} & set(found):
                part = kept.with_suffix(".part")
                part.write_text(json.dumps(found))
                part.replace(kept)
        note = found.get("error") or found.get("skipped") or f"{found['seconds']:.0f} s"
        print(f"[{time.time() - self.started:5.0f} s] {title}: {note}", file=sys.stderr, flush=True)
        return {"model": model, "step": step, **label, **found}


def child(job: Record, kept: Path) -> Record:
    """One process; its peak of memory includes the processes that it waited for."""
    asked, out, log = (kept.with_suffix(suffix) for suffix in (".job", ".out", ".log"))
    asked.write_text(json.dumps(job))
    out.unlink(missing_ok=True)
    # This checkout, whatever is installed.
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    with log.open("w") as text:
        process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("steps.py"), asked, out],
            stdout=text,
            stderr=text,
            cwd=kept.parent,
            env=environment,
        )
        status, usage = wait(process)
    seconds = time.perf_counter() - start
    found: Record = json.loads(out.read_text()) if out.exists() else {"error": why(status, log)}
    return {**found, "seconds": seconds, "peak_memory_bytes": usage.ru_maxrss * 1024}


def wait(process: subprocess.Popen[bytes]) -> tuple[int, Any]:
    """Exit status and resources; ends the process after ``LONGEST`` seconds."""
    deadline = time.monotonic() + LONGEST
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage
        if time.monotonic() > deadline:
            process.kill()
        time.sleep(0.05)


def why(status: int, log: Path) -> str:
    end = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
    return f"{f'signal {-status}' if status < 0 else f'exit code {status}'}: {''.join(end)} (all of it: {log})"
