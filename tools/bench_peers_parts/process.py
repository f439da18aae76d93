"""A worker process, driven over its pipes. It is stopped between its turns, so that no thread of it takes a core from others."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench_peers_parts.environments import ROOT, Unavailable, environment, last_line

PRIORITY = "-15"
"""Of the autogroup: on Linux with autogroups (CONFIG_SCHED_AUTOGROUP) `nice` only acts inside of a session."""
WORKER = ("-m", "bench_peers_parts.worker")
LONGEST_LOAD = 600.0
LONGEST_REPLY = 120.0
LONGEST_PREPARE = 1800.0
Reply = dict[str, Any]


def prepare(python: Path, arguments: Sequence[object]) -> None:
    """Runs ``worker.py prepare``. Raises Unavailable with what it said last."""
    command = [str(a) for a in (python, *WORKER, "prepare", *arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=LONGEST_PREPARE)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"preparing the model took more than {LONGEST_PREPARE:.0f} s") from error
    if done.returncode:
        raise Unavailable(f"can't prepare the model: {_why(done.returncode, done.stderr)}")


class Worker:
    """``worker.py serve`` or ``worker.py peak`` in a session of its own. Raises Unavailable wherever it fails."""

    def __init__(self, python: Path, arguments: Sequence[object]) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by close()
        self._process = subprocess.Popen(
            [str(a) for a in (python, *WORKER, *arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment(),
            cwd=ROOT,
            start_new_session=True,
        )
        self._read = b""
        self.priority = raise_priority(self._process.pid)
        try:
            self.ready = self._reply(LONGEST_LOAD)
        except Unavailable:
            self.close()
            raise
        self._stop()

    def ask(self, **command: Any) -> Reply:
        """One turn."""
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the reply says why
        reply = self._reply(LONGEST_REPLY)
        self._stop()
        return reply

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            assert stream is not None
            stream.close()

    def _stop(self) -> None:
        """Returns when every thread has stopped."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)

    def _reply(self, longest: float) -> Reply:
        assert self._process.stdout is not None
        pipe, deadline = self._process.stdout.fileno(), time.monotonic() + longest
        while b"\n" not in self._read:
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Unavailable(f"no answer in {longest:.0f} s")
            more = os.read(pipe, 1 << 20)
            if not more:
                code = self._process.wait()
                self._log.seek(0)
                raise Unavailable(_why(code, self._log.read()))
            self._read += more
        line, self._read = self._read.split(b"\n", 1)
        reply: Reply = json.loads(line)
        return reply


def raise_priority(pid: int) -> str:
    """The new priority of a session's autogroup, or why it stays as it is."""
    try:
        Path(f"/proc/{pid}/autogroup").write_text(PRIORITY)
    except OSError as error:
        return f"unchanged: {error.strerror}"
    return f"autogroup {PRIORITY}"


def _why(code: int, said: str) -> str:
    return last_line(said) if code > 0 else f"it was ended by signal {-code}: {last_line(said)}"
