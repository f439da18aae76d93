"""Boards behind TVM's own tracker: found by their key, shared by a search, lent to TVM's own clients, and alive after a crash."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tvmflow.board import rpc
from tvmflow.board.discover import announced, boards_behind
from tvmflow.board.local import stop
from tvmflow.errors import BoardError, ConfigError
from tvmflow.kernels.spec import Conv2d
from tvmflow.schedule.template import template_for
from tvmflow.target import get_target
from tvmflow.tune.measure import BoardMeasurer, Group

WAIT_SECONDS = 60.0


def until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def start_tracker(port: int) -> subprocess.Popen[bytes]:
    command = ["-m", "tvm.exec.rpc_tracker", "--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1), "--silent"]
    silence = subprocess.DEVNULL
    process = subprocess.Popen([sys.executable, *command], stdout=silence, stderr=silence, start_new_session=True)

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    assert until(answers)
    return process


def stop_tracker(process: subprocess.Popen[bytes]) -> None:
    """The process that TVM starts for the work goes on without its parent."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def tracker() -> Iterator[str]:
    """Address of a tracker of TVM."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = start_tracker(port)
    yield f"127.0.0.1:{port}"
    stop_tracker(process)


def count(tracker: str) -> int:
    try:
        return len(announced(f"tracker://{tracker}/here"))
    except BoardError:
        return 0


def test_boards_of_a_tracker_share_a_search(tracker: str, start_server: Any) -> None:
    servers = [start_server("--key", "here", "--tracker", tracker) for _ in range(2)]
    assert until(lambda: count(tracker) == 2)
    name, target = f"tracker://{tracker}/here", get_target("native")
    boards = boards_behind([name, "local"])
    assert [b if isinstance(b, str) else b.port for b in boards] == [*sorted(s.board.port for s in servers), "local"]
    kernels = [Conv2d(1, 4, 4, 16, 16 * n) for n in range(1, 7)]
    groups = [Group(k, (template_for(k, target).default(k, target),)) for k in kernels]
    with BoardMeasurer(target, boards[:2]) as measurer:
        found = dict(measurer.measure(groups))
    assert set(found) == set(groups) and all(o.seconds for outcomes in found.values() for o in outcomes) and not measurer.lost
    assert all("session of" in server.log.read_text() for server in servers)
    with rpc.connect(name) as one, rpc.connect(name) as other:
        assert one.board.port != other.board.port
    stop(servers[0].process)
    assert until(lambda: count(tracker) == 1)


def test_tvms_own_clients_get_a_board_that_survives_their_crash(tracker: str, start_server: Any, native: Path) -> None:
    from tvm import rpc as stock

    server = start_server("--key", "here", "--tracker", tracker)
    host, _, port = tracker.partition(":")
    client = stock.connect_tracker(host, int(port))
    for _ in range(2):
        session = client.request("here", session_timeout=WAIT_SECONDS)
        session.upload(str(native))
        session.load_module(native.name)["rest"]()
        with pytest.raises(Exception, match="SIGSEGV"):
            session.load_module(native.name)["crash"]()
        del session
    assert server.process.poll() is None


@pytest.mark.slow
def test_metaschedules_runner_measures_on_it(tracker: str, start_server: Any, tmp_path: Path) -> None:
    import tvm
    from tvm.s_tir.meta_schedule.arg_info import TensorInfo
    from tvm.s_tir.meta_schedule.runner import EvaluatorConfig, RPCConfig, RPCRunner, RunnerInput

    start_server("--key", "here", "--tracker", tracker)
    assert until(lambda: count(tracker) == 1)
    target, kernel = get_target("native"), Conv2d(1, 4, 4, 16, 16)
    template = template_for(kernel, target)
    function = template.emit(kernel, template.default(kernel, target), "main").with_attr("global_symbol", "main")
    library = tmp_path / "built.so"
    tvm.tirx.build(tvm.IRModule({"main": function}), target=target.host()).export_library(str(library))
    host, _, port = tracker.partition(":")
    config = RPCConfig(tracker_host=host, tracker_port=int(port), tracker_key="here", session_timeout_sec=WAIT_SECONDS)
    evaluator = EvaluatorConfig(number=1, repeat=2, min_repeat_ms=0)
    runner = RPCRunner(config, evaluator, max_workers=1)
    arguments = [TensorInfo(str(p.dtype), tuple(map(int, p.shape))) for p in function.params]
    (future,) = runner.run([RunnerInput(str(library), "cpu", arguments)])
    result = future.result()
    assert result.error_msg is None and len(result.run_secs) == 2


def test_a_board_waits_for_its_tracker_and_finds_it_again(start_server: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = start_server("--key", "here", "--tracker", f"127.0.0.1:{port}")
    assert until(lambda: "no tracker" in server.log.read_text())
    for turn in range(2):
        process = start_tracker(port)
        assert until(lambda: count(f"127.0.0.1:{port}") == 1)
        stop_tracker(process)
        assert until(lambda before=turn: server.log.read_text().count("no tracker") == before + 2)


@pytest.mark.parametrize(
    ("name", "words"),
    [("tracker://127.0.0.1:9190", "no key"), ("tracker://127.0.0.1/here", "no address"), ("tracker://h:0/here", "no address")],
)
def test_malformed_names(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        rpc.connect(name)


def test_what_is_not_there(tracker: str, start_server: Any) -> None:
    with pytest.raises(BoardError, match="no tracker answers"):
        boards_behind(["tracker://127.0.0.1:1/here"])
    server = start_server("--key", "here", "--tracker", tracker)
    with pytest.raises(BoardError, match="something else listens|closed"):
        boards_behind([f"tracker://127.0.0.1:{server.board.port}/here"])
    assert until(lambda: count(tracker) == 1)
    with pytest.raises(BoardError, match="no board is announced under 'there'; its keys: here"):
        boards_behind([f"tracker://{tracker}/there"])
