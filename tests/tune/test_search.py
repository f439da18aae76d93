"""The search with a measurer that only computes: what is tried, what is kept, and what a second run does not repeat."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tvmflow.errors import EnvironmentProblem
from tvmflow.kernels.spec import Conv2d
from tvmflow.target import get_target
from tvmflow.tune import log
from tvmflow.tune.cost_model import CostModel, Sample
from tvmflow.tune.search import Limits, search
from tvmflow.tune.state import latency, read_quarantine, restore

CONV = Conv2d(1, 16, 16, 16, 32, 3, 3, (2, 2), (1, 1, 1, 1))
POINTWISE = Conv2d(1, 8, 8, 16, 32)
NO_LIMITS = Limits()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tuning" / "l.jsonl"


@pytest.fixture
def run(target, path: Path):
    """Searches tasks from what the log at ``path`` has."""

    def tune(tasks, measurer, limits=NO_LIMITS, *progress, shipped=(), again=False):
        return search(restore(tasks, target, path, shipped, again), target, measurer, path, limits, *progress)

    return tune


@pytest.fixture
def truth(modelled):
    """The cycle model is wrong by a factor that depends on the tile."""
    return lambda group, tile: modelled(group.kernel, tile) * (1 + 3 * (tile.nr % 3 != 0) + (tile.mw > 4))


@pytest.fixture
def times(truth, computed):
    """All true times of a task."""
    from tvmflow.tune.measure import Group

    return lambda task: {tile: truth(Group(task.kernel, ()), tile) for tile in task.candidates}


def test_finds_what_the_cycle_model_does_not_know(task, run, computed, truth, times, path: Path) -> None:
    one = task(CONV)
    found = run([one], computed(truth), Limits(trials=100))
    known = times(one)
    reached = known[found.states[0].incumbent]
    assert reached < known[one.default] and reached <= np.quantile(list(known.values()), 0.05)
    assert {e.tile for e in log.read(path, strict=True)} == found.states[0].seconds.keys()


def test_default_is_measured_first(task, run, computed, truth) -> None:
    measurer = computed(truth)
    tasks = [task(CONV), task(POINTWISE)]
    run(tasks, measurer, Limits(trials=12))
    assert {g.kernel: g.tiles[0] for g in measurer.groups} == {t.kernel: t.default for t in tasks}


def test_the_incumbent_stands_in_every_group(task, run, computed, truth, path: Path) -> None:
    """So that candidates are compared with what the machine does now."""
    measurer = computed(truth)
    run([task(CONV)], measurer, Limits(trials=60))
    accepted = [e.tile for e in log.read(path) if e.accepted]
    assert len(measurer.groups) > 2 and all(g.tiles[0] in accepted for g in measurer.groups)


@pytest.mark.parametrize("trials", [1, 7, 20])
def test_limit_of_trials_is_kept(task, run, computed, truth, path: Path, trials: int) -> None:
    found = run([task(CONV), task(POINTWISE)], computed(truth), Limits(trials=trials))
    assert found.trials == len(log.read(path)) == trials and found.stopped == "trials"


def test_limit_of_time_ends_after_the_group(task, run, computed, truth) -> None:
    measurer = computed(truth)
    found = run([task(CONV), task(POINTWISE)], measurer, Limits(seconds=0.0))
    assert found.stopped == "time"
    first, *rest = measurer.groups
    assert all(len(g.tiles) == 2 for g in rest)  # only what had won once was timed again


def test_without_limits_it_ends_when_nothing_is_left_to_gain(task, run, computed, modelled) -> None:
    measurer = computed(lambda group, tile: modelled(group.kernel, tile))
    found = run([task(CONV)], measurer)
    assert found.stopped == "no gain left" and len(found.states[0].seconds) < len(task(CONV).candidates)
    assert found.gain == 0.0


# The noise gate ---------------------------------------------------------------------------------------------------------------


def test_a_lucky_time_is_not_accepted(task, run, computed, modelled, path: Path) -> None:
    """One candidate seems to be ten times faster, once."""
    one = task(CONV)
    lucky = next(tile for tile in one.candidates if tile != one.default)
    seen: Counter = Counter()

    def time(group, tile):
        seen[tile] += 1
        return modelled(CONV, tile) / (10 if tile == lucky and seen[tile] == 1 else 1)

    found = run([one], computed(time))
    assert seen[lucky] >= 2 and found.states[0].incumbent != lucky
    first, *again = [e for e in log.read(path) if e.tile == lucky]
    assert not first.accepted and again and not any(e.accepted for e in again)
    assert log.open_log(path, get_target("x86-64-v3"), path).lookup(CONV, get_target("x86-64-v3")) == found.states[0].incumbent


def test_a_win_is_accepted_after_the_second_one(task, run, computed, truth, path: Path) -> None:
    found = run([task(CONV)], computed(truth))
    lines = [e for e in log.read(path) if e.tile == found.states[0].incumbent and not e.settled]
    assert [e.accepted for e in lines] == [False, True]


def test_a_slower_machine_changes_no_decision(task, run, computed, truth, times) -> None:
    """Every group finds the machine slower than the one before: times are scaled by the incumbent's."""
    one = task(CONV)
    measurer = computed(lambda group, tile: truth(group, tile) * 1.3 ** len(measurer.groups))
    found = run([one], measurer, Limits(trials=60))
    assert found.drifts >= 2
    known, state = times(one), found.states[0]
    assert state.seconds == pytest.approx({t: s * 1.3 for t, s in known.items() if t in state.seconds})
    assert known[state.incumbent] == min(known[t] for t in state.seconds)


