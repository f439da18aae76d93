"""``board check``: whether a board can be reached, fits together with this machine, and can be trusted with a measurement."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from tvmflow.board.reach import check_versions, greeting, reach
from tvmflow.board.registry import Board
from tvmflow.board.rpc import RemoteBoard, connect
from tvmflow.errors import BoardError, ConfigError, TvmflowError
from tvmflow.target import get_target

HOT_CELSIUS = 80.0
"""Raspberry Pi and Jetson boards begin to throttle between 80 and 85 degrees."""
LOAD_PER_CORE = 0.5
MIN_MEMORY, MIN_DISK = 128 << 20, 256 << 20
"""An artifact is tens of megabytes, and is held once on disk and once in memory."""
SLOW_ROUND_TRIP = 0.25


class Check(msgspec.Struct, frozen=True):
    """One finding. ``remedy`` is empty when ``ok``."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def check(board: str | Board, timeout: float = 10.0, registry: Path | None = None) -> list[Check]:
    """All findings about a board, worst case within a few times ``timeout`` seconds.

    The list ends at the first finding that makes the later ones impossible. Raises ConfigError for an unknown board.
    """
    try:
        with reach(board, timeout, registry) as where:
            return _check_reached(where, timeout)
    except ConfigError:
        raise
    except TvmflowError as error:
        return [_failed("reachable", error)]


def _check_reached(board: Board, timeout: float) -> list[Check]:
    start = time.monotonic()
    try:
        facts = greeting(board, timeout)
    except BoardError as error:
        return [_failed("reachable", error)]
    found = [Check("reachable", True, f"tvmflow board server at {board.address}, answered in {time.monotonic() - start:.3f} s")]
    try:
        check_versions(board.name, facts)
    except BoardError as error:
        return [*found, _failed("versions", error)]
    versions = facts["versions"]
    found.append(Check("versions", True, ", ".join(f"{name} {version}" for name, version in versions.items())))
    found += judge(facts, board.target)
    try:
        with connect(board, timeout) as session:
            found += [Check("session", True, "opened and answered"), round_trip(session)]
    except BoardError as error:
        found.append(_failed("session", error))
    return found


def _failed(name: str, error: TvmflowError) -> Check:
    return Check(name, False, error.what, error.remedy)


def judge(facts: Mapping[str, Any], target: str = "") -> list[Check]:
    """Findings from a board's facts alone; ``target`` is the name of the target that it is registered for."""
    return [
        features(facts, target),
        load(facts),
        temperature(facts),
        governor(facts),
        _space("memory", facts["memory"]["available"], facts["memory"]["total"], MIN_MEMORY, "stop other programs on the board"),
        _space(
            "disk", facts["disk"]["free"], facts["disk"]["total"], MIN_DISK, "free space where the server keeps its files (/tmp)"
        ),
    ]


def features(facts: Mapping[str, Any], target: str) -> Check:
    """The CPU has what the target's code may use."""
    machine = f"{facts['cpu']}, {facts['arch']}, {facts['cores']} cores"
    if not target:
        return Check("cpu", True, f"{machine}; no target registered to compare with")
    try:
        wanted = get_target(target)
    except ConfigError as error:
        return _failed("cpu", error)
    missing = sorted(set(wanted.features) - set(facts["features"]))
    remedy = f"register another target than {target}; `tvmflow targets` lists them"
    if wanted.arch != facts["arch"]:
        return Check("cpu", False, f"{machine}; the target {target} is for {wanted.arch}", remedy)
    if missing:
        return Check("cpu", False, f"{machine}; lacks {', '.join(missing)} of the target {target}", remedy)
    return Check("cpu", True, f"{machine}; has all features of the target {target}")


def load(facts: Mapping[str, Any]) -> Check:
    """Little else runs on the board."""
    one, cores = facts["load_average"][0], facts["cores"]
    ok = one <= LOAD_PER_CORE * cores
    return Check(
        "load", ok, f"load average {one:.2f} on {cores} cores", "" if ok else "stop what runs there; timings would be too long"
    )


def temperature(facts: Mapping[str, Any]) -> Check:
    """The hottest sensor is below the throttling range."""
    hottest = facts["temperature_c"]
    if hottest is None:
        return Check("temperature", True, "no sensors")
    ok = hottest < HOT_CELSIUS
    return Check(
        "temperature", ok, f"{hottest:.1f} degrees Celsius", "" if ok else "let it cool down, or cool it: hot boards throttle"
    )


def governor(facts: Mapping[str, Any]) -> Check:
    """The clock does not vary with the load."""
    found = facts["governors"]
    ok = set(found) <= {"performance"}
    remedy = "on the board, as root: echo performance | tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
    return Check("governor", ok, ", ".join(found) or "not shown by the kernel", "" if ok else remedy)


def _space(name: str, free: int, total: int, least: int, remedy: str) -> Check:
    ok = free >= least
    return Check(name, ok, f"{free >> 20} of {total >> 20} MiB free", "" if ok else remedy)


def round_trip(session: RemoteBoard, calls: int = 5) -> Check:
    """Median seconds of a call that does nothing."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        session.ping()
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    ok = median < SLOW_ROUND_TRIP
    remedy = "" if ok else "use a nearer network; timings are taken on the board, but each upload and run waits"
    return Check("round trip", ok, f"{median * 1e3:.1f} ms", remedy)
