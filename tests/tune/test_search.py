"""The search with a measurer that only computes: what is tried, what is kept, and what a second run does not repeat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tvmflow.errors import EnvironmentProblem
from tvmflow.kernels.spec import Conv2d
from tvmflow.tune import log
from tvmflow.tune.cost_model import CostModel, Sample
from tvmflow.tune.measure import Candidate
from tvmflow.tune.search import Limits, latency, read_quarantine, restore, search

CONV = Conv2d(1, 8, 8, 16, 32, 3, 3, pad=(1, 1, 1, 1))
POINTWISE = Conv2d(1, 8, 8, 16, 32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tuning" / "l.jsonl"


@pytest.fixture
def truth(modelled):
    """The cycle model is wrong by a factor that depends on the tile."""
    return lambda c: modelled(c.kernel, c.tile) * (1 + 3 * (c.tile.nr % 3 != 0) + (c.tile.mw > 4))


def test_finds_what_the_cycle_model_does_not_know(task, target, computed, truth, path: Path) -> None:
    one = task(CONV)
    found = search([one], target, computed(truth), path, Limits(trials=100))
    times = {tile: truth(Candidate(CONV, tile)) for tile in one.candidates}
    reached = times[found.states[0].best]
    assert reached < times[one.default] and reached <= np.quantile(list(times.values()), 0.05)
    assert {e.tile for e in log.read(path, strict=True)} == found.states[0].seconds.keys()


def test_default_is_measured_first(task, target, computed, truth, path: Path) -> None:
    measurer = computed(truth)
    tasks = [task(CONV), task(POINTWISE)]
    search(tasks, target, measurer, path, Limits(trials=8))
    assert {t.default for t in tasks} <= {c.tile for c in measurer.asked}


@pytest.mark.parametrize("trials", [1, 7, 20])
def test_limit_of_trials_is_kept(task, target, computed, truth, path: Path, trials: int) -> None:
    measurer = computed(truth)
    found = search([task(CONV), task(POINTWISE)], target, measurer, path, Limits(trials=trials))
    assert found.trials == len(measurer.asked) == trials and found.stopped == "trials"


def test_limit_of_time_ends_after_the_batch(task, target, computed, truth, path: Path) -> None:
    measurer = computed(truth)
    found = search([task(CONV)], target, measurer, path, Limits(seconds=0.0))
    assert found.stopped == "time" and measurer.batches == 1


def test_without_limits_it_ends_when_nothing_is_left_to_gain(task, target, computed, modelled, path: Path) -> None:
    measurer = computed(lambda c: modelled(c.kernel, c.tile))
    found = search([task(CONV)], target, measurer, path, Limits())
    assert found.stopped == "no gain left" and len(measurer.asked) < len(task(CONV).candidates)


def test_second_run_goes_on_where_the_first_stopped(task, target, computed, truth, path: Path) -> None:
    fails = lambda c: None if c.tile.nr == 2 else truth(c)
    first, second = computed(fails, stop_after=2), computed(fails)
    stopped = search([task(CONV)], target, first, path, Limits())
    assert stopped.stopped == "interrupted" and stopped.trials == len(first.asked) > 0
    failed = {c.tile for c in first.asked if c.tile.nr == 2}
    assert {q.tile for q in read_quarantine(path)} == failed
    found = search([task(CONV)], target, second, path, Limits(trials=60))
    repeated = {c.tile for c in second.asked} & {c.tile for c in first.asked}
    incumbents = {s.tile for s in log.read(path)}
    assert repeated <= incumbents and not repeated & failed  # only incumbents are measured again, to compare with
    assert all(tile.nr != 2 for tile in found.states[0].seconds)
    tried = [c.tile for c in (*first.asked, *second.asked) if c.tile.nr == 2]
    assert len(tried) == len(set(tried))


def test_all_failed_is_an_error_of_the_machine(task, target, computed, path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"all \d+ candidates failed: SIGILL") as e:
        search([task(CONV)], target, computed(lambda c: None), path, Limits())
    assert e.value.exit_code == 3 and "doctor" in e.value.remedy


def test_records_of_another_target_and_torn_lines_are_not_restored(task, target, computed, truth, path: Path) -> None:
    from tvmflow.target import get_target

    one = task(CONV)
    log.append(path, log.record(CONV, get_target("zen5"), one.default, [1e-9]))
    log.append(path, log.record(CONV, target, one.candidates[1], [1.0, 0.5]))
    with path.open("ab") as file:
        file.write(b'{"kernel":')
    path.with_suffix(".quarantine.jsonl").write_bytes(b'{"torn')
    (state,) = restore([one], target, path)
    assert state.seconds == {one.candidates[1]: 0.5} and state.quarantined == {}


def test_a_slower_machine_is_counted_as_drift(task, target, computed, truth, path: Path) -> None:
    measurer = computed(lambda c: truth(c) * (1 + measurer.batches))
    assert search([task(CONV)], target, measurer, path, Limits(trials=40)).drifts > 0


def test_progress_says_the_latency_and_what_is_to_gain(task, target, computed, truth, path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    found = search([task(CONV, ("/a", "/b"))], target, computed(truth), path, Limits(trials=12), lambda *s: steps.append(s))
    assert steps[-1][1:] == (12, 12)
    assert f"{1e3 * latency(found.states):.3f} ms" in steps[-1][0] and "to gain" in steps[-1][0]
    assert latency(found.states) == pytest.approx(2 * found.states[0].seconds[found.states[0].best])


def test_cost_model_learns_the_ranking(task, target, truth) -> None:
    tiles = task(CONV).candidates
    times = np.array([truth(Candidate(CONV, tile)) for tile in tiles])
    model = CostModel(target)
    untaught = _agreement(model.seconds(CONV, tiles), times)
    half = tiles[::2]
    model.fit([Sample(CONV, tile, truth(Candidate(CONV, tile))) for tile in half])
    taught = _agreement(model.seconds(CONV, tiles)[1::2], times[1::2])  # of those that it has not seen
    assert taught > max(0.8, untaught)


def test_cost_model_is_deterministic_and_its_scale_is_seconds(task, target, truth) -> None:
    tiles = task(CONV).candidates
    samples = [Sample(CONV, tile, truth(Candidate(CONV, tile))) for tile in tiles[:40]]
    models = [CostModel(target), CostModel(target)]
    for model in models:
        model.fit(samples)
    first, second = (m.seconds(CONV, tiles[:40]) for m in models)
    assert np.array_equal(first, second)
    assert np.median(first / np.array([s.seconds for s in samples])) == pytest.approx(1, abs=0.2)


def _agreement(predicted: np.ndarray, times: np.ndarray) -> float:
    """Spearman's rank correlation."""
    rank = lambda values: np.argsort(np.argsort(values)).astype(float)
    return float(np.corrcoef(rank(predicted), rank(times))[0, 1])
