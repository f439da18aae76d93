"""The tuning log: lines that survive a kill, strict reading, the kept best, and shipped logs that still decode."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tvmflow.errors import ConfigError
from tvmflow.flow import merge_logs
from tvmflow.kernels.spec import Conv2d
from tvmflow.schedule.template import template_for
from tvmflow.target import get_target
from tvmflow.tune import log


def conv(channels: int = 16) -> Conv2d:
    return Conv2d(1, 8, 8, channels, 32, 3, 3, pad=(1, 1, 1, 1))


@pytest.fixture
def entries(target):
    kernel = conv()
    space = list(template_for(kernel, target).space(kernel, target))[:5]
    return [
        log.record(kernel, target, tile, [seconds, 2 * seconds])
        for tile, seconds in zip(space, (5.0, 3.0, 4.0, 1.0, 2.0), strict=True)
    ]


def test_lines_come_back(entries, tmp_path: Path) -> None:
    for entry in entries:
        log.append(tmp_path / "new" / "l.jsonl", entry)
    assert log.read(tmp_path / "new" / "l.jsonl", strict=True) == entries


def test_torn_line_is_skipped_and_the_next_record_is_not_lost(entries, tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    log.append(path, entries[0])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])  # killed in the middle of its second line
    assert log.read(path) == entries[:1]
    log.append(path, entries[1])
    assert log.read(path) == entries[:2]
    with pytest.raises(ConfigError, match="not a tuning record") as e:
        log.read(path, strict=True)
    assert e.value.where == f"{path}:2"


def test_failed_trials_are_no_records(target) -> None:
    kernel = conv()
    for seconds in ([], [0.0], [1.0, -1.0]):
        with pytest.raises(ValueError):
            log.record(kernel, target, template_for(kernel, target).default(kernel, target), seconds)


def test_merge_keeps_the_fastest_decisions_in_one_order(entries) -> None:
    again = log.record(entries[0].kernel, get_target("x86-64-v3"), entries[0].tile, [0.5])
    kept = log.merge([*entries, again])
    assert [e.best for e in kept] == [0.5, 1.0, 2.0]
    for seed in range(5):
        mixed = [*entries, again]
        random.Random(seed).shuffle(mixed)
        assert log.merge(mixed) == kept == log.merge(kept)


def test_merged_files(entries, tmp_path: Path) -> None:
    first, second, out = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "out.jsonl"
    log.write(first, entries[:2])
    log.write(second, entries[2:])
    assert merge_logs([first, second], out) == {"log": str(out), "read": 5, "kept": 3, "kernels": 1, "targets": ["x86-64-v3"]}
    assert [e.best for e in log.read(out, strict=True)] == [1.0, 2.0, 3.0]
    written = out.read_bytes()
    merge_logs([second, first], out)
    assert out.read_bytes() == written
    with pytest.raises(ConfigError, match="can't read the tuning log"):
        merge_logs([tmp_path / "absent.jsonl"], out)
    assert out.read_bytes() == written


def test_lookup_is_for_one_target_only(entries, target, tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    log.write(path, entries)
    opened = log.open_log(path, target, tmp_path)
    assert opened.name == "l.jsonl, 1 kernels" and opened.lookup(conv(), target) == entries[3].tile
    assert opened.lookup(conv(channels=32), target) is None
    other = get_target("x86-64")
    assert opened.lookup(conv(), other) is None and log.open_log(path, other, tmp_path).best == {}
    assert log.open_log("none", target, tmp_path).best == {}


def test_local_log_is_part_of_the_default(entries, target, tmp_path: Path) -> None:
    log.append(log.local_log(target, tmp_path), entries[0])
    assert log.open_log("default", target, tmp_path).lookup(conv(), target) == entries[0].tile


def test_lint_finds_what_the_templates_no_longer_have(entries, target, tmp_path: Path) -> None:
    import msgspec

    path = tmp_path / "l.jsonl"
    log.write(path, entries)
    assert log.lint(path, target) == []
    impossible = msgspec.structs.replace(entries[0].tile, nr=99)
    log.write(path, [msgspec.structs.replace(entries[0], tile=impossible), msgspec.structs.replace(entries[1], target="zen5")])
    tile, foreign = log.lint(path, target)
    assert tile.startswith("l.jsonl:1") and "not in the space" in tile and "for zen5" in foreign


def test_a_record_outlives_new_fields_of_its_template_but_not_a_smaller_space(entries, target, tmp_path: Path) -> None:
    import json

    import msgspec

    path = tmp_path / "l.jsonl"
    log.write(path, [entries[3]])
    line = json.loads(path.read_text())
    default = {
        f
        for f in ("channels_outer", "threads")
        if line["tile"][f] == msgspec.structs.asdict(type(entries[3].tile)("", 1, 1, 1))[f]
    }
    assert default  # as if written before these fields existed
    line["tile"] = {k: v for k, v in line["tile"].items() if k not in default}
    path.write_text(json.dumps(line) + "\n")
    assert log.open_log(path, target, tmp_path).lookup(conv(), target) == entries[3].tile

    gone = msgspec.structs.replace(entries[3].tile, nr=99)
    log.write(path, [msgspec.structs.replace(entries[3], tile=gone), entries[4]])
    opened = log.open_log(path, target, tmp_path)
    assert opened.lookup(conv(), target) == entries[4].tile and not opened.refused  # the second best serves
    log.write(path, [msgspec.structs.replace(entries[3], tile=gone)])
    opened = log.open_log(path, target, tmp_path)
    assert opened.lookup(conv(), target) is None and len(opened.refused) == 1
    assert opened.lookup(conv(channels=32), target) is None and len(opened.refused) == 1


def test_threads_follow_today_s_model_not_the_record(entries, target, tmp_path: Path) -> None:
    import msgspec

    path = tmp_path / "l.jsonl"
    other = msgspec.structs.replace(entries[0].tile, threads=not entries[0].tile.threads)
    log.write(path, [msgspec.structs.replace(entries[0], tile=other)])
    assert log.lint(path, target) == []
    assert log.open_log(path, target, tmp_path).lookup(conv(), target) == entries[0].tile


def test_only_accepted_records_are_used(entries, target, tmp_path: Path) -> None:
    import msgspec

    path = tmp_path / "l.jsonl"
    lucky = msgspec.structs.replace(entries[3], accepted=False)
    log.write(path, [lucky, entries[1]])
    assert log.open_log(path, target, tmp_path).lookup(conv(), target) == entries[1].tile
    assert log.merge([lucky, entries[1]])[0] == entries[1]


SHIPPED = sorted((Path(__file__).parents[2] / "tuning_logs").glob("*/*.jsonl"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_shipped_logs_apply(path: Path) -> None:
    assert log.lint(path, get_target(path.parent.name), build=False) == []


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_shipped_logs_build(path: Path) -> None:
    assert log.lint(path, get_target(path.parent.name)) == []