# Resuming ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_second_run_goes_on_where_the_first_stopped(task, run, computed, truth, path: Path, groups: int) -> None:
    def fails(group, tile):
        return None if tile.nr == 2 else truth(group, tile)

    first, second = computed(fails, stop_after=groups), computed(fails)
    stopped = run([task(CONV)], first)
    assert stopped.stopped == "interrupted" and stopped.trials == len(log.read(path)) + stopped.failed > 0
    lines = log.read(path)
    failed = {q.tile for q in read_quarantine(path)}
    assert failed == {tile for _, tile in first.asked if tile.nr == 2}
    found = run([task(CONV)], second, Limits(trials=60))
    assert log.read(path)[: len(lines)] == lines
    new = [e for e in log.read(path)[len(lines) :] if not e.accepted]
    challengers = {e.tile for e in new} & {e.tile for e in lines}
    assert len(challengers) <= 1  # one may have waited for its confirmation
    asked = Counter(tile for _, tile in (*first.asked, *second.asked))
    assert all(asked[tile] == 1 for tile in asked if tile.nr == 2)
    assert not any(tile.nr == 2 for tile in found.states[0].seconds)


def test_what_has_settled_is_not_tuned_again(task, run, computed, truth, path: Path) -> None:
    one = task(CONV)
    run([one], computed(truth))
    again = computed(truth)
    found = run([one, task(POINTWISE)], again, Limits(trials=10))
    assert {kernel for kernel, _ in again.asked} == {POINTWISE}
    assert [s.tuned_before for s in found.states] == [True, False]
    assert sum(e.settled == len(one.candidates) for e in log.read(path)) == 1


def test_shipped_logs_spare_the_search_or_start_it(task, run, computed, truth, target, path: Path) -> None:
    one = task(CONV)
    settled = log.settle(log.record(CONV, target, one.candidates[-1], [1.0]), len(one.candidates))
    measurer = computed(truth)
    found = run([one], measurer, shipped=[settled])
    assert not measurer.asked and found.trials == 0 and found.states[0].tuned_before
    run([one], measurer, Limits(trials=3), shipped=[settled], again=True)
    older = log.settle(settled, len(one.candidates) - 1)  # the space has grown since
    path.unlink()
    run([one], measurer, Limits(trials=3), shipped=[older])
    assert [g.tiles[:2] for g in measurer.groups] == 2 * [(one.default, one.candidates[-1])]


def test_kernels_that_two_models_share_are_tuned_once(target) -> None:
    from tvmflow.flow.tune import KernelCall
    from tvmflow.tune.tasks import tasks

    calls = [KernelCall(f"/l{n}", f"conv_{n % 2}", (CONV, POINTWISE)[n % 2]) for n in range(5)]
    assert sorted(t.count for t in tasks(calls, target)) == [2, 3]


