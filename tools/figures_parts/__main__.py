"""Every figure of every model: what compiling gave, how exact and how fast the result is, beside onnxruntime's own int8.

Each measurement runs in a process of its own and is kept in the work folder under a hash of the code and of what it was asked:
a run that was interrupted goes on where it stopped. ``figures.jsonl`` holds them all, one a line; ``figures.txt`` is the table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import ENTRIES, Entry
from tables import checks, tables

ROOT = Path(__file__).resolve().parents[2]
PRECISIONS = ("fp32", "int8")
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


def measure(entry: Entry, runner: Runner, target: str, pictures: Path | None, runs: int) -> Iterator[Record]:
    """All measurements of one model, in an order in which each has what it needs."""
    name = entry.name
    stat = pictures.stat() if pictures and pictures.exists() else None
    changed = (stat.st_size, stat.st_mtime) if stat else ()
    prepared = runner.run(name, "prepare", pictures=str(pictures or ""), changed=changed)
    yield prepared
    if "path" not in prepared:
        return
    common: Record = {"path": prepared["path"], "data": prepared["data"], "sha256": prepared["sha256"]}
    compiled = {p: runner.run(name, "compile", precision=p, target=target, **common) for p in PRECISIONS}
    yield from compiled.values()
    artifacts = {p: c["artifact"] for p, c in compiled.items() if "artifact" in c}
    if not artifacts:
        return
    some = next(iter(artifacts.values()))
    peers = {how: runner.run(name, "peer", how=how, artifact=some, **common) for how in ("static", *["dynamic"] * entry.dynamic)}
    yield from peers.values()
    contenders = [(f"tvmflow {p}", artifact, "") for p, artifact in artifacts.items()]
    contenders += [(f"onnxruntime int8 {how}", some, p["path"]) for how, p in peers.items() if "path" in p]
    for contender, artifact, other in contenders:
        yield runner.run(name, "evaluate", contender=contender, artifact=artifact, runs=other, judged=entry.judged, **common)
    for threads in (1, 2):
        for precision, artifact in artifacts.items():
            against = ["onnxruntime-fp32"]
            if precision == "int8":
                against += [
                    {"static": "onnxruntime-int8", "dynamic": "onnxruntime-dynamic"}[h] for h, p in peers.items() if "path" in p
                ]
            asked = {"precision": precision, "threads": threads, "artifact": artifact, "against": against, "runs": runs}
            found = runner.run(name, "bench", **asked, **common)
            # A benchmark refuses figures that can't be true, as on a machine that is busy for a moment: it has a second chance.
            yield runner.run(name, "bench", **asked, **common) if "error" in found else found


def main() -> int:
    names = [entry.name for entry in ENTRIES]
    parser = argparse.ArgumentParser(prog="tools/figures", description="Measure every model: compile, accuracy, latency.")
    parser.add_argument("--pictures", type=Path, help="zip of natural pictures, those of ImageNet named imagenet_NN_CLASS_0.jpg")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/figures"), help="folder of figures.jsonl and figures.txt")
    parser.add_argument("--work-dir", type=Path, help="models, artifacts and finished measurements (default: OUT/work)")
    parser.add_argument("--models", default=",".join(names), help=f"some of {', '.join(names)}")
    parser.add_argument("--target", default="native")
    parser.add_argument("--runs", type=int, default=100, help="timed runs of each contender of a benchmark")
    asked = parser.parse_args()
    chosen = asked.models.split(",")
    if unknown := sorted(set(chosen) - set(names)):
        parser.error(f"unknown model {unknown[0]!r}: there are {', '.join(names)}")
    out: Path = asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    started = time.time()
    runner = Runner((asked.work_dir or out / "work").resolve(), code_digest(), started)
    pictures = asked.pictures.resolve() if asked.pictures else None
    records: list[Record] = []
    with (out / "figures.jsonl").open("w") as lines:
        for entry in ENTRIES:
            if entry.name not in chosen:
                continue
            for record in measure(entry, runner, asked.target, pictures, asked.runs):
                records.append(record)
                lines.write(json.dumps(record) + "\n")
                lines.flush()
    verdicts = checks(records, {e.name for e in ENTRIES if e.all_integer})
    text = f"{tables(records)}\n{verdicts}\n{time.time() - started:.0f} s; every figure: {out / 'figures.jsonl'}\n"
    (out / "figures.txt").write_text(text)
    print(text, end="")
    return 1 if any("error" in record for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())
