"""Native code that crashes or hangs on the way: an error that says where, and the caller lives on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from tvmflow import flow, worker
from tvmflow.errors import ConfigError, DataError, EnvironmentProblem, InternalError, WorkerCrashed
from tvmflow.trace import Progress, silent

REPOSITORY = Path(__file__).parents[3]


class Job(msgspec.Struct):
    do: str


def act(job: Job, directory: Path, progress: Progress) -> list[float]:
    """The child's side of these tests."""
    progress("step one", 1, 2)
    progress("layer 'conv\t1'", 2, 2)
    if job.do == "abort":
        print("LLVM ERROR: Cannot select", flush=True)
        os.abort()
    if job.do == "hang":
        time.sleep(60)
    if job.do == "bug":
        raise KeyError("no such thing")
    if job.do == "memory":
        raise MemoryError
    if job.do == "mistake":
        raise ConfigError("wrong", where="file.toml", remedy="write it right")
    if job.do == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if job.do == "unsendable":
        return object()  # type: ignore[return-value]
    return [1.0, float("inf")]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs ``act`` in a child; the child finds this file as a module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(act, "__module__", Path(__file__).stem)
    return lambda do, **options: worker.in_child(
        act, Job(do), tmp_path, options.pop("progress", silent), what="the test", **options
    )


def test_result_and_steps_come_back(run) -> None:
    assert run("return") == [1.0, float("inf")]


def test_crash_says_how_and_where(run) -> None:
    with pytest.raises(WorkerCrashed, match="the test died .SIGABRT.: LLVM ERROR: Cannot select") as e:
        run("abort")
    assert e.value.where == "layer 'conv\t1'" and e.value.exit_code == 3


def test_hang_is_ended_and_its_steps_were_shown(run) -> None:
    seen = []
    with pytest.raises(WorkerCrashed, match="still running after 5 s at one step"):
        run("hang", silence=5.0, progress=lambda *step: seen.append(step))
    assert seen[-1] == ("layer 'conv\t1'", 2, 2)


def test_lack_of_memory(run) -> None:
    with pytest.raises(WorkerCrashed) as killed:
        run("killed")
    assert "memory" in killed.value.remedy
    with pytest.raises(EnvironmentProblem, match="not enough memory") as raised:
        run("memory")
    assert raised.value.where == "layer 'conv\t1'"


def test_mistake_of_the_user_keeps_its_kind_and_words(run) -> None:
    with pytest.raises(ConfigError, match="wrong") as e:
        run("mistake")
    assert (e.value.where, e.value.remedy) == ("file.toml", "write it right")


@pytest.mark.parametrize(("do", "kind"), [("bug", "KeyError"), ("unsendable", "TypeError")])
def test_bug_names_the_step_and_keeps_its_traceback(run, do: str, kind: str) -> None:
    with pytest.raises(InternalError, match=f"bug in tvmflow: {kind}") as e:
        run(do)
    assert e.value.where == "layer 'conv\t1'" and e.value.exit_code == 4
    assert "Traceback" in str(e.value.__cause__) and __file__ in str(e.value.__cause__) or do == "unsendable"


def test_killed_parent_leaves_no_child(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import os, time\n"
        "from pathlib import Path\n"
        "from tvmflow.trace import Progress\n"
        "def work(job: int, directory: Path, progress: Progress) -> int:\n"
        "    (directory / 'pid').write_text(str(os.getpid()))\n"
        "    time.sleep(60)\n"
        "    return 0\n"
    )
    script = (
        "import slow; from pathlib import Path; from tvmflow.worker import in_child; from tvmflow.trace import silent;"
        f"in_child(slow.work, 0, Path({str(tmp_path)!r}), silent, what='it')"
    )
    search = os.pathsep.join([str(REPOSITORY), str(tmp_path)])
    parent = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": search})
    pid = tmp_path / "pid"
    wait_for(lambda: pid.exists() and pid.read_text() != "")
    parent.kill()
    parent.wait()
    wait_for(lambda: not _alive(int(pid.read_text())))


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def left_over(work_dir: Path) -> list[Path]:
    return list((work_dir / "artifacts").rglob("*"))


def test_data_that_crash_the_process(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad_samples.py").write_text(
        "import os\ndef crash():\n    os.abort()\ndef fail():\n    raise OSError('gone')\n    yield\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkerCrashed, match="compiling died .SIGABRT.") as e:
        flow.compile(network, quantize="int8", calibration="bad_samples:crash", work_dir=tmp_path / "w", check_import=False)
    assert e.value.where.startswith("quantize")
    assert left_over(tmp_path / "w") == []
    with pytest.raises(DataError, match="the callable failed: OSError: gone"):
        flow.compile(network, quantize="int8", calibration="bad_samples:fail", work_dir=tmp_path / "w", check_import=False)


def test_code_generation_that_aborts_names_the_layer(network: Path, data: Path, tmp_path: Path) -> None:
    """AVX-512 registers and VNNI asked for on a CPU that has neither: LLVM ends the process."""
    text = (REPOSITORY / "targets" / "x86-avx512-vnni.toml").read_text()
    wrong = tmp_path / "wrong.toml"
    lines = ['mcpu = "x86-64"' if line.startswith("mcpu") else line for line in text.splitlines() if not line.startswith("mattr")]
    wrong.write_text("\n".join(lines))
    with pytest.raises(WorkerCrashed, match="LLVM ERROR") as e:
        flow.compile(network, str(wrong), quantize="int8", calibration=data, work_dir=tmp_path / "w")
    assert "/stem/Conv" in e.value.where
    assert left_over(tmp_path / "w") == []