# Failures ---------------------------------------------------------------------------------------------------------------------


def test_all_failed_is_an_error_of_the_machine(task, run, computed) -> None:
    one = task(CONV)
    with pytest.raises(EnvironmentProblem, match=r"all \d+ candidates failed: SIGILL") as e:
        run([one], computed(lambda group, tile: None))
    assert e.value.exit_code == 3 and "doctor" in e.value.remedy


def test_all_quarantined_before_is_an_error_too(task, run, computed, target, path: Path) -> None:
    from tvmflow.tune.state import Quarantined, quarantine

    one = task(CONV)
    for tile in one.candidates:
        quarantine(path, Quarantined(CONV, target.name, tile, "SIGSEGV"))
    with pytest.raises(EnvironmentProblem, match="failed before: SIGSEGV"):
        run([one], computed(lambda group, tile: 1.0))


def test_an_incumbent_that_fails_makes_room_for_the_next(task, run, computed, truth) -> None:
    one = task(CONV)
    measurer = computed(lambda group, tile: None if tile == one.default and measurer.groups[1:] else truth(group, tile))
    found = run([one], measurer, Limits(trials=40))
    state = found.states[0]
    assert state.incumbent not in (None, one.default) and one.default in state.quarantined
    assert sum(tile == one.default for _, tile in measurer.asked) == 2


def test_records_of_another_target_and_torn_lines_are_not_restored(task, target, path: Path) -> None:
    one = task(CONV)
    log.append(path, log.record(CONV, get_target("zen5"), one.default, [1e-9]))
    log.append(path, log.record(CONV, target, one.candidates[1], [1.0, 0.5]))
    with path.open("ab") as file:
        file.write(b'{"kernel":')
    path.with_suffix(".quarantine.jsonl").write_bytes(b'{"torn')
    (state,) = restore([one], target, path)
    assert state.seconds == {one.candidates[1]: 0.5} and state.quarantined == {}


# What is shown ----------------------------------------------------------------------------------------------------------------


def test_progress_shows_the_latency_falling(task, run, computed, truth) -> None:
    steps: list[tuple[str, int, int]] = []
    found = run([task(CONV, ("/a", "/b"))], computed(truth), Limits(trials=20), lambda *s: steps.append(s))
    assert steps[-1][1:] == (20, 20)
    now, untuned = latency(found.states), latency(found.states, untuned=True)
    assert f"network {1e3 * now:.3f} ms, untuned {1e3 * untuned:.3f} ms" in steps[-1][0]
    assert "to gain" in steps[-1][0] and steps[-1][0].endswith("about 0 s left")
    fallen = [p.latency for p in found.history[1:]]
    assert fallen == sorted(fallen, reverse=True) and fallen[-1] < fallen[0]
    assert fallen[-1] == pytest.approx(2 * found.states[0].best)


def test_cost_model_learns_the_ranking(task, target, times) -> None:
    known = times(task(CONV))
    tiles = list(known)
    model = CostModel(target)
    untaught = _agreement(model.seconds(CONV, tiles), np.array(list(known.values())))
    model.fit([Sample(CONV, tile, known[tile]) for tile in tiles[::2]])
    unseen = tiles[1::2]
    taught = _agreement(model.seconds(CONV, unseen), np.array([known[tile] for tile in unseen]))
    assert taught > max(0.8, untaught)


def test_cost_model_is_deterministic_and_its_scale_is_seconds(task, target, times) -> None:
    known = times(task(CONV))
    tiles = list(known)[:40]
    samples = [Sample(CONV, tile, known[tile]) for tile in tiles]
    models = [CostModel(target), CostModel(target)]
    for model in models:
        model.fit(samples)
    first, second = (m.seconds(CONV, tiles) for m in models)
    assert np.array_equal(first, second)
    assert np.median(first / np.array([s.seconds for s in samples])) == pytest.approx(1, abs=0.2)


def _agreement(predicted: np.ndarray, times: np.ndarray) -> float:
    """Spearman's rank correlation."""
    rank = lambda values: np.argsort(np.argsort(values)).astype(float)
    return float(np.corrcoef(rank(predicted), rank(times))[0, 1])
